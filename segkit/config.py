"""One experiment as a YAML file: pydantic models, and a reader that names the line of a mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from segkit.formats.files import write_whole
from segkit.formats.nifti_slices import parse_axes
from segkit.suggest import closest
from segkit.training.settings import Settings, TrainSettings
from segkit.yaml_text import CoreDumper, parse_yaml

Side = PositiveInt
SizeHW = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SpacingMm = Annotated[list[Millimetres], Field(min_length=2, max_length=2)]
LowHigh = Annotated[list[float], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MasksConfig(Section):
    """What masks mean and how files hold them."""

    format: Literal["binary", "multilabel", "multiclass"]
    classes: list[str | int | dict[str, Any]] = Field(min_length=1)
    activation: Literal["softmax", "sigmoid"] | None = None  # None: softmax for multiclass, else sigmoid
    threshold: float | list[float] | None = None  # of sigmoid classes; multiclass: below it a pixel is *none*
    codec: str | dict[str, Any] = "index_png"
    ignored_values: list[Any] = []  # values on disk that mean "do not look here"


class PartConfig(Section):
    """Where one part of the data lies: folders below `data.root`, a list of stems, or a share of another part."""

    images: str | None = None
    masks: str | None = None
    image_pattern: str | None = None  # of the file of a sample, without suffix; None: {stem}
    mask_pattern: str | None = None
    bands: Annotated[Sequence[str], Field(min_length=1)] | None = None  # files of an image, {band} in image_pattern
    list: str | None = None  # file with one stem per line
    from_: Literal["train"] | None = Field(None, alias="from")
    fraction: float = Field(0.1, gt=0, lt=1)  # of what the training part still holds, split off by groups
    group: str | None = None  # regex; stems with the same first group stay together
    seed: int = Field(0, ge=0)  # another seed is another split

    @model_validator(mode="after")
    def _either_folders_or_a_share(self) -> PartConfig:
        folders = ("images", "masks", "image_pattern", "mask_pattern", "bands", "list")
        share = ("fraction", "group", "seed")
        if self.from_ is None:
            lonely = [name for name in share if getattr(self, name) != type(self).model_fields[name].default]
            if lonely:
                raise ValueError(f"a part with `from: train` where `{lonely[0]}` is given")
        elif any(getattr(self, name) is not None for name in folders):
            raise ValueError("either `from: train` or folders, not both")
        return self


class FoldConfig(Settings):
    """One fold of a cross-validation: left out of training, and scored when it is done."""

    number: PositiveInt  # 1 to `of`
    of: int = Field(ge=2)  # folds in all
    group: str | None = None  # regex; stems with the same first group are in one fold
    seed: int = Field(0, ge=0)  # another seed gives other folds

    @model_validator(mode="after")
    def _one_of_them(self) -> FoldConfig:
        if self.number > self.of:
            raise ValueError(f"a `number` from 1 to {self.of}, not {self.number}")
        return self


class FocusConfig(Settings):
    """Training crops that are placed on some classes; see `segkit.data.focus.build_focus`."""

    share: float = Field(0.33, gt=0, le=1)  # of the crops; the others lie anywhere
    classes: Literal["foreground", "rare"] | Annotated[list[str | int], Field(min_length=1)] = "foreground"


def _focus_of(value: Any) -> Any:
    if isinstance(value, (bool, str, list)):
        raise ValueError("a share of the crops, such as 0.33, or `{share: 0.33, classes: foreground}`")
    return {"share": value} if isinstance(value, (int, float)) else value


def _axes_of(value: str) -> str:
    parse_axes(value)
    return value


class DataConfig(Section):
    """Which images, and how they are read."""

    root: str = "."
    train: PartConfig | None = None
    val: PartConfig | None = None
    test: PartConfig | None = None
    fold: FoldConfig | None = None  # of the training part and its share `val`: `segkit crossvalidate` sets it
    layout: str = "folders"
    crop: Side | SizeHW | None = None  # training crops: a square, or [height, width]
    focus: Annotated[FocusConfig | None, BeforeValidator(_focus_of)] = None  # a number is the share on foreground
    resize: Side | SizeHW | None = None  # working size of the model: longer side, or [height, width]
    spacing_mm: Millimetres | SpacingMm | None = None  # working size by distance: of pixels, or [row, column]
    normalize: Literal["dataset", "image", "volume"] = "dataset"  # over what mean and deviation are taken
    axis: Annotated[str, AfterValidator(_axes_of)] = "z"  # volumes are cut across it, or across several: zyx
    neighbours: int = Field(0, ge=0)  # so many slices on either side are further bands of a slice
    leaks: Literal["refuse", "warn"] = "refuse"  # training images that are in val or test too, pixel for pixel
    quarantine: str | None = None  # file with stems to leave out, below `root` or the current folder
    cache: Literal["off", "ram", "disk", "device"] = (
        "off"  # keep samples decoded: in shared memory, on disk, on the GPU
    )
    cache_dir: str | None = None  # None: $SEGKIT_CACHE, else `segkit` in the user's cache folder
    cache_gib: PositiveFloat | None = None  # largest cache; None: half the free memory, or most of the free disk

    @model_validator(mode="after")
    def _bounds_belong_to_a_copy(self) -> DataConfig:
        if self.cache == "device" and (self.cache_dir is not None or self.cache_gib is not None):
            raise ValueError(
                "`cache: disk` or `ram` where `cache_dir` or `cache_gib` is given; `device` has a bound of its own"
            )
        return self

    @model_validator(mode="after")
    def _focus_places_crops(self) -> DataConfig:
        if self.focus is not None and self.crop is None:
            raise ValueError("`crop` where `focus` is given, which says where crops are placed")
        return self

    @model_validator(mode="after")
    def _one_working_size(self) -> DataConfig:
        if self.resize is not None and self.spacing_mm is not None:
            raise ValueError("`resize` or `spacing_mm`, not both")
        return self

    @model_validator(mode="after")
    def _train_is_the_source(self) -> DataConfig:
        if self.train is not None and self.train.from_ is not None:
            raise ValueError("folders for `train`, which others take their share from")
        return self


class ModelConfig(Section):
    """The network; see `segkit.models.builder.build_model`."""

    architecture: str = "unet"
    encoder: str = "resnet34"
    weights: str | None = "imagenet"  # imagenet, none, packaged, or a path
    in_channels: PositiveInt | None = None  # None: 3 for 8-bit images, else their bands
    clip: Literal["none"] | LowHigh | None = None  # percentiles; None: [0.5, 99.5], but nothing of 8-bit images
    window: LowHigh | None = None  # [low, high] in stored units instead, such as Hounsfield units of a CT
    options: dict[str, Any] = {}  # handed to the architecture, such as decoder_channels

    @model_validator(mode="after")
    def _ranges(self) -> ModelConfig:
        if self.clip is not None and self.window is not None:
            raise ValueError("`clip` or `window`, not both")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"`window: [low, high]` with low below high, not {self.window}")
        if isinstance(self.clip, list) and not 0 <= self.clip[0] < self.clip[1] <= 100:
            raise ValueError(f"`clip: [low, high]` with percentiles from 0 to 100, not {self.clip}")
        return self


class Experiment(Section):
    """A whole config."""

    masks: MasksConfig
    data: DataConfig = DataConfig()
    augment: str | list[Any] = "light"
    model: ModelConfig = ModelConfig()
    loss: str | dict[str, Any] = {"cross_entropy": 1, "dice": 1}
    train: TrainSettings = TrainSettings()
    postprocess: list[str | dict[str, Any]] = []  # steps for predicted masks, see `segkit.models.steps`

    @model_validator(mode="after")
    def _ranges_are_of_stored_values(self) -> Experiment:
        normalize = self.data.normalize
        if normalize != "dataset" and (self.model.clip, self.model.window) != (None, None):
            raise ValueError(
                f"`model.clip` and `model.window` left out, which are for stored values, where `data.normalize` is "
                f"{normalize}"
            )
        return self

    def to_yaml(self) -> str:
        """Complete and resolved, as a run folder keeps it; `read_config` reads it back."""
        values = self.model_dump(by_alias=True)
        return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=110)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a YAML file.

    Args:
        overrides: `KEY=VALUE` with dotted keys, such as `train.epochs=5`; values are YAML.

    Raises:
        ValueError: names file, line and key, with the nearest known key where one is unknown.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a config ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; expected a YAML config.") from None
    return parse_config(text, path, overrides)


def write_config(path: Path, text: str) -> None:
    """Write a config, whole or not at all, once `read_config` would read it."""
    parse_config(text, path)
    write_whole(path, text.encode())


def parse_config(text: str, path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of the text of a YAML file; see `read_config`."""
    values, lines = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys such as `masks:` and `data:`.")
    places: dict[tuple[Any, ...], str] = {key: f"{path}, line {line}" for key, line in lines.items()}
    for override in overrides:
        key = _override(values, override)
        places[key] = f"{override!r}"
    try:
        _take_masks_from_layout(values)
    except ValueError as error:
        where = _nearest_place(("data", "layout"), places, str(path))
        raise ValueError(f"{where}: {error}") from None
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ValueError(_explain(error, values, places, str(path))) from None


