"""Every choice of a training run that is no data, model or loss: arguments of `fit`, and `train:` of a config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from segkit.suggest import closest

MONITORS = ("pooled_iou", "pooled_dice", "per_image_iou", "per_image_dice", "val_loss")

# Name -> the package that it needs.
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class TrainSettings(BaseModel):
    """How long, how fast, and where.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per device and step.
        lr: peak learning rate of decoder and head.
        encoder_lr_factor: see `build_optimizer`.
        weight_decay: see `build_optimizer`.
        schedule: how the rate falls after the warm-up, see `segkit.training.optimizer`.
        warmup: share of all steps in [0, 1) over which the rate rises.
        accumulate: batches whose gradients are added before one optimizer step.
        clip_norm: largest norm of the gradient, None for no limit.
        seed: of sampling, augmentation and dropout.
        monitor: one of `MONITORS`, decides which epoch is best.
        patience: stop after so many validations without improvement; None never stops early.
        validate_every: epochs from one validation to the next.
        checkpoint_every_steps: optimizer steps from one checkpoint to the next; None writes one after each epoch alone.
        precision: `auto` is bf16 on CUDA (fp16 on GPUs without it) and float32 elsewhere; else any precision of
            `lightning.Trainer`.
        device: auto, cpu, cuda or mps.
        devices, nodes: how many, as `lightning.Trainer` takes them.
        channels_last: store convolutions channels last, which is faster on GPU and CPU.
        compile: compile the network for training: True, or a mode of `torch.compile` in
            `segkit.training.compiling.MODES`. Training images have to come in one size.
        workers: data loading processes; None for as many as fit the machine.
        loggers: which of `LOGGERS` get the numbers of the run: a list of names, or options by name, which are those of
            the Lightning logger (for W&B also of `wandb.init`), such as `{wandb: {project: nuclei, mode: offline}}`.
        pictures_every: epochs from one sheet of validation pictures to the next; None draws none while training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 1e-3
    encoder_lr_factor: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0
    seed: int = Field(0, ge=0)
    monitor: Literal["pooled_iou", "pooled_dice", "per_image_iou", "per_image_dice", "val_loss"] = "pooled_iou"
    patience: PositiveInt | None = None
    validate_every: PositiveInt = 1
    checkpoint_every_steps: PositiveInt | None = None
    precision: str = "auto"
    device: str = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    channels_last: bool = True
    compile: Literal["default", "reduce-overhead", "max-autotune"] | bool = False
    workers: int | None = Field(None, ge=0)
    loggers: dict[str, dict[str, Any]] = {"tensorboard": {}}
    pictures_every: PositiveInt | None = 10

    @field_validator("loggers", mode="before")
    @classmethod
    def _loggers_by_name(cls, given: Any) -> Any:
        names = [given] if isinstance(given, str) else given or {}
        if isinstance(names, list):
            pairs = [entry.items() if isinstance(entry, dict) else [(entry, None)] for entry in names]
            names = {name: options for pair in pairs for name, options in pair}
        if not isinstance(names, dict) or any(not isinstance(o or {}, dict) for o in names.values()):
            raise ValueError("names of loggers, or {name: {option: value}}")
        if any(name not in LOGGERS for name in names):
            raise ValueError(f"names out of {', '.join(LOGGERS)}")
        return {name: options or {} for name, options in names.items()}


def train_settings(**given: Any) -> TrainSettings:
    """Settings from keyword arguments.

    Raises:
        ValueError: one line for each that is not known, with the closest known name, or out of range.
    """
    try:
        return TrainSettings(**given)
    except ValidationError as error:
        raise ValueError("\n".join(dict.fromkeys(_explain(mistake) for mistake in error.errors()))) from None


def _explain(mistake: Any) -> str:
    name = mistake["loc"][0]
    if mistake["type"] == "extra_forbidden":
        return f"fit got an argument it does not know: {name!r}. {closest(str(name), TrainSettings.model_fields)}"
    expected = mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ").rstrip(".")
    return f"{name} is {mistake['input']!r}, expected {expected}."
