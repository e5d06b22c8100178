import base64
import hashlib
import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import yaml

from segkit.inspection.page import label_names, number, share, write_page
from segkit.inspection.thumbnails import Thumbnail, make_thumbnail

VOID = {"meta", "link", "img", "input", "br", "hr", "rect"}
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7*7 }}",
    "</style></textarea></title><b>",
    "http://example.org/a.js",
    "Fußgängerüberweg",
    "مركبة كبيرة",
    "n" * 300,
]


class Page(HTMLParser):
    """Elements of a page in order; fails where tags are not closed in the order in which they were opened."""

    def __init__(self, path):
        super().__init__()
        self.path, self.elements, self.open, self.texts = path, [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def picture(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 80, 3)).astype(np.uint8)


def thumbnails(names=("WT", "TC", "ET"), count=6, faults=()) -> list[Thumbnail]:
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    return [
        make_thumbnail(f"case{n}", ("train", "val")[n % 2], picture(n), {names[n % len(names)]: mask}, faults=faults)
        for n in range(count)
    ]


def nested() -> dict:
    """A report on nested, overlapping classes, as `segkit inspect --json` writes it."""
    return {
        "images": 135,
        "masks": 135,
        "bands": 3,
        "dtype": "uint8",
        "parts": {"train": 81, "val": 54},
        "sizes": [{"height": 240, "width": 320, "count": 100}, {"height": 480, "width": 640, "count": 35}],
        "coding": {"codec": "file_per_class", "text": "one 0/255 PNG per class", "layout": None},
        "values": {
            "WT": {"name": "WT", "pixel_share": 0.0282, "image_share": 0.889, "images": 120},
            "TC": {"name": "TC", "pixel_share": 0.00004, "image_share": 0.644, "images": 87},
            "9": {"name": None, "pixel_share": None, "image_share": None, "images": None},
        },
        "overlap": {
            "share_0": 0.972,
            "share_1": 0.015,
            "share_2_or_more": 0.013,
            "pairs": [{"a": "WT", "b": "TC", "pixels": 500, "iou": 0.452, "share_of_a": 0.4521, "share_of_b": 1.0}],
            "containment": [{"inner": "TC", "outer": "WT", "share": 0.9996}],
            "never_together": [["TC", "9"]],
        },
        "empty_masks": ["case7"],
        "duplicates": [
            {"kind": "exact", "a": "case4", "b": "case2", "parts": ["train", "train"]},
            {"kind": "near", "a": "case0", "b": "case1", "parts": ["train", "val"]},
        ],
        "faults": [{"file": "masks/case3.png", "fault": "cannot be decoded"}],
        "advice": {
            "format": "multilabel",
            "activation": "sigmoid",
            "codec": "file_per_class",
            "ignored_values": [],
            "ignore_candidates": [9],
            "classes": ["WT", "TC"],
            "class_weights": [0.5, 1.5],
            "crop": 224,
            "batch_size": 8,
            "reasons": ["1.3 % of the pixels carry two labels.", "TC lies inside WT."],
            "masks": {"format": "multilabel", "classes": ["WT", "TC"], "codec": "file_per_class"},
        },
        "seconds": 1.5,
        "images_per_second": 90.0,
    }


def evil() -> dict:
    """A report in which every word is hostile, and much of it unknown."""
    return {
        "images": 2,
        "masks": 1,
        "bands": None,
        "dtype": EVIL[0],
        "parts": dict.fromkeys(EVIL, 1),
        "sizes": [{"height": None, "width": 3, "count": None}],
        "coding": {"codec": EVIL[0], "text": EVIL[1], "layout": EVIL[2]},
        "values": {name: {"name": name, "pixel_share": None, "image_share": 0.5, "images": 1} for name in EVIL},
        "overlap": {
            "share_0": None,
            "share_1": None,
            "share_2_or_more": None,
            "pairs": [
                {"a": a, "b": b, "pixels": 1, "iou": None, "share_of_a": None, "share_of_b": 0.5}
                for a, b in itertools.pairwise(EVIL)
            ],
            "containment": [{"inner": EVIL[0], "outer": EVIL[1], "share": None}],
            "never_together": [[EVIL[2], EVIL[3]]],
        },
        "empty_masks": EVIL,
        "duplicates": [{"kind": EVIL[0], "a": EVIL[1], "b": EVIL[2], "parts": EVIL[:2]}],
        "faults": [{"file": name, "fault": name} for name in EVIL],
        "advice": {
            "format": EVIL[0],
            "activation": EVIL[1],
            "codec": EVIL[2],
            "ignored_values": EVIL,
            "ignore_candidates": EVIL,
            "classes": EVIL,
            "class_weights": [1.0] * len(EVIL),
            "crop": None,
            "batch_size": None,
            "reasons": EVIL,
            "masks": {"format": EVIL[0], "classes": EVIL},
        },
        "seconds": None,
        "images_per_second": None,
    }


