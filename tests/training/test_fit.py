from __future__ import annotations

import csv
import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from segkit.data.augment import build_augment
from segkit.formats.mask_format import MaskFormat
from segkit.inference.evaluate import evaluate
from segkit.losses.build import build_loss
from segkit.models.builder import build_model
from segkit.models.bundle import load_model
from segkit.training.engine import pick_precision
from segkit.training.fit import fit
from segkit.training.step import training_loss
from tests.scenes import FORMATS, write_set

SMALL = {"decoder_channels": [32, 16, 16, 8, 8]}


def small_model(format: MaskFormat, seed: int = 0):
    torch.manual_seed(seed)
    return build_model("unet", "tu-test_resnet", format, weights=None, **SMALL)


def run(tmp_path, format, out="run", model=None, train=None, val=None, **options):
    if train is None:
        train = write_set(tmp_path / f"{out}-train", format, 6)
        train.augment = build_augment("light", format, crop=32)
        val = write_set(tmp_path / f"{out}-val", format, 3)
    lines: list[str] = []
    settings = {"epochs": 2, "batch_size": 3, "lr": 3e-3, "workers": 0, "device": "cpu", **options}
    model = model or small_model(format)
    result = fit(model, train, val, out=tmp_path / out, tell=lines.append, **settings)
    return model, train, val, result, lines


@pytest.mark.parametrize("kind", FORMATS)
def test_training_learns_whatever_the_format(tmp_path, kind):
    format = FORMATS[kind]
    model, _, val, result, _ = run(tmp_path, format, epochs=8, monitor="pooled_iou")
    untrained = evaluate(small_model(format), val, workers=0, device="cpu").pooled("iou").mean
    trained = evaluate(model, val, workers=0, device="cpu").pooled("iou").mean
    assert trained > max(0.5, untrained + 0.1)
    assert trained == pytest.approx(result.best, abs=1e-6)


def test_a_run_leaves_bundle_metrics_checkpoint_and_environment(tmp_path):
    model, _, _, result, lines = run(tmp_path, FORMATS["exclusive"])
    folder = tmp_path / "run"
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert max(float(row["pooled_iou"]) for row in rows) == pytest.approx(result.best, abs=1e-6)
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]
    assert len(lines) == 2
    assert "pooled_iou" in lines[1]
    bundle = load_model(folder)
    for name, value in bundle.network.state_dict().items():
        assert torch.equal(value, model.network.state_dict()[name]), name


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    # A learning rate that destroys the model at once: the first epoch can only be followed by worse or equal ones.
    _, _, _, result, _ = run(tmp_path, FORMATS["binary"], epochs=3, lr=1e3, clip_norm=None, warmup=0.0)
    with open(tmp_path / "run" / "metrics.csv") as file:
        scores = [float(row["pooled_iou"]) for row in csv.DictReader(file)]
    assert result.best == pytest.approx(max(scores))
    assert result.best_epoch == scores.index(max(scores))


def test_a_model_that_was_loaded_to_predict_is_trained_as_one_that_was_built(tmp_path):
    format = FORMATS["binary"]
    train = write_set(tmp_path / "t", format, 4)
    built, *_ = run(tmp_path, format, "built", train=train)
    loaded, *_ = run(tmp_path, format, "loaded", model=small_model(format).eval(), train=train)
    for name, value in built.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name]), name


@pytest.mark.parametrize("data_on_device", [False, True])
def test_epochs_that_repeat_the_images_train_as_more_epochs_do(tmp_path, data_on_device):
    """The same images in the same order with the same augmentation, with fewer validations and checkpoints."""
    train, val = (write_set(tmp_path / part, FORMATS["exclusive"], count) for part, count in (("t", 6), ("v", 2)))
    train.augment = build_augment("fast_medical", train.format, crop=32)
    options = {"train": train, "val": val, "data_on_device": data_on_device}
    run(tmp_path, train.format, "short", epochs=4, **options)
    *_, lines = run(tmp_path, train.format, "long", epochs=2, repeat=2, **options)
    assert lines[-1].startswith("epoch 2/2")
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("short", "long")]
    assert [state["global_step"] for state in states] == [8, 8]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


