"""Optimizers by name, out of timm's registry, which holds those of torch as well."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from segkit.suggest import closest

# Why they cannot be had.
_REFUSED = {
    "adahessian": "it needs second derivatives, which training steps do not compute",
    "kron": "a resumed run would not end as an uninterrupted one",
}
# How a step is computed, which depends on the device.
_KERNELS = ("fused", "foreach", "capturable", "differentiable")
# What groups of parameters decide.
_SETTINGS = ("params", "lr", "weight_decay")


def make_optimizer(spec: str | Mapping[str, Any], groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """The optimizer that `spec` names, over groups with rates and weight decays of their own.

    Args:
        spec: a name of `optimizer_names`, or a mapping with `name` and options of its class, such as `momentum`. What
            is not given is as `timm.optim.create_optimizer_v2` has it: sgd has Nesterov momentum of 0.9.

    Raises:
        ValueError: no such optimizer, or options that it does not have or take.
    """
    from timm.optim import create_optimizer_v2

    name, options = _read(spec)
    if name == "adamw" and not {"fused", "foreach"} & options.keys() and _on_cuda(groups):
        options = {**options, "fused": True}  # one kernel for all parameters
    try:
        optimizer = create_optimizer_v2(groups, name, lr=lr, **options)
    except Exception as error:  # anything at all, as of betas that are too few
        raise ValueError(f"optimizer {name} with {options}: {str(error).rstrip('.')}.") from error
    # Fused ones would unscale float16 gradients on their own, but they are clipped before, also in bfloat16, where
    # there is nothing to unscale. Without this mark torch's GradScaler unscales before the step, as for all others.
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def check_optimizer(spec: str | Mapping[str, Any]) -> None:
    """Raise what `make_optimizer` would, or the first step, before there is a model."""
    weight = nn.Parameter(torch.zeros(8, 8))
    make_optimizer(spec, [{"params": [weight]}], lr=1e-3)
    name, options = _read(spec)
    if _is_of_a_package(name):
        return  # and runs on CUDA alone
    # Some look at their options only when they are used.
    options = {option: value for option, value in options.items() if option not in _KERNELS}
    optimizer = make_optimizer({"name": name, **options}, [{"params": [weight]}], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
    except Exception as error:
        raise ValueError(f"optimizer {name} with {options} makes no step: {str(error).rstrip('.')}.") from error


def optimizer_names() -> list[str]:
    """Names that `make_optimizer` knows, but for those whose packages are not installed."""
    from timm.optim import get_optimizer_info, list_optimizers

    return [
        name
        for name in map(str, list_optimizers())
        if not _why_refused(name) and not _missing_package(get_optimizer_info(name).opt_class)
    ]


def _read(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of `spec`, checked."""
    from timm.optim import get_optimizer_info, list_optimizers

    options = {} if isinstance(spec, str) else dict(spec)
    name = spec if isinstance(spec, str) else options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"optimizer is {spec!r}: expected a name, or {{name: sgd, momentum: 0.9}}.")
    name = name.lower()
    if name not in list_optimizers():
        raise ValueError(f"unknown optimizer {name!r}. {closest(name, optimizer_names())}")
    if why := _why_refused(name):
        raise ValueError(f"optimizer {name} cannot be used here: {why}. Take another, such as adamw.")
    optimizer_class = get_optimizer_info(name).opt_class
    if package := _missing_package(optimizer_class):
        raise ValueError(f"optimizer {name} is of the package {package}, which is not installed. Install it.")
    if _is_of_a_package(name) and not torch.cuda.is_available():
        raise ValueError(f"optimizer {name} runs on CUDA alone, and there is no such GPU. Take another, such as adamw.")
    if not _is_of_a_package(name):
        _check_options(name, options, optimizer_class)
    return name, options


def _check_options(name: str, options: Mapping[str, Any], optimizer_class: Any) -> None:
    known = [option for option in inspect.signature(optimizer_class).parameters if option not in _SETTINGS]
    for option in options:
        if option in _SETTINGS[1:]:
            raise ValueError(f"optimizer {name} got {option!r}, which is a setting of training: set `train.{option}`.")
        if option not in known:
            raise ValueError(f"optimizer {name} has no option {option!r}. {closest(option, known)}")


def _why_refused(name: str) -> str | None:
    return next((why for start, why in _REFUSED.items() if name.startswith(start)), None)


def _is_of_a_package(name: str) -> bool:
    """Whether timm only names the class, which another package has."""
    from timm.optim import get_optimizer_info

    return isinstance(get_optimizer_info(name).opt_class, str)


def _missing_package(optimizer_class: Any) -> str | None:
    package = optimizer_class.partition(".")[0] if isinstance(optimizer_class, str) else None
    return package if package is not None and find_spec(package) is None else None


def _on_cuda(groups: list[dict[str, Any]]) -> bool:
    return all(parameter.is_cuda for group in groups for parameter in group["params"])