def evil_thumbnails() -> list[Thumbnail]:
    image = make_thumbnail("a", "train", picture()).image
    return [Thumbnail(name, name, image, image, [name], [name]) for name in EVIL]


def many() -> dict:
    report = nested()
    names = [f"class {n}" for n in range(300)]
    report["values"] = {
        str(n): {"name": name, "pixel_share": 1 / 300, "image_share": 1.0, "images": 5} for n, name in enumerate(names)
    }
    report["overlap"]["pairs"] = [
        {"a": names[a], "b": names[b], "pixels": 9, "iou": 0.1, "share_of_a": 0.2, "share_of_b": 0.3}
        for a in range(50)
        for b in range(a)
    ]
    report["overlap"]["never_together"] = [[a, b] for a in names[:40] for b in names[40:60]]
    report["faults"] = [{"file": f"masks/{n}.png", "fault": "odd"} for n in range(1500)]
    report["duplicates"] = [
        {"kind": "exact", "a": f"{n}", "b": f"{n + 1}", "parts": ["train", "val"]} for n in range(150)
    ]
    report["empty_masks"] = [f"case{n}" for n in range(100)]
    return report


def nothing() -> dict:
    report = dict.fromkeys(nested())
    return {**report, "images": 0, "masks": 0, "values": {}, "sizes": [], "parts": {}}


REPORTS = {
    "nested": (nested, thumbnails),
    "evil": (evil, evil_thumbnails),
    "many": (many, lambda: thumbnails(count=12)),
    "nothing": (nothing, list),
    "empty": (dict, list),
}


@pytest.fixture(params=REPORTS)
def path(request, tmp_path):
    report, pictures = REPORTS[request.param]
    write_page(tmp_path / "page.html", report(), pictures(), title=EVIL[0])
    return tmp_path / "page.html"


def test_a_page_is_well_formed_and_needs_nothing_else(path):
    page = Page(path)  # which checks that tags are closed
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not page.all("link") + page.all("iframe") + page.all("object") + page.all("form")
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, attrs)
            if name == "src":
                assert re.fullmatch(r"data:image/(webp|jpeg|png);base64,[A-Za-z0-9+/=]+", value)
            if name == "href":
                assert value.startswith("#")
    assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8").split("</style>")[0])


def test_ids_are_unique_and_links_lead_somewhere(path):
    page = Page(path)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        targets = [attrs.get(key, "").lstrip("#") for key in ("href", "for", "aria-labelledby")]
        assert set(filter(None, targets)) <= set(ids)


def test_the_only_script_is_the_one_the_policy_names(path):
    text = path.read_text(encoding="utf-8")
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    (policy,) = [meta["content"] for meta in Page(path).all("meta") if "http-equiv" in meta]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_sections_stand_in_the_order_in_which_they_are_asked_for(path):
    ids = [attrs["id"] for attrs in Page(path).all("section")]
    assert ids == ["verdict", "values", "overlap", "images", "duplicates", "faults", "gallery"]


def test_hostile_names_are_text(tmp_path):
    write_page(tmp_path / "page.html", evil(), evil_thumbnails(), title=EVIL[0])
    page = Page(tmp_path / "page.html")
    for name in EVIL:
        assert name in page.texts
    write_page(tmp_path / "friendly.html", nested(), thumbnails(faults=["empty mask"]))
    friendly = Page(tmp_path / "friendly.html")
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in friendly.elements}
    assert len(page.all("script")) == len(friendly.all("script")) == 1


