"""Exported files give what the bundle gives, know what it knows, and are not written where they do not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.inference.export import EXPORT_FORMATS, export_bundle
from segkit.inference.export_graph import PlainAdaptivePool, StoredToPlanes
from segkit.inference.exported import open_exported
from segkit.models.builder import ARCHITECTURES, build_model
from segkit.models.bundle import load_model, save_bundle
from segkit.models.segmenter import STORED_DTYPES
from segkit.models.statistics import PixelStatistics
from segkit.ops.sizes import Spacing
from tests.scenes import default_codec

SMALL = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
KINDS = {
    "exclusive": MaskFormat.multiclass(["sky", "ground", "disc"]),
    "one_vs_rest": MaskFormat.multiclass(["sky", "ground", "disc"], "sigmoid", threshold=0.5),
    "overlapping": MaskFormat.multilabel(["left", "disc"], thresholds=[0.4, 0.6]),
}
# Odd, smaller than a stride, a whole number of strides; batches of one and of several.
SHAPES = [(1, 37, 53), (2, 64, 96), (3, 129, 33), (1, 1, 1)]


class Blurry(nn.Module):
    """A network of one's own that exports at once."""

    def __init__(self, encoder_name: str, encoder_weights: str | None, in_channels: int, classes: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(in_channels, 8, 5, padding=2)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.near(x).relu())


class Moody(Blurry):
    """Another network for a batch of one, which an exporter cannot see in an example of three."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.shape[0] > 1 else -x)


class Curious(Blurry):
    """Looks at its numbers, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def bundle_of(folder: Path, format: MaskFormat, architecture="unet", encoder="tu-test_resnet", **options) -> Path:
    torch.manual_seed(2)
    model = build_model(architecture, encoder, format, weights=None, **options)
    wake_up(model)
    return save_bundle(model, folder, default_codec(format))


def wake_up(model) -> None:
    """Logits of a new network hardly differ: with these every class, and *none*, is somewhere."""
    head = [m for m in model.network.modules() if isinstance(m, nn.Conv2d)][-1]
    with torch.inference_mode():
        logits = model.eval()(images_of((2, 64, 96), model.in_channels).to(STORED_DTYPES[model.statistics.dtype]))
    mean, std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
    with torch.no_grad():
        head.bias.sub_(mean).mul_(2 / std)
        head.weight.mul_((2 / std).view(-1, 1, 1, 1))


def images_of(shape: tuple[int, int, int], bands: int = 3, dtype=np.uint8) -> Tensor:
    count, height, width = shape
    rng = np.random.default_rng(height)
    values = rng.uniform(0, 255 if dtype != np.uint16 else 65535, (count, bands, height, width))
    return torch.from_numpy(values.astype(dtype))


