from __future__ import annotations

import pytest

from segkit.console import Rate, Spoken, progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_rate_is_that_of_this_life():
    clock = Clock()
    rate = Rate(clock)
    rate.update(500)  # done before
    assert rate.per_s is None
    clock.now += 4
    rate.update(520)
    assert rate.per_s == pytest.approx(5.0)


def test_a_log_gets_fewer_and_fewer_lines_with_rate_and_time_left():
    clock, told = Clock(), []
    rate, spoken = Rate(clock), Spoken("predicting", "images", told.append)
    for second in range(7200):
        clock.now = 100.0 + second
        rate.update(2 * second)
        spoken.update(2 * second, 100_000, rate)
    assert told[0] == "predicting: 20 of 100000 images, 2/s, 13:53:10 left."
    assert 5 < len(told) < 20


def test_nothing_is_told_where_stderr_is_no_terminal_and_work_is_short(capsys):
    for unit in (None, "images"):
        with progress("reading", unit) as update:
            update(0, 2)
            update(2, 2)
    assert capsys.readouterr().err == ""