def test_the_page_says_what_the_report_says(tmp_path):
    write_page(tmp_path / "page.html", nested(), thumbnails(), title="brains")
    text = Page(tmp_path / "page.html").text
    for words in (
        "Multilabel , with sigmoid",
        "1.3 % of the pixels carry two labels. TC lies inside WT.",
        "train 81 · val 54",
        "2 1 across parts",
        "240 × 320",
        "74.1 %",  # 100 of 135 images
        "2.8 %",
        "<0.01 %",
        "unnamed ignore?",
        "TC inside WT 99.9 %",
        "one label 1.5 %",
        "TC · 9",
        "case7",
        "masks/case3.png cannot be decoded",
        "1.5 s 90 images per second",
    ):
        assert words in text, words
    rows = re.findall(r"<tr>.*?</tr>", (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)
    (inside,) = [row for row in rows if 'title="100 % of TC is WT too"' in row]
    assert "45.2 %" not in inside


def test_the_config_is_yaml_and_what_was_advised(tmp_path):
    write_page(tmp_path / "page.html", nested())
    page = Page(tmp_path / "page.html")
    start = page.text.index("masks: format")
    raw = re.search(r'<code id="config">(.*?)</code>', (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)
    assert start > 0
    assert yaml.safe_load(raw[1]) == {
        "masks": nested()["advice"]["masks"],
        "data": {"crop": 224},
        "loss": {"cross_entropy": {"class_weights": {"WT": 0.5, "TC": 1.5}}, "dice": 1},
        "train": {"batch_size": 8},
    }


def test_what_is_left_out_is_said(tmp_path):
    write_page(tmp_path / "page.html", many(), thumbnails())
    text = Page(tmp_path / "page.html").text
    for words in (
        "10 more classes overlap less",
        "and 740 more pairs",
        "50 more pairs are in the JSON",
        "500 more are in the JSON",
        "and 40 more",
    ):
        assert words in text, words
    (matrix,) = re.findall(r'<table class="matrix.*?</table>', (tmp_path / "page.html").read_text(), re.DOTALL)
    assert matrix.count("<tr>") == 41


def test_values_are_told_by_name(tmp_path):
    values = {
        str(n): {"name": name, "pixel_share": 0.3, "image_share": 1.0, "images": 3}
        for n, name in ((4, "cat"), (7, "dog"), (255, "ignored"))
    }
    report = {
        "values": values,
        "overlap": {
            "pairs": [{"a": "4", "b": "7", "pixels": 3, "iou": 0.2, "share_of_a": 0.25, "share_of_b": 0.5}],
            "containment": [{"inner": "7", "outer": "4", "share": 0.5}],
            "never_together": [["7", "255"]],
        },
        "advice": {"ignored_values": [255]},
        "notes": ["Images come in 2 depths."],
    }
    assert label_names(report) == {"4": "cat", "7": "dog", "255": "ignored"}
    write_page(tmp_path / "page.html", report, config="masks: {format: binary}  # mine")
    text = Page(tmp_path / "page.html").text
    for words in (
        "dog inside cat 50.0 %",
        "dog · ignored",
        "255 ignored 30.0 %",
        "2 with a name",
        "Images come in 2 depths.",
        "# mine",
    ):
        assert words in text, words
    assert "25.0 % of cat is dog too" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_nothing_is_claimed_of_what_is_not_known(tmp_path):
    write_page(tmp_path / "page.html", nothing())
    text = Page(tmp_path / "page.html").text
    assert "No advice" in text
    assert "Not known." in text
    assert "No two classes share a pixel" not in text
    assert "every mask holds a label" not in text


def test_duplicates_across_parts_come_first_with_the_pictures_of_both(tmp_path):
    made = thumbnails()
    write_page(tmp_path / "page.html", nested(), made)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    pairs = text[text.index('class="pairs"') : text.index('id="faults"')]
    shown = re.findall(r'src="data:image/webp;base64,([^"]+)"', pairs)
    expected = [made[n].image for n in (0, 1, 4, 2)]
    assert [base64.b64decode(data) for data in shown] == expected


def test_one_stem_in_two_parts_shows_the_picture_of_each(tmp_path):
    first, second = (make_thumbnail("same", part, picture(n)) for n, part in enumerate(("train", "val")))
    report = {"duplicates": [{"kind": "near", "a": "same", "b": "same", "parts": ["train", "val"]}]}
    write_page(tmp_path / "page.html", report, [first, second])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = re.findall(r'base64,([^"]+)"', text[text.index('class="pairs"') : text.index('id="faults"')])
    assert [base64.b64decode(data) for data in shown] == [first.image, second.image]


def test_a_picture_may_be_jpeg_or_missing(tmp_path):
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    write_page(tmp_path / "page.html", {}, [Thumbnail("a", "t", jpeg), Thumbnail("b", "t", b"", faults=["cut short"])])
    page = Page(tmp_path / "page.html")
    assert [img["src"][:23] for img in page.all("img")] == ["data:image/jpeg;base64,"]
    assert "no picture b t cut short" in page.text


def test_a_name_that_is_no_unicode_is_written_all_the_same(tmp_path):
    write_page(tmp_path / "page.html", {"empty_masks": ["a\udcff"]})
    assert "a?" in Page(tmp_path / "page.html").texts


def test_a_page_is_replaced_whole(tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old" * 100_000)
    write_page(target, nested())
    assert Page(target).text.endswith("No pictures were made.")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.99999, "99.9 %"),
        (0.00001, "<0.01 %"),
        (0.0052, "0.52 %"),
        (0.1234, "12.3 %"),
    ],
)
def test_shares_for_people(value, text):
    assert share(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0, "0"), (12345, "12,345"), (0.25, "0.25")])
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_templates_are_short():
    from segkit.inspection.page import _TEMPLATES

    for file in _TEMPLATES.iterdir():
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as play:
        # Without a sandbox, since tests may run as root; the pages are our own.
        running = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield running
        running.close()