def test_validation_on_training_images_is_told(tmp_path, caplog):
    train = write_set(tmp_path / "t", FORMATS["binary"], 3)
    run(tmp_path, train.format, train=train, val=train.subset(["s2"]), epochs=1)
    assert "read from the same files" in caplog.text


def test_named_optimizer_schedule_and_rates_by_stage_are_used(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append((trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler))

    options = {"schedule": "one_cycle", "layer_decay": 0.5, "optimizer": {"name": "sgd", "momentum": 0.8}}
    run(tmp_path, FORMATS["binary"], callbacks=[Look()], **options)
    ((optimizer, schedule),) = seen
    assert isinstance(optimizer, torch.optim.SGD)
    assert isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR)
    assert len({group["initial_lr"] for group in optimizer.param_groups}) == 6


def test_a_fused_optimizer_trains_with_clipping_in_mixed_precision(tmp_path):
    *_, result, _ = run(tmp_path, FORMATS["binary"], optimizer={"name": "adamw", "fused": True}, precision="bf16-mixed")
    assert result.best is not None


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    format = FORMATS["exclusive"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 2)
    train.augment = build_augment("light", format, crop=32)
    whole, *_ = run(tmp_path, format, "whole", train=train, val=val, epochs=4)

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Killer(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise Stop

    with pytest.raises(Stop):
        run(tmp_path, format, "cut", train=train, val=val, epochs=4, callbacks=[Killer()])
    resumed, *_ = run(
        tmp_path, format, "cut", model=small_model(format, seed=9), train=train, val=val, epochs=4, resume=True
    )
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_early_stopping_and_accumulation(tmp_path):
    *_, result, _ = run(tmp_path, FORMATS["binary"], epochs=30, lr=1e-12, patience=2, accumulate=2)
    assert result.epochs < 30


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    train = write_set(tmp_path / "t", FORMATS["binary"], 4)
    *_, result, _ = run(tmp_path, FORMATS["binary"], train=train)
    assert result.best is None
    assert result.best_epoch == 1
    assert load_model(tmp_path / "run")


def test_bands_of_16_bit_images_get_the_statistics_of_the_data(tmp_path):
    import numpy as np
    import tifffile

    format = FORMATS["binary"]
    data = write_set(tmp_path / "t", format, 4)
    for path in sorted((tmp_path / "t" / "images").iterdir()):
        tifffile.imwrite(path.with_suffix(".tif"), np.random.default_rng(0).integers(0, 4000, (40, 56, 5)).astype("u2"))
        path.unlink()
    data = type(data)(tmp_path / "t" / "images", tmp_path / "t" / "masks", data.codec)
    model = build_model("unet", "tu-test_resnet", format, weights=None, in_channels=5, **SMALL)
    run(tmp_path, format, model=model, train=data)
    assert model.statistics.dtype == "uint16"
    assert model.statistics.mean[0] == pytest.approx(2000, rel=0.05)
    assert load_model(tmp_path / "run").statistics == model.statistics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "iou"}, "monitor is 'iou'"),
        ({"epoch": 3}, "Did you mean .epochs"),
        ({"resume": True}, "nothing to resume"),
        ({"schedule": "linear"}, "schedule is .linear., expected"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5, expected"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, FORMATS["binary"], **options)


def test_a_used_run_folder_is_refused(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run already"):
        run(tmp_path, FORMATS["binary"])


def test_masks_of_another_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give both one format"):
        run(tmp_path, FORMATS["binary"], model=small_model(FORMATS["exclusive"]))


def test_stride_padding_is_not_trained_on():
    """A loss that counts pixels sees those of the image alone, whatever the network was fed."""
    seen = []

    def loss(logits, target):
        seen.append((logits.shape, target.shape))
        return logits.sum() * 0

    training_loss(small_model(FORMATS["exclusive"]), loss, torch.zeros(2, 3, 33, 47), torch.zeros(2, 1, 33, 47))
    assert seen == [((2, 3, 33, 47), (2, 1, 33, 47))]


def test_two_classes_have_one_loss_and_one_gradient_as_softmax_and_as_sigmoid():
    """The second logit of the pair is pushed as the single logit is."""
    sigmoid, softmax = FORMATS["binary"], FORMATS["binary_softmax"]
    logit = torch.randn(2, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    pair = torch.cat([torch.zeros_like(logit), logit.detach()], 1).requires_grad_()
    target = torch.randint(0, 2, (2, 1, 5, 7), dtype=torch.uint8)
    target[0, 0, 0, 0] = 255
    one = build_loss("cross_entropy", sigmoid)(logit, target)
    two = build_loss("cross_entropy", softmax)(pair, target)
    one.backward()
    two.backward()
    assert one.item() == pytest.approx(two.item(), rel=1e-12)
    assert torch.allclose(logit.grad, pair.grad[:, 1:], atol=1e-15)


def test_the_last_epoch_is_validated_however_rarely_others_are(tmp_path):
    *_, result, _ = run(tmp_path, FORMATS["binary"], epochs=2, validate_every=5)
    assert result.best_epoch == 1
    assert result.best is not None


def test_a_monitor_that_is_never_a_number_keeps_the_last_weights(tmp_path, caplog):
    class Broken(torch.nn.Module):
        def forward(self, logits, target):
            return logits.sum() * (0 if torch.is_grad_enabled() else float("nan"))

    *_, result, _ = run(tmp_path, FORMATS["binary"], loss=Broken(), monitor="val_loss")
    assert result.best is None
    assert "never a number" in caplog.text
    assert load_model(tmp_path / "run")


def test_bands_that_do_not_fit_are_named_before_anything_is_written(tmp_path):
    model = build_model("unet", "tu-test_resnet", FORMATS["binary"], weights=None, in_channels=5, **SMALL)
    with pytest.raises(ValueError, match="3 bands, the model takes 5"):
        run(tmp_path, FORMATS["binary"], model=model)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="expected auto"):
        run(tmp_path, FORMATS["binary"], device="gpu")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_is_a_keyboard_interrupt(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        def on_train_batch_start(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FORMATS["binary"], callbacks=[Interrupt()])


def test_whole_networks_in_bfloat16_train(tmp_path):
    *_, result, _ = run(tmp_path, FORMATS["binary"], epochs=1, precision="bf16-true")
    assert result.epochs == 1


def test_epochs_without_validation_have_no_scores(tmp_path):
    *_, lines = run(tmp_path, FORMATS["binary"], epochs=3, validate_every=2)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["pooled_iou"]) for row in rows] == [False, True, True]
    assert all(row["train_loss"] for row in rows)
    assert ["pooled_iou" in line for line in lines] == [False, True, True]


@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
def test_training_learns_from_data_on_the_device(tmp_path, kind):
    format = FORMATS[kind]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 3)
    train.augment = build_augment("fast_light", format, crop=32)
    model, _, _, result, lines = run(tmp_path, format, train=train, val=val, epochs=8, data_on_device=True)
    assert lines[0] == "reading 6 training samples into the memory of cpu"
    untrained = evaluate(small_model(format), val, workers=0, device="cpu").pooled("iou").mean
    assert evaluate(model, val, workers=0, device="cpu").pooled("iou").mean > max(0.5, untrained + 0.1)
    assert result.epochs == 8


