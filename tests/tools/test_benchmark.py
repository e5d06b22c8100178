"""`tools/benchmark.py`: every command runs, and what it says follows from what it measured."""

from __future__ import annotations

import json
import sys
from statistics import median

import pytest
import torch

import benchmark
from benchmarks import gradients, losses, memory
from benchmarks.floors import COPY, FLOOR, Floor, plain_bytes, upsampled_bytes, with_floor
from benchmarks.gpu_use import GpuUse
from benchmarks.peers import Absent, peer
from benchmarks.processes import run_python
from benchmarks.report import Report, make_report, to_markdown, write_into
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Settings, check_same_work, time_row
from segkit import build_loss

SMALL = Settings(torch.device("cpu"), rounds=2, small=True)
FULL = Settings(torch.device("cpu"), rounds=2)
# Parts of the titles of rows that compare without a goal.
NO_GOAL = ("decoding alone", "whole training", "loader beside training step")


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
        assert judged or any(part in row["title"] for part in NO_GOAL)
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


def test_floor_is_what_the_kernels_must_move_at_the_measured_bandwidth():
    # 2x5x3x7 logits, 42 pixels. Softmax in bf16: read, read, written, 3 * 5 * 2 bytes a pixel; one byte of target and
    # four of log Σ exp, twice.
    logits, planes = torch.zeros(2, 5, 3, 7, dtype=torch.bfloat16), torch.zeros(2, 1, 3, 7, dtype=torch.uint8)
    assert plain_bytes(logits, planes, softmax=True) == 42 * (30 + 2 + 8)
    # Sigmoids in float32: five planes, nothing handed on.
    planes = torch.zeros(2, 5, 3, 7, dtype=torch.uint8)
    assert plain_bytes(logits.float(), planes, softmax=False) == 42 * (60 + 10)
    # 12x28 pixels from 3x7 float32 logits: 3 * 4 bytes a coarse logit and 32 for its corners; 5 bytes a pixel, twice.
    fine = torch.zeros(2, 1, 12, 28, dtype=torch.uint8)
    assert upsampled_bytes(logits.float(), fine, softmax=True) == 2 * 5 * 21 * 44 + 2 * 12 * 28 * 10
    # Copies of 100 bytes move 200: the 300 bytes take 1.5 times as long in each round.
    row = Row("losses", "by hand", "ms", [Entry("peer", [8.0, 8.0]), Entry(COPY, [2.0, 4.0])], "peer").relate()
    floor = with_floor(row, Floor(300, COPY, 100)).entries[-1]
    assert (floor.name, floor.samples, floor.goal) == (FLOOR, [3.0, 6.0], None)
    assert floor.figure == pytest.approx(4.5 / 8)


def test_use_of_a_gpu_is_absent_where_nobody_tells(monkeypatch):
    with pytest.raises(Absent, match="--device cuda"):
        GpuUse(torch.device("cpu"))

    def refuse(device):
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    with pytest.raises(Absent, match=r"does not seem to be installed.*pip install nvidia-ml-py"):
        GpuUse(torch.device("cuda"))


def test_use_of_a_gpu_is_the_mean_share_of_what_the_driver_tells(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    use = GpuUse(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 80)
    use.start()
    assert use.stop() == pytest.approx(0.8)  # what it was before the start is no part of it


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
        write_into(page, [make_report("losses", [row], FULL)])
    text = page.read_text()
    assert text.startswith("above\n<!-- measured: begin -->\n\n### `losses`\n")
    assert text.endswith("\n<!-- measured: end -->\nbelow\n")
    assert text.count("| segkit | 1.00 ms | 0.50 |") == 1
    assert "old" not in text
    page.write_text("a page of something else\n")
    with pytest.raises(ValueError, match="expected the lines"):
        write_into(page, [])
    with pytest.raises(ValueError, match=r"missing\.md: cannot be read"):
        write_into(tmp_path / "missing.md", [])


def test_small_shapes_are_neither_judged_nor_recorded(tmp_path):
    row = Row(
        "losses", "by hand", "ms", [Entry("peer", [2.0]), Entry("segkit", [1.0], goal=Goal(0.4))], "peer"
    ).relate()
    full, small = (make_report("losses", [row], settings) for settings in (FULL, SMALL))
    assert "| ≤ 0.4 | missed |" in to_markdown([full])
    assert "| ≤ 0.4 | not judged |" in to_markdown([small])
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: begin -->\nold\n<!-- measured: end -->\n")
    with pytest.raises(ValueError, match="measured with --small"):
        write_into(page, [full, small])
    assert "old" in page.read_text()


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