def compute(path: Path, images: Tensor) -> list[Tensor]:
    """What another program does with the file: no code of segkit."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        assert names == ["planes", "probabilities"][: len(names)]
        return [torch.from_numpy(array) for array in session.run(names, {"images": images.numpy()})]
    with torch.inference_mode():
        return list(torch.export.load(path).module()(images))


def check_agrees(path: Path, model, shapes=SHAPES) -> None:
    found = set()
    for shape in shapes:
        images = images_of(shape)
        planes, probs = compute(path, images)
        with torch.inference_mode():
            logits = model.predict_logits(images)
        wanted = model.format.decode(logits)
        assert (planes.shape, planes.numpy().dtype) == (wanted.shape, model.format.dtype)
        assert (planes.int() != wanted.int()).float().mean() <= 1e-3
        assert torch.allclose(probs, model.format.probabilities(logits), atol=2e-4)
        found |= set(wanted.unique().tolist())
    assert len(found) > 1, "masks of one value test no decoding"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(bundle, file) of a kind and a format, written once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def get(kind: str, format: str) -> tuple[Path, Path]:
        if (kind, format) not in made:
            root = tmp_path_factory.mktemp(f"{kind}-{format}")
            bundle = bundle_of(root / "m", KINDS[kind], Blurry, "none")
            export_bundle(bundle, root / f"model{EXPORT_FORMATS[format]}", format, architecture=Blurry)
            made[kind, format] = bundle, root / f"model{EXPORT_FORMATS[format]}"
        return made[kind, format]

    return get


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_planes_and_probabilities_are_those_of_the_bundle(exported, kind, format):
    bundle, file = exported(kind, format)
    check_agrees(file, load_model(bundle, architecture=Blurry))


@pytest.mark.parametrize(
    ("format", "architecture", "options"),
    [
        ("onnx", "unet", SMALL),
        ("onnx", "pspnet", {}),
        ("torch", "fpn", {}),
        ("torch", "deeplabv3plus", {}),
        ("torch", "segformer", {}),
    ],
)
def test_architectures_of_several_kinds(tmp_path, format, architecture, options):
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], architecture, **options)
    file = tmp_path / f"model{EXPORT_FORMATS[format]}"
    report = export_bundle(bundle, file, format)
    check_agrees(file, load_model(bundle), [s for s in SHAPES if min(s[1:]) >= report.least_side])
    assert report.least_side <= 9


@pytest.mark.slow
@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(tmp_path, architecture, format):
    if format == "aoti" and architecture not in ("fpn", "segformer"):
        pytest.skip("takes minutes to compile")
    encoder = "tu-test_vit" if architecture == "dpt" else "tu-test_resnet"
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], architecture, encoder)
    file = tmp_path / f"model{EXPORT_FORMATS[format]}"
    report = export_bundle(bundle, file, format)
    if format != "aoti":
        check_agrees(file, load_model(bundle), [s for s in SHAPES if min(s[1:]) >= report.least_side])


@pytest.mark.parametrize(
    ("format", "dtype", "resize"),
    [("onnx", "uint16", 50), ("torch", "float32", [48, 40]), ("torch", "uint16", 50)],
)
def test_depth_bands_clipping_and_resizing_are_inside(tmp_path, format, dtype, resize):
    bands = 2
    torch.manual_seed(2)
    mask_format = KINDS["overlapping"]
    model = build_model(Blurry, "none", mask_format, weights=None, in_channels=bands, resize=resize)
    model.statistics = PixelStatistics((100, 90), (50, 80), dtype, "data", clip=((20, 200), (0, 150)))
    model.reading = ImageReading(axis="y", neighbours=0)
    wake_up(model)
    save_bundle(model, tmp_path / "m")
    file = tmp_path / f"model{EXPORT_FORMATS[format]}"
    export_bundle(tmp_path / "m", file, format, architecture=Blurry)
    images = images_of((2, 61, 45), bands, np.dtype(dtype))
    images = images if dtype == "float32" else (images.int() % 300).to(images.dtype)
    planes, probs = compute(file, images)
    with torch.inference_mode():
        logits = model.eval().predict_logits(images)
    assert (planes != mask_format.decode(logits)).float().mean() <= 1e-3
    assert torch.allclose(probs, mask_format.probabilities(logits), atol=2e-4)
    assert {0, 1} == set(planes.unique().tolist())


def test_more_than_255_classes_come_as_uint16(tmp_path):
    format = MaskFormat.multiclass([f"c{n}" for n in range(300)])
    torch.manual_seed(0)
    model = build_model(Blurry, "none", format, weights=None)
    save_bundle(model, tmp_path / "m")
    export_bundle(tmp_path / "m", tmp_path / "model.pt2", "torch", architecture=Blurry)
    images = images_of((1, 40, 50))
    planes, _ = compute(tmp_path / "model.pt2", images)
    assert planes.dtype == torch.uint16
    with torch.inference_mode():
        assert torch.equal(planes.int(), format.decode(model.eval()(images)).int())
    assert planes.int().max() > 255


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_all_that_the_bundle_knows_is_in_the_file(exported, format):
    bundle, file = exported("overlapping", format)
    described = json.loads((bundle / "segkit.json").read_text())
    model = open_exported(file)
    assert model.facts.bundle == described
    assert model.format == KINDS["overlapping"]
    assert model.codec.to_spec() == default_codec(KINDS["overlapping"]).to_spec()
    assert (model.facts.format, model.facts.dtype, model.stride) == (format, "uint8", 32)
    assert len(model.golden.images) == 3
    if format == "onnx":  # readable by anybody
        import onnx

        properties = {p.key: p.value for p in onnx.load(file).metadata_props}
        assert json.loads(properties["segkit.json"])["format"]["thresholds"] == [0.4, 0.6]
    else:
        extra = {"segkit.json": ""}
        torch.export.load(file, extra_files=extra)
        assert json.loads(extra["segkit.json"])["format"]["thresholds"] == [0.4, 0.6]


def test_onnx_files_name_their_sizes(exported):
    import onnx

    graph = onnx.load(exported("exclusive", "onnx")[1]).graph
    (images,) = graph.input
    assert images.name == "images"
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]


def test_planes_alone_are_smaller_to_give(tmp_path):
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], Blurry, "none")
    report = export_bundle(bundle, tmp_path / "m.pt2", "torch", probabilities=False, architecture=Blurry)
    assert report.outputs == ("planes",)
    (planes,) = compute(tmp_path / "m.pt2", images_of((1, 30, 40)))
    assert planes.shape == (1, 1, 30, 40)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_package_agrees(tmp_path):
    bundle = bundle_of(tmp_path / "m", KINDS["one_vs_rest"], Blurry, "none")
    export_bundle(bundle, tmp_path / "m.pt2", "aoti", architecture=Blurry)
    model, package = load_model(bundle, architecture=Blurry), open_exported(tmp_path / "m.pt2")
    assert package.facts.format == "aoti"
    for shape in SHAPES:
        images = images_of(shape)
        with torch.inference_mode():
            wanted = model.format.decode(model(images))
        assert (package.planes(images) != wanted).float().mean() <= 1e-3


# Refusals --------------------------------------------------------------------------------------------------


def test_a_network_that_looks_at_numbers_is_refused_in_one_line(tmp_path):
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], Curious, "none")
    with pytest.raises(ValueError, match=r"m: .*:Curious with none cannot be exported: .*\S") as caught:
        export_bundle(bundle, tmp_path / "out" / "m.pt2", "torch", architecture=Curious)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_masks_are_never_written_and_the_file_before_stays(tmp_path):
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], Moody, "none")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.pt2").write_bytes(b"before")
    with pytest.raises(
        ValueError, match=r"m\.pt2: not written\. masks differ in 0\.\d+ of the pixels .*0\.001 is allo"
    ):
        export_bundle(bundle, tmp_path / "out" / "m.pt2", "torch", architecture=Moody)
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [("m.pt2", b"before")]
    report = export_bundle(bundle, tmp_path / "out" / "m.pt2", "torch", architecture=Moody, tolerance=1.0)
    assert 0.1 < report.checked.share < report.checked.worst


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("m.onnx", "torch", r"m\.onnx: files of format torch end in \.pt2"),
        ("m", "onnx", r"end in \.onnx"),
        ("m.pt2", "tensorrt", "'tensorrt': expected one of onnx, torch, aoti"),
    ],
)
def test_names_and_formats_that_do_not_go_together(tmp_path, out, format, message):
    with pytest.raises(ValueError, match=message):
        export_bundle(tmp_path, tmp_path / out, format)


def test_what_is_missing_is_told_with_the_way_to_get_it(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ValueError, match=r"needs onnxscript: pip install 'segkit\[onnx\]'"):
        export_bundle(tmp_path, tmp_path / "m.onnx")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"C\+\+ compiler.*CXX, or take format torch"):
        export_bundle(tmp_path, tmp_path / "m.pt2", "aoti")


def test_spacings_stay_with_the_bundle(tmp_path):
    bundle = bundle_of(tmp_path / "m", KINDS["exclusive"], Blurry, "none", resize=Spacing(1, 1))
    with pytest.raises(ValueError, match=r"cannot be exported: it works at a spacing in mm.*`data\.resize`"):
        export_bundle(bundle, tmp_path / "m.pt2", "torch", architecture=Blurry)


# The graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(7, 10), (6, 6), (2, 3)])
@pytest.mark.parametrize("pooled", [(1, 3), (6, 6), (2, 5)])
def test_pooling_by_products_is_that_of_torch(size_hw, pooled):
    values = torch.randn(2, 3, *size_hw, dtype=torch.float64)
    assert torch.allclose(PlainAdaptivePool(pooled)(values), nn.AdaptiveAvgPool2d(pooled)(values), atol=1e-12)


@pytest.mark.parametrize("resize", [None, 50, [48, 40]])
def test_the_graph_run_as_it_is_gives_what_the_model_gives(resize):
    torch.manual_seed(0)
    model = build_model("pan", "tu-test_resnet", KINDS["exclusive"], weights=None, resize=resize).eval()
    graph = StoredToPlanes(model, probabilities=True)
    for shape in SHAPES:
        images = images_of(shape)
        with torch.inference_mode():
            planes, probs = graph(images)
            logits = model.predict_logits(images)
        assert torch.equal(planes, model.format.decode(logits))
        assert torch.allclose(probs, model.format.probabilities(logits), atol=1e-5)
    assert model.network is not graph.model.network