def _override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one `KEY=VALUE` in place; returns its key."""
    name, equals, text = override.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise ValueError(f"{override!r}: expected KEY=VALUE with a dotted key, such as train.epochs=5.")
    value, _ = parse_yaml(text, override)
    place = values
    for part in key[:-1]:
        below = place.get(part)
        if not isinstance(below, dict):
            # `codec: index_png` is short for `{name: index_png}`, to which options may be added; `optimizer` alike.
            below = {"name": below} if isinstance(below, str) and part in ("codec", "optimizer") else {}
            place[part] = below
        place = below
    place[key[-1]] = value
    return key


def _take_masks_from_layout(values: dict[str, Any]) -> None:
    """Fill in what the layout knows of the masks, where the file leaves the classes to it."""
    data, masks = values.get("data"), values.get("masks", {})
    if not isinstance(data, dict) or not isinstance(masks, dict) or "classes" in masks:
        return
    layout, root = data.get("layout"), data.get("root", ".")
    if isinstance(layout, str) and isinstance(root, str):
        # Imported here: a config that names its classes is read without torch.
        from segkit.data.layouts import find_layout

        described = find_layout(layout).masks(Path(root)) | masks
        if described:
            values["masks"] = described


def _explain(error: ValidationError, values: Any, places: Mapping[tuple[Any, ...], str], source: str) -> str:
    """One line per mistake: where, what was found, what was expected."""
    lines: dict[tuple[Any, ...], str] = {}
    for mistake in error.errors():
        key = _own_key(mistake["loc"], values, mistake["type"])
        if key in lines:
            continue  # the other members of a union have failed too
        where = _nearest_place(key, places, source)
        name = ".".join(str(k) for k in key)
        if mistake["type"] == "extra_forbidden":
            known = _known_keys(key[:-1])
            lines[key] = f"{where}: unknown key `{name}`. {closest(key[-1], known)}"
        elif mistake["type"] == "missing":
            lines[key] = f"{where}: the key `{name}` is missing."
        else:
            expected = mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ").rstrip(".")
            # The whole config, where several sections contradict each other, would hide what is wrong.
            found = f"`{name}` is {mistake['input']!r}, " if key else ""
            lines[key] = f"{where}: {found}expected {expected}."
    return "\n".join(lines.values())


def _own_key(loc: tuple[Any, ...], values: Any, kind: str) -> tuple[Any, ...]:
    """The part of `loc` that the file holds; pydantic adds names of its own for members of a union."""
    key: list[Any] = []
    for part in loc:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        elif kind != "missing" or not isinstance(values, dict):
            break
        key.append(part)
    return tuple(key)


def _nearest_place(key: tuple[Any, ...], places: Mapping[tuple[Any, ...], str], source: str) -> str:
    for end in range(len(key), 0, -1):
        if key[:end] in places:
            return places[key[:end]]
    return source


def _known_keys(section: Sequence[Any]) -> list[str]:
    model: type[BaseModel] = Experiment
    for part in section:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
