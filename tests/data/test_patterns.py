import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.data.patterns import Pattern


@pytest.mark.parametrize(
    ("text", "name", "stem"),
    [
        ("{stem}", "town/a", "town/a"),
        ("{stem}_leftImg8bit", "frankfurt/frankfurt_000000_leftImg8bit", "frankfurt/frankfurt_000000"),
        ("{stem}_leftImg8bit", "frankfurt/frankfurt_000000_gtFine", None),
        ("{stem}_training", "21_training", "21"),
        ("Image_{stem}_1stHO", "Image_01L_1stHO", "01L"),
        ("Image_{stem}_1stHO", "Image_01L", None),
        ("{stem}.ah", "im0001.ah", "im0001"),
        ("{stem}.ah", "im0001xah", None),  # the point is a point
        ("{stem}/ct", "s0001/ct", "s0001"),
        ("masks/{stem}_L", "masks/0001TP_006690_L", "0001TP_006690"),
        ("{stem}_x", "_x", None),  # no stem is left
        ("{stem}_seg", "case_seg@z017", "case@z017"),
        ("{stem}_seg", "case@z017", None),
        ("{stem}_image", "case@z017_image", "case@z017"),  # slices stored as pictures of their own
    ],
)
def test_a_name_gives_the_stem_of_its_sample(text, name, stem):
    match = Pattern(text).match(name)
    assert match == (None if stem is None else (stem, ""))
    if stem is not None and not name.endswith("_image"):
        assert Pattern(text).name(stem) == name


def test_bands_are_told_apart():
    pattern = Pattern("{stem}_{band}", ("flair", "t1c", "left_1", "1"))
    assert pattern.match("p/p_flair") == ("p/p", "flair")
    assert pattern.match("p/p_t1c@x003") == ("p/p@x003", "t1c")
    assert pattern.match("p_left_1") == ("p", "left_1")
    assert pattern.match("p_t2") is None
    assert pattern.name("p/p@x003", "t1c") == "p/p_t1c@x003"


_WORDS = st.text(
    st.characters(blacklist_characters="{}@*/\\\0\n.", blacklist_categories=("Cs",)), min_size=1, max_size=8
)


@given(_WORDS, _WORDS, st.lists(_WORDS, min_size=1, max_size=3).map("/".join), st.sampled_from(["", "@z017", "@x1234"]))
def test_a_name_is_matched_by_the_pattern_that_made_it(before, after, stem, place):
    for text in (f"{before}{{stem}}{after}", f"{before}/{{stem}}", f"{{stem}}/{after}"):
        pattern = Pattern(text)
        assert pattern.match(pattern.name(stem + place)) == (stem + place, "")
    pattern = Pattern(f"{{stem}}{after}{{band}}", ("0000", "0001"))
    assert pattern.match(pattern.name(stem + place, "0001")) == (stem + place, "0001")


def test_names_by_stem():
    pattern = Pattern("{stem}_seg")
    assert pattern.by_stem(["b_seg", "a_seg", "a"]) == {"b": "b_seg", "a": "a_seg"}
    with pytest.raises(ValueError, match=r"'c_seg@z001' and 'c@z001_seg' both belong to sample 'c@z001' by"):
        pattern.by_stem(["c_seg@z001", "c@z001_seg"])


@pytest.mark.parametrize(
    ("text", "bands", "message"),
    [
        ("mask", (), r"'mask': expected the name .* that holds \{stem\} once"),
        ("{stem}/{stem}", (), r"\{stem\} once"),
        ("{stem}_{band}", (), r"with bands \[\]: expected \{band\} once where bands are named"),
        ("{stem}", ("a", "b"), r"with bands \['a', 'b'\]: expected \{band\} once"),
        ("{stem}_{band}", ("a", "a"), r"bands \['a', 'a'\]: expected words that differ"),
        ("{stem}_{band}", ("", "a"), "expected words"),
        ("{stem}_{side}", (), "no other braces"),
        ("*_{stem}", (), r"no `\*`"),
        ("{stem}_mask.PNG", (), r"leave the suffix out: '\{stem\}_mask' means files of any type"),
        ("{stem}_seg.nii.gz", (), r"leave the suffix out: '\{stem\}_seg'"),
        ("../{stem}", (), "no name of a sample"),
        ("/data/{stem}", (), "no name of a sample"),
        (7, (), "pattern 7: expected the name"),
    ],
)
def test_patterns_that_cannot_be_names_are_refused(text, bands, message):
    with pytest.raises(ValueError, match=message):
        Pattern(text, bands)
