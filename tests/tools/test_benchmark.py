"""`tools/benchmark.py`: every command runs, and what it says follows from what it measured."""

from __future__ import annotations

import json
import sys
from statistics import median

import pytest
import torch

import benchmark
from benchmarks import gradients, losses, memory
from benchmarks.peers import Absent, peer
from benchmarks.processes import run_python
from benchmarks.report import Report, make_report, to_markdown, write_into
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Settings, check_same_work, time_row
from segkit import build_loss

SMALL = Settings(torch.device("cpu"), rounds=2, small=True)


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other on a busy machine take most of the time of tiny tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", benchmark.COMMANDS)
def test_every_command_runs_and_writes_what_it_measured(name, tmp_path, monkeypatch):
    # In this process: whole processes for each contender would take a minute. test_peak_memory measures in one.
    monkeypatch.setattr(losses, "peak_mib", memory.measure_here)
    report = benchmark.run(name, SMALL)
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert set(written) == {"machine", "settings", "rows"}
    assert written["settings"] == {"device": "cpu", "rounds": 2, "small": True}
    assert {"cpu", "cores", "torch_threads", "gpu", "versions", "date", "command"} <= set(written["machine"])
    assert written["rows"]
    for row in written["rows"]:
        assert row["command"] == name
        judged = [entry for entry in row["entries"] if entry["goal"] is not None]
        assert row["quantity"]
        assert judged or "decoding alone" in row["title"]
        for entry in row["entries"]:
            assert bool(entry["samples"]) != bool(entry["absent"])
            assert all(sample >= 0 for sample in entry["samples"])
        check_ratios(row)
    assert Report.read(tmp_path / "report.json") == report


def check_ratios(row: dict) -> None:
    """Every figure is a ratio of medians against the baseline that the row names."""
    samples = {entry["name"]: entry["samples"] for entry in row["entries"]}
    beside = [row["unit"]] if row["baseline"] is None else samples[row["baseline"]]
    for entry in row["entries"]:
        if entry["samples"] and beside and min(beside) > 0:
            assert entry["figure"] == pytest.approx(median(entry["samples"]) / median(beside))
        else:
            assert entry["figure"] is None
            assert entry["met"] is None


def test_a_ratio_is_that_of_medians_and_its_spread_that_of_rounds():
    mine, base = Entry("segkit", [2.0, 3.0, 9.0], goal=Goal(0.5)), Entry("peer", [10.0, 6.0, 6.0])
    Row("losses", "by hand", "ms", [base, mine], baseline="peer").relate()
    assert (mine.value, mine.figure, mine.met) == (3.0, 0.5, True)
    # Round by round 0.2, 0.5, 1.5; the middles between those are its quartiles.
    assert mine.spread == pytest.approx((0.35, 1.0))
    assert (base.figure, base.met) == (1.0, None)


def test_goals_of_both_directions():
    assert [Goal(0.4).met(x) for x in (0.39, 0.4, 0.41)] == [True, True, False]
    assert [Goal(1.7, at_least=True).met(x) for x in (1.69, 1.7, 1.8)] == [False, True, True]


def test_a_peer_that_is_missing_is_named_and_nothing_is_related_to_it(monkeypatch):
    def peer_without_nnunet(distribution, module):
        if distribution == "nnunetv2":
            raise Absent("not installed")
        return peer(distribution, module)

    monkeypatch.setattr(losses, "peer", peer_without_nnunet)
    row = losses.losses(SMALL)[0]
    entries = {entry.name: entry for entry in row.entries}
    assert row.baseline == "nnU-Net"
    assert (entries["nnU-Net"].absent, entries["nnU-Net"].value) == ("not installed", None)
    assert entries["segkit"].value > 0
    assert entries["segkit"].figure is None
    assert entries["segkit"].met is None
    text = to_markdown([make_report("losses", [row], SMALL)])
    assert "| nnU-Net |  |  |  |  | not installed |" in text
    assert "baseline not measured" in text


def test_a_package_that_is_not_there_is_absent():
    with pytest.raises(Absent, match="pip install"):
        peer("monai", "a_package_that_nobody_has_installed")


