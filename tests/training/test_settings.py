from __future__ import annotations

import math
import re

import pytest

from segkit.training.settings import train_settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deep_supervision": True}, "deep_supervision is True, expected a number."),
        ({"freeze_encoder_epochs": True}, "freeze_encoder_epochs is True, expected a number."),
        ({"devices": True}, "devices is True, expected a number."),
        ({"lr": math.inf}, "lr is inf, expected a finite number."),
        ({"weight_decay": math.nan}, "weight_decay is nan, expected a finite number."),
        ({"layer_decay": 0}, "layer_decay is 0, expected greater than 0."),
        ({"layer_deacy": 0.5}, "does not know: 'layer_deacy'. Did you mean `layer_decay`"),
    ],
)
def test_what_is_no_number_in_its_range_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train_settings(**given)


def test_switches_and_options_may_be_true():
    settings = train_settings(
        prior_bias=True, compile=True, sync_batchnorm=False, optimizer={"name": "adamw", "a": True}
    )
    assert (settings.prior_bias, settings.compile, settings.sync_batchnorm) == (True, True, False)
    assert settings.optimizer["a"] is True