def open_page(browser, path, **options):
    """The page, and all that went wrong or left the file while it was open."""
    page, trouble = browser.new_page(**options), []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
    page.goto(path.as_uri())
    return page, trouble


def test_a_browser_opens_it_in_peace_at_any_width(browser, path):
    for scheme, width in (("light", 1280), ("dark", 390)):
        page, trouble = open_page(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every((image) => !image.complete || image.naturalWidth > 0)")
        assert trouble == []
        page.close()


def test_dark_pages_are_dark_and_text_is_readable_in_both(browser, tmp_path):
    write_page(tmp_path / "page.html", nested(), thumbnails())

    def luminance(color: str) -> float:
        rgb = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for scheme, is_dark in (("light", False), ("dark", True)):
        page, _ = open_page(browser, tmp_path / "page.html", color_scheme=scheme)
        style = "(part, key) => getComputedStyle(document.querySelector(part))[key]"
        card = luminance(page.evaluate(f"({style})('section', 'backgroundColor')"))
        assert (card < 0.1) is is_dark
        for part in ("body", "h1 em", ".eyebrow", ".meaning", "thead th", ".badge.attention"):
            ink = luminance(page.evaluate(f"({style})('{part}', 'color')"))
            # WCAG 2.1, 1.4.3: text stands out by 4.5 to 1.
            assert (max(ink, card) + 0.05) / (min(ink, card) + 0.05) >= 4.5, (scheme, part)
        page.close()


def test_filters_and_labels_by_keyboard(browser, tmp_path):
    made = [*thumbnails(count=6), *thumbnails(count=3, faults=["empty mask"])]
    write_page(tmp_path / "page.html", nested(), made)
    page, trouble = open_page(browser, tmp_path / "page.html")
    shown = "document.querySelectorAll('#figures figure:not([hidden])').length"
    assert page.evaluate(shown) == 9
    page.select_option("select[data-filter=class]", label="TC")
    assert page.evaluate(shown) == 3
    page.select_option("select[data-filter=fault]", label="empty mask")
    assert page.evaluate(shown) == 1
    assert page.inner_text("#gallery-count") == "1 of 9 pictures"
    page.select_option("select[data-filter=class]", label="all")
    page.select_option("select[data-filter=fault]", label="any fault")
    assert page.evaluate(shown) == 3
    page.select_option("select[data-filter=part]", label="val")
    assert page.evaluate(shown) == 1
    page.focus("#show-labels")
    assert page.is_visible("#figures figure:not([hidden]) .overlay")
    page.keyboard.press("Space")
    assert not page.is_visible("#figures figure:not([hidden]) .overlay")
    page.fill("#fault-filter", "no such")
    assert page.inner_text("#fault-count") == "0 of 1"
    page.fill("#fault-filter", "CASE3")
    assert page.inner_text("#fault-count") == "1 of 1"
    assert trouble == []
    page.close()


def test_the_first_key_reaches_a_link_past_the_navigation(browser, tmp_path):
    write_page(tmp_path / "page.html", nested())
    page, _ = open_page(browser, tmp_path / "page.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    page.close()


def test_the_copy_button_copies_the_config(browser, tmp_path):
    write_page(tmp_path / "page.html", nested())
    page, trouble = open_page(browser, tmp_path / "page.html")
    page.evaluate("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.click("#copy")
    page.wait_for_function("document.querySelector('#copy').textContent === 'Copied'")
    assert yaml.safe_load(page.evaluate("window.copied"))["masks"] == nested()["advice"]["masks"]
    assert trouble == []
    page.close()


def test_names_run_in_their_own_direction(browser, tmp_path):
    write_page(tmp_path / "page.html", {"empty_masks": ["مركبة", "car"]})
    page, _ = open_page(browser, tmp_path / "page.html")
    directions = page.evaluate("[...document.querySelectorAll('.names bdi')].map((b) => getComputedStyle(b).direction)")
    assert directions == ["rtl", "ltr"]
    page.close()


def test_a_printed_page_shows_all_rows_and_no_controls(browser, tmp_path):
    write_page(tmp_path / "page.html", many(), thumbnails())
    page, _ = open_page(browser, tmp_path / "page.html", color_scheme="dark")
    page.emulate_media(media="print")
    heights = json.loads(
        page.evaluate(
            "JSON.stringify([...document.querySelectorAll('.tall')].map((e) => [e.clientHeight, e.scrollHeight]))"
        )
    )
    assert heights
    assert all(inner <= outer for outer, inner in heights)
    assert not page.is_visible(".controls")
    assert not page.is_visible("#copy")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()
