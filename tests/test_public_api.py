"""What `import segkit` gives, what it costs, and which way imports run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segkit

PACKAGE = Path(segkit.__file__).parent
# Each floor may use those below it and its own.
FLOORS = (
    {"_version", "processes", "suggest", "yaml_text"},
    {"formats", "ops"},
    {"data", "models", "losses", "metrics"},
    {"inference", "training", "inspection"},
    {"serving"},
    {"config", "shipped"},
    {"parts"},
    {"experiment"},
    {"demo", "dry_run", "folds", "lr_search"},
    {"commands", "console"},
    {"cli"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def test_public_names_are_those_of_the_design():
    names = (
        "MaskFormat MaskClass open_codec MaskDataset build_augment build_model load_model build_loss PixelCounts fit "
        "evaluate Predictor"
    )
    assert set(segkit.__all__) == {*names.split(), "__version__"}
    for name in segkit.__all__:
        assert getattr(segkit, name) is not None
    with pytest.raises(AttributeError, match="public names"):
        _ = segkit.nothing


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        ("import segkit", {"torch", "numpy", "lightning", "albumentations", "matplotlib", "cv2", "typer"}),
        ("from segkit import MaskFormat", {"lightning", "albumentations", "matplotlib", "cv2", "timm", "torchvision"}),
        ("from segkit import build_loss", {"lightning", "albumentations", "matplotlib", "cv2", "timm"}),
        ("from segkit import build_model", {"lightning", "albumentations", "matplotlib"}),
        ("from segkit import MaskDataset", {"lightning", "albumentations", "matplotlib", "timm"}),
        ("from segkit import Predictor", {"lightning", "albumentations", "matplotlib"}),
        ("import segkit.cli", {"torch", "lightning", "albumentations"}),
    ],
)
def test_imports_stay_light(line, absent):
    code = f"import sys; {line}; print(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "segkit":
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "segkit"}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts
    if own == ("__init__",):
        pytest.skip("the front door names modules of every floor")
    for module in imported_modules(path):
        parts = module.split(".")
        if len(parts) == 1:
            continue
        assert parts[1] in FLOOR, f"{module} is on no floor"
        assert FLOOR[parts[1]] <= FLOOR[own[0]], f"{'/'.join(own)} reaches up to {module}"
        file = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
        assert file.is_file(), f"{module} is imported through a package, not from its module"


def test_no_imports_run_in_circles():
    """Imports inside functions count too: a late import hides a circle, it does not open it."""
    graph = {
        ".".join(("segkit", *path.relative_to(PACKAGE).with_suffix("").parts)): imported_modules(path)
        for path in modules()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for below in graph.get(module, ()):
                visit(below, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_module_asks_for_the_kind_of_mask_outside_formats():
    kinds = ("ExclusiveMask", "OneVsRestMask", "OverlappingMasks")
    for path in modules():
        if path.parent.name != "formats":
            text = path.read_text(encoding="utf-8")
            assert not any(kind in text for kind in kinds), path


def test_modules_are_short():
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