def test_contenders_that_compute_different_things_are_not_compared():
    def contender(name, number):
        return Contender(name, lambda: lambda: torch.tensor([1.0, number]), result=lambda returned: [returned])

    with pytest.raises(RuntimeError, match=r"segkit and peer differ by 2\.5e-01"):
        time_row("losses", "by hand", "peer", [contender("peer", 4.0), contender("segkit", 3.0)], SMALL)
    with pytest.raises(RuntimeError, match="differ"):
        check_same_work("by hand", {"a": [torch.ones(2)], "b": [torch.tensor([1.0, float("nan")])]}, 0.1)
    check_same_work("by hand", {"a": [torch.ones(2)], "b": [torch.tensor([1.0, 1.05])]}, 0.1)


class Bent(torch.autograd.Function):
    """The same value, and a gradient that is wrong in the tenth digit."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 + 1e-10)


def bent_loss(spec, format):
    loss = build_loss(spec, format)
    return lambda logits, target: Bent.apply(loss(logits, target))


def test_a_wrong_gradient_fails_the_command(monkeypatch):
    (row,) = gradients.gradients(SMALL, build=bent_loss)
    assert [entry.met for entry in row.entries] == [False] * 3
    assert all(entry.value == pytest.approx(1e-10, rel=1e-3) for entry in row.entries)
    monkeypatch.setitem(benchmark.COMMANDS, "gradients", lambda settings: [row])
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gradients", "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 1


def test_textbook_loss_by_hand():
    # Two classes, equal logits: p is 1/2 everywhere. Four pixels, one ignored, the others of class 0.
    #   CE = ln 2; class 0: Σpt = 1.5, Σp = 1.5, Σt = 3: (3 + 1) / (4.5 + 1); class 1: 0, 1.5, 0: 1 / 2.5
    format = losses.MaskFormat.multiclass(["a", "b"])
    target = torch.tensor([[[[0, 0], [0, 255]]]], dtype=torch.uint8)
    case = gradients.Case("by hand", format, torch.zeros(1, 2, 2, 2, dtype=torch.float64), target)
    value = gradients.textbook_loss(case.logits, target, case)
    assert float(value) == pytest.approx(0.6931471805599453 + 1 - (4 / 5.5 + 1 / 2.5) / 2)


def test_peak_memory_of_a_copy_is_the_size_of_the_tensor():
    # 4x8x512x512 float32 are 32 MiB; pages and bookkeeping add little.
    try:
        found_mib = memory.peak_mib("overlapping", "one copy of the logits", Settings(torch.device("cpu")))
    except Absent as reason:
        pytest.skip(str(reason))
    assert found_mib == pytest.approx(32.0, abs=2.0)


def test_command_line(tmp_path):
    options = ["--device", "cpu", "--rounds", "2", "--threads", "1", "--small", "--json", str(tmp_path / "a.json")]
    done = run_python(benchmark.__file__, "overlapping-counts", *options)
    assert done.returncode == 0, done.stderr
    assert "numbers mean nothing" in done.stdout
    assert "SMP get_stats = 1.00" in done.stdout
    text = to_markdown([Report.read(tmp_path / "a.json")])
    assert "overlapping-counts --device cpu --rounds 2 --threads 1 --small" in text
    assert "| SMP get_stats |" in text


def test_tables_are_renewed_in_a_page(tmp_path):
    row = Row("losses", "by hand", "ms", [Entry("peer", [2.0]), Entry("segkit", [1.0])], "peer").relate()
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nbelow\n")
    for _ in range(2):
        write_into(page, [make_report("losses", [row], SMALL)])
    text = page.read_text()
    assert text.startswith("above\n<!-- measured: begin -->\n\n### `losses`\n")
    assert text.endswith("\n<!-- measured: end -->\nbelow\n")
    assert text.count("| segkit | 1.00 ms | 0.50 |") == 1
    assert "old" not in text
    page.write_text("a page of something else\n")
    with pytest.raises(ValueError, match="expected the lines"):
        write_into(page, [])


def test_a_users_mistake_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "b.json").write_text("{}")
    for arguments in (["report", str(tmp_path / "b.json")], ["counts", "--device", "tpu"]):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            benchmark.main()
        assert stopped.value.code == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1
        assert "not a report" in told[0] or "expected cpu, cuda or auto" in told[0]


def test_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    entries = [Entry("peer", [2.0]), Entry("segkit", [1.0], goal=Goal(0.4))]
    row = Row("losses", "by hand", "ms", entries, "peer").relate()
    benchmark.plot([make_report("losses", [row], SMALL)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
