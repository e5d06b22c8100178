import pytest

from segkit.data.splits import case_of, find_stems, fold_stems, match_stems, read_stem_list, split_stems

STEMS = [f"p{patient}_{i}" for patient in range(10) for i in range(7)]


def test_groups_stay_together():
    rest, part = split_stems(STEMS, 0.3, seed=4, group=r"(p\d+)_")
    assert sorted(rest + part) == sorted(STEMS)
    sides = [{s.split("_")[0] for s in side} for side in (rest, part)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3


def test_every_stem_is_in_one_fold_with_its_group():
    folds = fold_stems(STEMS, 4, seed=1, group=r"(p\d+)_")
    assert sorted(stem for fold in folds for stem in fold) == sorted(STEMS)
    patients = [{stem.split("_")[0] for stem in fold} for fold in folds]
    assert sorted(map(len, patients)) == [2, 2, 3, 3]
    assert len(set.union(*patients)) == sum(map(len, patients))
    assert folds == fold_stems(reversed(STEMS), 4, seed=1, group=r"(p\d+)_")
    assert folds != fold_stems(STEMS, 4, seed=2, group=r"(p\d+)_")


def test_folds_are_of_one_size_though_groups_are_not():
    stems = [f"{name}{i}" for name, count in (("a", 6), ("b", 3), ("c", 2), ("d", 1)) for i in range(count)]
    assert [len(fold) for fold in fold_stems(stems, 2, group=r"^(\w)\d")] == [6, 6]


@pytest.mark.parametrize(
    ("folds", "group", "message"),
    [
        (1, None, "expected 2 or more"),
        (11, r"(p\d+)_", "11 folds need as many groups, and there are 10, of 70 samples"),
    ],
)
def test_folds_that_cannot_be_are_refused(folds, group, message):
    with pytest.raises(ValueError, match=message):
        fold_stems(STEMS, folds, group=group)


def test_slices_of_a_volume_are_a_group_of_their_own():
    stems = [f"in/case{c}@z{i:03d}" for c in range(5) for i in range(20)]
    rest, part = split_stems(stems, 0.2, seed=0)
    assert len(part) == 20
    assert {s.split("@")[0] for s in rest}.isdisjoint(s.split("@")[0] for s in part)


def test_a_split_depends_on_seed_and_names_alone():
    one = split_stems(STEMS, 0.25, seed=1)
    assert one == split_stems(reversed(STEMS), 0.25, seed=1)
    assert one != split_stems(STEMS, 0.25, seed=2)
    assert len(one[1]) == 18  # of 70


def test_the_split_of_a_release_is_the_split_of_the_next():
    # Written down, so that a change of the rule is noticed: it would move training images into someone's test part.
    assert split_stems(list("abcdefgh"), 0.25, seed=0) == (["a", "b", "c", "d", "e", "g"], ["f", "h"])


def test_new_samples_move_few_old_ones():
    before = set(split_stems(STEMS, 0.5, seed=0)[1])
    after = set(split_stems([*STEMS, "new1", "new2"], 0.5, seed=0)[1])
    assert len(before - after) + len(after - before - {"new1", "new2"}) <= 2


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_at_least_one_group_stays_on_either_side(fraction):
    rest, part = split_stems(["a", "b"], fraction)
    assert (len(rest), len(part)) == (1, 1)


@pytest.mark.parametrize(
    ("stems", "fraction", "group", "message"),
    [
        (STEMS, 0.0, None, "between 0 and 1"),
        (STEMS, 1.0, None, "between 0 and 1"),
        (["a"], 0.5, None, "at least two groups, and there is only"),
        (["c@z001", "c@z002"], 0.5, None, r"only \['c'\]"),
        (STEMS, 0.5, r"p\d", "has no capture group"),
        (STEMS, 0.5, r"(q\d)", "does not match the stem 'p0_0'"),
        (STEMS, 0.5, "(", "no regular expression"),
    ],
)
def test_impossible_splits_say_why(stems, fraction, group, message):
    with pytest.raises(ValueError, match=message):
        split_stems(stems, fraction, 0, group)


def test_list_file(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("# train\n\n a \nb\n\ntown/c\n", encoding="utf-8-sig")
    assert read_stem_list(path) == ["a", "b", "town/c"]


def test_bad_list_files(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\n# x\na\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 3: 'a' stands in line 1 already"):
        read_stem_list(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"train\.txt: names no sample"):
        read_stem_list(path)
    with pytest.raises(ValueError, match=r"none\.txt: cannot be read"):
        read_stem_list(tmp_path / "none.txt")


def test_names_match_stems_files_and_volumes():
    known = ["a", "b.png", "v@z000", "v@z001", "in/w@z000"]
    assert match_stems(["b.png", "a.jpg", "v.nii.gz", "in/w", "v@z001"], known, "list") == [
        "b.png",
        "a",
        "v@z000",
        "v@z001",
        "in/w@z000",
    ]
    with pytest.raises(ValueError, match=r"list: no samples Image_01, q\. Did you mean `image_01`"):
        match_stems(["Image_01", "q"], ["image_01", "image_02"], "list")


def test_only_suffixes_of_files_are_taken_off_a_name():
    found, lost = find_stems(["scan1.5", "scan2.PNG", "v.NII.GZ"], ["scan1", "scan2", "v@z000"])
    assert (found, lost) == (["scan2", "v@z000"], ["scan1.5"])


def test_case_of():
    assert case_of("in/case@z017") == "in/case"
    assert case_of("mail@home") is None