def test_a_run_on_data_on_the_device_is_resumed_bit_for_bit(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise RuntimeError("stopped")

    format = FORMATS["exclusive"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 2)
    train.augment = build_augment("fast_medical", format, crop=32)
    options = {"train": train, "val": val, "epochs": 3, "data_on_device": True}
    whole, *_ = run(tmp_path, format, "whole", **options)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, format, "cut", **options, callbacks=[Stop()])
    resumed, *_ = run(tmp_path, format, "cut", model=small_model(format, seed=9), **options, resume=True)
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_without_changes_data_on_the_device_train_like_data_from_files(tmp_path):
    format = FORMATS["binary"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 2)
    for name, on_device in (("files", False), ("device", True)):
        run(tmp_path, format, name, train=train, val=val, data_on_device=on_device)
    assert (tmp_path / "device" / "metrics.csv").read_text() == (tmp_path / "files" / "metrics.csv").read_text()


def test_an_augmentation_of_the_cpu_with_data_on_the_device_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="augment is 'light', which runs on the CPU"):
        run(tmp_path, FORMATS["binary"], data_on_device=True)
    assert not (tmp_path / "run").exists()


def test_precision_auto_is_what_the_device_is_fast_in(monkeypatch):
    cuda = torch.device("cuda")
    assert pick_precision("auto", torch.device("cpu")) == "32-true"
    assert pick_precision("32-true", cuda) == "32-true"
    for ampere, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=ampere: answer)
        assert pick_precision("auto", cuda) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("on_device", [False, True])
