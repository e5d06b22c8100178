from __future__ import annotations

import json

import pytest

from segkit.inference.journal import JOURNAL, Entry, Journal, differences, find_journals, read_journals
from segkit.inference.shards import WHOLE, Shard

JOB = {"model": "a" * 64, "images": 7, "tile": None}
ENTRY = Entry(3, 2, 1, [("night/a", "in/night/a.png", "cut short")], 1.5, 2)


def written(out, *entries, shard=WHOLE, job=JOB):
    journal = Journal(out, shard, job)
    for entry in entries:
        journal.add(entry)
    journal.close()
    return journal.path


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path, Entry(0, 3), ENTRY)
    assert path == tmp_path / JOURNAL
    past = read_journals([path])
    assert (dict(past.job), past.lives, past.finished, past.seconds) == (JOB, 1, None, 1.5)
    assert past.entries == {0: Entry(0, 3), 3: ENTRY}
    assert read_journals([]) is None


def test_every_cut_of_the_last_line_is_passed_over_and_written_over(tmp_path):
    whole = written(tmp_path, Entry(0, 3), ENTRY).read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:end])
        assert read_journals([tmp_path / JOURNAL]).entries == {0: Entry(0, 3)}
        written(tmp_path, Entry(4, 1))
        past = read_journals([tmp_path / JOURNAL])
        assert past.entries == {0: Entry(0, 3), 4: Entry(4, 1)}
        assert past.lives == 2


def test_journals_of_shards_are_read_together_and_the_longest_counts(tmp_path):
    written(tmp_path, Entry(0, 3, seconds=2.0), Entry(1, 3, seconds=2.0), shard=Shard(1, 2))
    written(tmp_path, Entry(2, 1, seconds=3.0), shard=Shard(2, 2))
    assert [path.name for path in find_journals(tmp_path)] == ["1-of-2.jsonl", "2-of-2.jsonl"]
    past = read_journals(find_journals(tmp_path))
    assert (sorted(past.entries), past.seconds, past.lives) == ([0, 1, 2], 4.0, 2)


def test_a_finished_job_says_what_could_not_be_joined(tmp_path):
    journal = Journal(tmp_path, WHOLE, JOB)
    journal.finish([("out", "no value")])
    journal.close()
    assert read_journals([journal.path]).finished == [("out", "no value")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: is no line of a journal"),
        (b"notes\n", "line 1: is no line of a journal"),
        (b'{"version": 99, "job": {}}\n', "no journal that this version"),
        (b"[1]\n", "no journal that this version"),
        (b'{"version": 1, "job": {}}\nrubbish\n{"life": 1}\n', "line 2: is no line of a journal"),
    ],
)
def test_what_is_no_journal_is_named(tmp_path, content, message):
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(ValueError, match=f"{JOURNAL}.*{message}"):
        read_journals([tmp_path / JOURNAL])


def test_journals_of_two_jobs_are_refused(tmp_path):
    written(tmp_path, shard=Shard(1, 2))
    written(tmp_path, shard=Shard(2, 2), job={**JOB, "tile": 64})
    with pytest.raises(ValueError, match=r"2-of-2.jsonl: is of another job than .*1-of-2.jsonl: tile was None, now"):
        read_journals(find_journals(tmp_path))


def test_differences_name_what_a_person_gave():
    other = {"model": "b" * 64, "images": 8, "tile": None, "tta": "flips"}
    assert differences(JOB, other) == "other model; images was 7, now it is 8; tta was None, now it is 'flips'"
    assert differences(JOB, json.loads(json.dumps(JOB))) == ""
