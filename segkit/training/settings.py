"""Every choice of a training run that is no data, model or loss: arguments of `fit`, and `train:` of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from segkit.suggest import closest

MONITORS = ("pooled_iou", "pooled_dice", "per_image_iou", "per_image_dice", "val_loss")

# Name -> the package that it needs.
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Settings(BaseModel):
    """Unknown keys are refused, values do not change, and what is to be a number is a finite one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _true_is_no_number(cls, given: Any, check: Any) -> Any:
        found = check(given)
        if isinstance(given, bool) and not isinstance(found, bool):
            raise ValueError("a number")  # pydantic takes it for 1
        return found


class MixSettings(Settings):
    """Share of the training batches that are mixed, by the way of mixing; see `segkit.training.mixing.Mixer`.

    Attributes:
        cutmix: boxes of other images.
        classmix: half of the classes of other images.
        copy_paste: `classes` of other images.
        classes: what `copy_paste` pastes; None for all but `background`.
    """

    cutmix: float = Field(0.0, ge=0, le=1)
    classmix: float = Field(0.0, ge=0, le=1)
    copy_paste: float = Field(0.0, ge=0, le=1)
    classes: Annotated[list[str | int], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way_per_batch(self) -> MixSettings:
        total = self.cutmix + self.classmix + self.copy_paste
        if not 0 < total <= 1 + 1e-9:  # 0.56, 0.34 and 0.1 add up to a little more than 1
            raise ValueError(
                "shares of `cutmix`, `classmix` and `copy_paste` that add up to more than 0 and at most 1, as each "
                f"batch is mixed in one way: they add up to {total:g}"
            )
        if self.classes is not None and not self.copy_paste:
            raise ValueError("`copy_paste` where `classes` is given, which it pastes")
        return self


class TrainSettings(Settings):
    """How long, how fast, and where.

    Attributes:
        epochs: an epoch sees every training image `repeat` times; validation and a checkpoint follow it.
        repeat: passes over the training images in an epoch, each in another order with other augmentation. For sets so
            small that an epoch of one pass is over in a few steps.
        batch_size: images per device and step; `auto` for as many as fit in its memory, see
            `segkit.training.batch_size.fit_batch_size`.
        lr: peak learning rate of decoder and head.
        optimizer: name of an optimizer of torch or timm, or a mapping of `name` and options, see `make_optimizer`.
        encoder_lr_factor: see `build_optimizer`.
        layer_decay: in (0, 1], see `build_optimizer`; None for one rate in the whole encoder.
        weight_decay: see `build_optimizer`.
        freeze_encoder_epochs: so many epochs at the beginning leave the encoder as it is.
        prior_bias: begin with probabilities that are the frequencies of the classes, see
            `segkit.training.head_bias.set_prior_bias`.
        schedule: how the rate falls after the warm-up, see `build_schedule`.
        warmup: share of all steps in [0, 1) over which the rate rises; None is 0.3 for `one_cycle`, else 0.05.
        ema: decay in [0, 1) per step of an average of the weights, which is validated and kept in their place, see
            `segkit.training.averaging`; None for no average.
        accumulate: batches whose gradients are added before one optimizer step.
        clip_norm: largest norm of the gradient, None for no limit.
        seed: of sampling, augmentation and dropout.
        mix: share of the batches that are mixed by `cutmix`, `classmix` or `copy_paste`; see `MixSettings`.
        deep_supervision: weight of the losses of auxiliary heads inside the network, all together, beside 1 for its own
            logits, see `segkit.training.auxiliary`; None for no such heads.
        monitor: one of `MONITORS`, decides which epoch is best.
        patience: stop after so many validations without improvement; None never stops early.
        validate_every: epochs from one validation to the next.
        checkpoint_every_steps: optimizer steps from one checkpoint to the next; None writes one after each epoch alone.
        precision: `auto` is bf16 on CUDA (fp16 on GPUs without it) and float32 elsewhere; else any precision of
            `lightning.Trainer`.
        device: auto, cpu, cuda or mps.
        devices, nodes: how many devices of each machine, `auto` for all GPUs, and how many machines; a process for each
            device. torchrun and srun say it themselves.
        strategy: how processes work together: `auto` and `ddp` give each a whole model, `fsdp` a share of it; or a
            strategy of Lightning by its name.
        sync_batchnorm: BatchNorm takes its statistics over the batches of all processes; None where it can, on CUDA.
        channels_last: store convolutions channels last, which is faster on GPU and CPU.
        compile: compile the network for training: True, or a mode of `torch.compile` in
            `segkit.training.compiling.MODES`. Training images have to come in one size.
        workers: data loading processes; None for as many as fit the machine.
        loggers: which of `LOGGERS` get the numbers of the run: a list of names, or options by name, which are those of
            the Lightning logger (for W&B also of `wandb.init`), such as `{wandb: {project: nuclei, mode: offline}}`.
        pictures_every: epochs from one sheet of validation pictures to the next; None draws none while training.
        golden_images: so many crops of validation images, without validation of training images, are kept in the
            bundle with their predicted masks, see `segkit.inference.golden`; 0 keeps none.
    """

    epochs: PositiveInt = 50
    repeat: PositiveInt = 1
    batch_size: PositiveInt | Literal["auto"] = 8
    lr: PositiveFloat = 1e-3
    optimizer: str | dict[str, Any] = "adamw"
    encoder_lr_factor: PositiveFloat | None = None
    layer_decay: float | None = Field(None, gt=0, le=1)
    weight_decay: NonNegativeFloat = 0.01
    freeze_encoder_epochs: int = Field(0, ge=0)
    prior_bias: bool = False
    schedule: Literal["cosine", "poly", "constant", "one_cycle"] = "cosine"
    warmup: float | None = Field(None, ge=0, lt=1)
    ema: float | None = Field(None, ge=0, lt=1)
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0
    seed: int = Field(0, ge=0)
    mix: MixSettings | None = None
    deep_supervision: PositiveFloat | None = None
    monitor: Literal["pooled_iou", "pooled_dice", "per_image_iou", "per_image_dice", "val_loss"] = "pooled_iou"
    patience: PositiveInt | None = None
    validate_every: PositiveInt = 1
    checkpoint_every_steps: PositiveInt | None = None
    precision: str = "auto"
    device: str = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    strategy: str = "auto"
    sync_batchnorm: bool | None = None
    channels_last: bool = True
    compile: Literal["default", "reduce-overhead", "max-autotune"] | bool = False
    workers: int | None = Field(None, ge=0)
    loggers: dict[str, dict[str, Any]] = {"tensorboard": {}}
    pictures_every: PositiveInt | None = 10
    golden_images: int = Field(3, ge=0, le=32)

    @field_validator("mix", mode="before")
    @classmethod
    def _mixed_by_name(cls, given: Any) -> Any:
        if not isinstance(given, (dict, MixSettings, type(None))):
            raise ValueError("a share of the batches for each way of mixing, such as {cutmix: 0.5}")
        return given

    @model_validator(mode="after")
    def _others_to_mix_with(self) -> TrainSettings:
        if self.mix is not None and self.batch_size == 1:
            raise ValueError("a `batch_size` of 2 or more where `mix` is given, which takes another image of the batch")
        return self

    @property
    def known_batch_size(self) -> int:
        """`batch_size`, once a number stands in place of `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size

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
    name = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        if name.startswith("mix."):
            return f"unknown key {name!r}. {closest(name.removeprefix('mix.'), MixSettings.model_fields)}"
        return f"fit got an argument it does not know: {name!r}. {closest(str(name), TrainSettings.model_fields)}"
    expected = mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ").rstrip(".")
    found = f"{name} is {mistake['input']!r}" if name else "settings that contradict each other"
    return f"{found}, expected {expected}."