def test_training_learns_on_a_gpu(tmp_path, on_device):
    format = FORMATS["exclusive"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 3)
    train.augment = build_augment("fast_light", format, crop=32)
    options = {"epochs": 8, "device": "cuda", "workers": 2, "data_on_device": on_device}
    model, _, _, result, _ = run(tmp_path, format, train=train, val=val, **options)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["accelerator"] == "CUDAAccelerator"
    assert evaluate(model, val, workers=0, device="cuda").pooled("iou").mean == pytest.approx(result.best, abs=0.02)
    assert result.best > 0.5


def test_a_run_is_deterministic_and_leaves_torch_as_it_was(tmp_path):
    """Nor does it fill new memory before it is written, which deterministic mode does unless told otherwise."""
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            fill = torch.utils.deterministic.fill_uninitialized_memory
            seen.append((torch.are_deterministic_algorithms_enabled(), fill))

    def state():
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    before = state()
    run(tmp_path, FORMATS["binary"], epochs=1, callbacks=[Look()])
    assert seen == [(not torch.cuda.is_available(), False)]
    assert state() == before


def write_hot_set(root):
    """Float images of about 100 in which one pixel in eighty is a thousand times as bright."""
    import numpy as np
    import tifffile

    data = write_set(root, FORMATS["binary"], 4)
    for path in sorted((root / "images").iterdir()):
        pixels = np.random.default_rng(0).normal(100, 10, (40, 56)).astype(np.float32)
        pixels[::9, ::9] = 1e5
        tifffile.imwrite(path.with_suffix(".tif"), pixels)
        path.unlink()
    return type(data)(data.images, data.masks, data.codec, augment=build_augment("fast_light", data.format))


def windowed_model(seed=0):
    torch.manual_seed(seed)
    return build_model(
        "unet", "tu-test_resnet", FORMATS["binary"], weights=None, in_channels=1, window=[60, 140], **SMALL
    )


@pytest.mark.parametrize("on_device", [False, True])
def test_training_samples_are_augmented_within_what_the_model_clips(tmp_path, on_device):
    from lightning.pytorch.callbacks import Callback

    class Seen(Callback):
        largest = 0.0

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.largest = max(self.largest, float(batch.images.max()))

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise RuntimeError("stopped")

    train, seen = write_hot_set(tmp_path / "t"), Seen()
    options = {"train": train, "val": train, "epochs": 3, "data_on_device": on_device}
    whole, *_ = run(tmp_path, train.format, "whole", model=windowed_model(), callbacks=[seen], **options)
    assert whole.statistics.clip == ((60.0, 140.0),)
    assert 100 < seen.largest <= 140
    assert train.augment.clip is None  # the caller's stays as it was
    # The clip is known again after a restart.
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, train.format, "cut", model=windowed_model(), callbacks=[Stop()], **options)
    resumed, *_ = run(tmp_path, train.format, "cut", model=windowed_model(9), resume=True, **options)
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
