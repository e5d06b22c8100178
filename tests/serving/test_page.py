"""The page in a real browser, against a real server. Skipped where no Chromium is installed."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tifffile

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import decode_png
from segkit.serving.app import build_app
from segkit.serving.limits import Limits
from tests.scenes import FORMATS, scene
from tests.serving.servers import png, predictor_of, running

SIZE_HW = (60, 90)
EVIL = '<img src=x onerror="document.title=1">'
NAME = f"{EVIL}.v1.png".replace("/", "")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as play:
        # Without a sandbox, since tests may run as root; the pages are our own.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        started = play.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


@dataclass
class Opened:
    """A page, what went wrong on it, and every address it asked."""

    page: Any
    url: str
    trouble: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def drop(self, name: str, content: bytes, kind: str = "image/png") -> None:
        """Drop a file on the page, as a hand would."""
        self.page.evaluate(
            """([name, bytes, type]) => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(bytes)], name, { type }));
                const event = { dataTransfer: held, bubbles: true, cancelable: true };
                const zone = document.getElementById("drop");
                zone.dispatchEvent(new DragEvent("dragover", event));
                zone.dispatchEvent(new DragEvent("drop", event));
            }""",
            [name, list(content), kind],
        )

    def painted(self) -> np.ndarray:
        """(H, W, 4) of the overlay, once it is drawn."""
        # Painting waits for the next frame; two frames later it is there.
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self._pixels("overlay")

    def picture(self) -> np.ndarray:
        return self._pixels("picture")[..., :3]

    def slide(self, label: str, value: float) -> None:
        self.page.get_by_label(label).evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
        )

    def wait(self) -> None:
        self.page.wait_for_selector("#result:not([hidden])")
        self.page.wait_for_selector("body:not(.busy)")

    def _pixels(self, name: str) -> np.ndarray:
        width, height, values = self.page.evaluate(
            """(name) => {
                const canvas = document.getElementById(name), { width, height } = canvas;
                return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
            }""",
            name,
        )
        return np.array(values, np.uint8).reshape(height, width, 4)


@pytest.fixture
def open_page(browser):
    opened = []

    def make(url: str, **options) -> Opened:
        page = browser.new_page(**options)
        made = Opened(page, url)
        opened.append(page)
        page.on("pageerror", lambda error: made.trouble.append(str(error)))
        # That canvases are read back often is a hint to this test.
        page.on("console", lambda m: m.text.startswith("Canvas2D:") or made.trouble.append(m.text))
        page.on("dialog", lambda dialog: (made.trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: made.asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("#classes li")
        return made

    yield make
    for page in opened:
        page.close()


@pytest.fixture(scope="module")
def overlapping():
    """Two overlapping classes of stated colours, one with a name that is no markup."""
    format = MaskFormat.multilabel([{"name": EVIL, "color": [200, 0, 0]}, {"name": "disc", "color": [0, 0, 100]}])
    predictor = predictor_of(format, open_codec("bit_planes", format))
    with running(build_app(predictor, name=EVIL)) as url:
        yield predictor, url


def test_an_image_is_dropped_and_thresholds_move_its_overlay(open_page, overlapping):
    predictor, url = overlapping
    opened = open_page(url)
    assert opened.page.get_by_role("button", name="Download").is_disabled()
    opened.drop(NAME, png(1, SIZE_HW))
    opened.wait()
    image = scene(1, SIZE_HW)[0]
    assert np.array_equal(opened.picture(), image)
    probs = predictor.probabilities(image)
    # Away from what rounding to 255 levels could change.
    clear = (np.abs(probs - 0.5) > 0.005).all(0)
    assert clear.mean() > 0.5
    red, blue = probs > 0.5
    painted = opened.painted()
    assert np.array_equal((painted[..., 3] > 0)[clear], (red | blue)[clear])
    for held, color in ((red & ~blue, (200, 0, 0)), (blue & ~red, (0, 0, 100)), (red & blue, (100, 0, 50))):
        solid = painted[held & clear & (painted[..., 3] == 255)]
        # Canvases keep colours multiplied by opacity: only solid pixels come back as they were painted.
        assert len(solid)
        assert (solid[:, :3] == color).all()

    opened.slide(f"Threshold of {EVIL}", 0.99)
    opened.slide("Threshold of disc", 0.01)
    painted = opened.painted()
    assert (painted[..., 3] > 0).all()
    assert (painted[painted[..., 3] == 255][:, :3] == (0, 0, 100)).all()
    assert "100.0 %" in opened.page.inner_text("#classes li:nth-child(2)")
    assert "0.01" in opened.page.inner_text("#classes li:nth-child(2)")
    opened.page.click("#reset")
    assert np.array_equal((opened.painted()[..., 3] > 0)[clear], (red | blue)[clear])

    opened.page.uncheck("#classes li:nth-child(1) input[type=checkbox]")
    assert np.array_equal((opened.painted()[..., 3] > 0)[clear], blue[clear])
    opened.page.click("#none")
    assert not opened.painted()[..., 3].any()
    opened.page.click("#all")
    opened.slide("Opacity", 0)
    opened.page.uncheck("#outlines")
    assert not opened.painted()[..., 3].any()

    # Names of files, classes and models are text.
    assert opened.page.inner_text("#name") == NAME
    assert opened.page.inner_text("#model") == EVIL
    assert opened.page.locator("img").count() == 0
    assert opened.page.title() == f"{EVIL} · segkit serve"
    assert opened.trouble == []
    assert all(address.startswith(url) for address in opened.asked)


def test_the_mask_is_downloaded_at_the_thresholds_on_the_page(open_page, overlapping):
    predictor, url = overlapping
    opened = open_page(url, accept_downloads=True)
    opened.drop("a.b.jpg", png(1, SIZE_HW))
    opened.wait()
    with opened.page.expect_download() as first:
        opened.page.click("#download")
    assert first.value.suggested_filename == "a.b.png"
    image = scene(1, SIZE_HW)[0]
    left, disc = np.moveaxis(predictor.predict(image), 2, 0)
    assert np.array_equal(decode_png(first.value.path().read_bytes()).pixels, left + 2 * disc)
    opened.slide("Threshold of disc", 0.01)
    opened.page.wait_for_selector("#download:enabled")
    with opened.page.expect_download() as second:
        opened.page.click("#download")
    assert np.array_equal(decode_png(second.value.path().read_bytes()).pixels, left + 2)
    opened.page.select_option("#output", label="NPZ")
    opened.page.wait_for_selector("#download:enabled")
    with opened.page.expect_download() as third:
        opened.page.click("#download")
    assert third.value.suggested_filename == "a.b.npz"
    assert np.load(third.value.path())["probabilities"].shape == (2, *SIZE_HW)
    assert opened.trouble == []


@pytest.mark.parametrize("kind", ["exclusive", "one_vs_rest", "binary", "binary_softmax"])
def test_every_format_has_its_overlay(open_page, kind):
    format = FORMATS[kind]
    predictor = predictor_of(kind, open_codec({"name": "index_png", "ignored_values": [255]}, format))
    with running(build_app(predictor)) as url:
        opened = open_page(url)
        opened.drop("a.png", png(1, SIZE_HW))
        opened.wait()
        painted = opened.painted()
        plane = predictor.predict(scene(1, SIZE_HW)[0])[..., 0]
        colors = {name: c.color for name, c in zip(format.names, format.classes, strict=True)}
        values = {name: value for name, value in format.plane_values.items() if name != "background"}
        nothing = ~np.isin(plane, list(values.values()))
        assert (nothing == (painted[..., 3] == 0)).mean() > 0.99
        for name, value in values.items():
            solid = painted[(plane == value) & (painted[..., 3] == 255)]
            assert (solid[:, :3] == colors[name]).all(1).mean() > 0.99
        least = opened.page.get_by_label("Least probability of the best class")
        assert least.is_visible() is (kind == "one_vs_rest")
        if kind == "one_vs_rest":
            opened.slide("Least probability of the best class", 0.99)
            assert not opened.painted()[..., 3].any()
            with opened.page.expect_download() as saved:
                opened.page.click("#download")
            assert (decode_png(saved.value.path().read_bytes()).pixels == 255).all()
        assert opened.trouble == []


def test_files_that_no_browser_shows_are_shown(open_page):
    predictor = predictor_of(FORMATS["binary"], in_channels=5)
    bands = np.random.default_rng(0).integers(0, 4000, (40, 50, 5)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, bands)
    with running(build_app(predictor)) as url:
        opened = open_page(url)
        opened.drop("bands.tif", file.getvalue(), "image/tiff")
        opened.wait()
        shown = opened.picture().astype(float)
        assert shown.shape == (40, 50, 3)
        assert np.corrcoef(shown.ravel(), bands[..., :3].ravel())[0, 1] > 0.99
        assert opened.trouble == []


def test_errors_are_shown_and_the_page_goes_on(open_page):
    predictor = predictor_of("binary")
    with running(build_app(predictor, limits=Limits(max_bytes=2**16))) as url:
        opened = open_page(url)
        opened.drop("notes.txt", b"no image", "text/plain")
        opened.page.wait_for_selector("#error:not([hidden])")
        assert "no image that is read here" in opened.page.inner_text("#error")
        assert opened.page.get_attribute("#error", "role") == "alert"
        opened.drop("large.png", b"x" * (2**16 + 1))
        opened.page.wait_for_function("document.getElementById('error').textContent.includes('larger than')")
        opened.drop("a.png", png(1, (20, 30)))
        opened.wait()
        assert opened.page.locator("#error").is_hidden()
    opened.drop("b.png", png(2, (20, 30)))
    opened.page.wait_for_selector("#error:not([hidden])")
    assert "does not answer" in opened.page.inner_text("#error")
    # The browser itself reports what the network refused; nothing else went wrong.
    assert all("Failed to load resource" in line for line in opened.trouble)


def test_all_of_it_by_keyboard(open_page, overlapping, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, SIZE_HW))
    opened = open_page(overlapping[1])
    focused = "document.activeElement.id || document.activeElement.closest('li, .slider')?.innerText || ''"
    seen = []
    with opened.page.expect_file_chooser() as chooser:
        for _ in range(3):
            opened.page.keyboard.press("Tab")
            if opened.page.evaluate(focused) == "file":
                opened.page.keyboard.press("Enter")
                break
    chooser.value.set_files(str(tmp_path / "a.png"))
    opened.wait()
    before = opened.painted()
    for _ in range(14):
        opened.page.keyboard.press("Tab")
        seen.append(opened.page.evaluate(focused))
        if opened.page.evaluate("document.activeElement.type") == "range" and "disc" in seen[-1]:
            for _ in range(5):
                opened.page.keyboard.press("ArrowLeft")
    assert {"opacity", "outlines", "all", "none", "reset", "output", "download"} <= set(seen)
    assert not np.array_equal(before, opened.painted())
    assert "0.45" in opened.page.inner_text("#classes li:nth-child(2)")


def test_it_is_readable_in_light_and_dark_and_at_any_width(open_page, overlapping):
    def luminance(color: str) -> float:
        rgb = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    style = "([part, key]) => getComputedStyle(document.querySelector(part))[key]"
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 380)):
        opened = open_page(overlapping[1], color_scheme=scheme, viewport={"width": width, "height": 800})
        opened.drop("a.png", png(1, SIZE_HW))
        opened.wait()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        card = luminance(opened.page.evaluate(style, ["#stage", "backgroundColor"]))
        assert (card < 0.1) is (scheme == "dark")
        for part in ("body", "h2", ".note", "#drop strong", "#drop u", "figcaption", "output", ".head button"):
            ink = luminance(opened.page.evaluate(style, [part, "color"]))
            # WCAG 2.1, 1.4.3: text stands out by 4.5 to 1.
            assert (max(ink, card) + 0.05) / (min(ink, card) + 0.05) >= 4.5, (scheme, part)
        assert opened.trouble == []
