from __future__ import annotations

from segkit.suggest import closest


def test_a_near_word_is_suggested_and_else_all_are_listed():
    assert closest("dicee", ["dice", "focal"]) == "Did you mean `dice`?"
    assert closest("zzz", ["dice", "focal"]) == "Known are dice, focal."
    assert closest(7, range(100), limit=2) == "Did you mean `7`?"
    assert closest("zzz", range(100), limit=2) == "Known are 0, 1, ..."


def test_nothing_known_says_nothing():
    assert closest("a", []) == ""
