"""Jobs: killed and resumed, stopped, in shards, over masks that are there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
import torch

from segkit.data.splits import read_quarantine
from segkit.experiment import write_json
from segkit.formats import png_files
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference import large
from segkit.inference.journal import JOURNAL, SHARDS, read_journals
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from segkit.training.preemption import AGAIN, Preempted
from tests.scenes import FORMATS, scene

ROOT = Path(__file__).resolve().parents[2]
FORMAT = FORMATS["exclusive"]
# Far more than any of these takes: what hangs fails.
TIMEOUT_S = 900


def model(format=FORMAT, **options):
    torch.manual_seed(1)
    return build_model("unet", "tu-test_resnet", format, weights=None, decoder_channels=[8, 8, 8, 8, 8], **options)


def write_images(folder: Path, count: int, broken: int = 0, size_hw=(24, 40)) -> Path:
    """`count` scenes, of which every eleventh has another size, and broken files among them."""
    folder.mkdir(parents=True)
    for number in range(count):
        image, _ = scene(number, size_hw if number % 11 else (32, 24))
        cv2.imwrite(str(folder / f"s{number:03d}.png"), image[..., ::-1])
    for number in range(broken):
        (folder / f"s{7 * number:03d}-broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    return folder


def write_volumes(folder: Path, names, slices=3) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        voxels = np.random.default_rng(number).normal(0, 100, (24, 20, slices)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the journal."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and JOURNAL not in path.name and SHARDS not in path.relative_to(out).parts
    }


def run(*arguments: object, environment=None) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(environment or {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(model(), open_codec("index_png", FORMAT), device="cpu")


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "in", 10, broken=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_job_killed_three_times_ends_like_one_that_was_not(tmp_path, seed):
    images = write_images(tmp_path / "in", 57, broken=3)
    save_bundle(model(), tmp_path / "m", open_codec("index_png", FORMAT))
    given = (tmp_path / "m", images, "--device", "cpu", "--objects", "--overlay")
    whole = run("-m", "segkit.cli", "predict", *given, "--out", tmp_path / "whole")
    assert whole.returncode == 1, whole.stderr
    report = tmp_path / "report.json"
    done = run("-m", "tests.inference.lives", seed, *given, "--out", tmp_path / "out", "--json", report)
    assert done.returncode == 1, done.stderr
    assert sorted(done.stdout.splitlines()[:3]) == [f"killed within {kind}" for kind in ("file", "line", "replace")]
    expected = contents(tmp_path / "whole")
    assert len([name for name in expected if "/" not in name and name.startswith("s")]) == 57
    assert contents(tmp_path / "out") == expected  # hidden leftovers would be found too
    told = json.loads(report.read_text())
    assert (told["done"], told["complete"]) == (57, True)
    names = [Path(failed["file"]).name for failed in told["failed"]]
    assert sorted(names) == ["s000-broken.png", "s007-broken.png", "s014-broken.png"]
    listed, _ = read_quarantine(tmp_path / "out" / "_quarantine.txt", "train")
    assert sorted(listed) == ["s000-broken", "s007-broken", "s014-broken"]
    assert read_journals([tmp_path / "out" / JOURNAL]).lives == 4


@pytest.mark.parametrize("name", ["coco", "nifti"])
def test_volumes_and_what_is_joined_at_the_end_are_whole_after_kills(tmp_path, name):
    codec = open_codec(name, FORMAT)
    if name == "coco":
        images, network = write_images(tmp_path / "in", 40), model()
    else:
        images, network = (
            write_volumes(tmp_path / "in", [f"v{number:02d}" for number in range(60)], 1),
            model(in_channels=1),
        )
    save_bundle(network, tmp_path / "m", codec)
    given = (tmp_path / "m", images, "--device", "cpu")
    assert run("-m", "segkit.cli", "predict", *given, "--out", tmp_path / "whole").returncode == 0
    done = run("-m", "tests.inference.lives", 3, *given, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def killed_at(name: str, number: int, work) -> None:
    """Run `work` in a fork that kills itself after its call `number` of a function of `os`."""
    pid = os.fork()
    if not pid:
        call, left = getattr(os, name), [number]

        def counted(*given, **options):
            found = call(*given, **options)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(os, name, counted)
        try:
            work()
        finally:
            os._exit(3)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


# The COCO file has taken its place; two of the images that it was joined from are removed; the lines of objects are.
@pytest.mark.parametrize(("call", "number"), [("replace", 7), ("unlink", 3), ("unlink", 7)])
def test_a_job_killed_while_it_joins_ends_like_one_that_was_not(tmp_path, call, number):
    images = write_images(tmp_path / "in", 5, broken=1)
    torch.set_num_threads(1)  # threads do not outlive a fork
    predictor = Predictor(model(), open_codec("coco", FORMAT), device="cpu")
    predictor.predict_files([images], tmp_path / "whole", objects=True)
    out = tmp_path / "out"
    killed_at(call, number, lambda: predictor.predict_files([images], out, objects=True))
    assert predictor.predict_files([images], out, objects=True, resume=True).done == 5
    assert contents(out) == contents(tmp_path / "whole")


def test_names_that_are_no_text_are_named_and_left_out_of_the_list(tmp_path, predictor):
    images = write_images(tmp_path / "in", 1)
    names = ["bad", "no\udcfetext", "two\nlines", "# sign", "train: a", " space"]
    for name in names:
        (images / f"{name}.png").write_bytes(b"no picture")
    report = predictor.predict_files([images], tmp_path / "out", objects=True)
    assert (report.done, len(report.failed)) == (1, 6)
    listed = tmp_path / "out" / "_quarantine.txt"
    assert read_quarantine(listed, "train") == (["bad"], [])
    assert listed.read_text().count("# Cannot be listed: ") == 5
    write_json(tmp_path / "report.json", report.to_dict())
    told = json.loads((tmp_path / "report.json").read_text())
    assert sorted(Path(failed["file"]).stem for failed in told["failed"]) == sorted(names)


class Stopping(Predictor):
    """Sends itself a signal while its second batch is computed."""

    signal_number = signal.SIGTERM

    def answers(self, images, spacings, probabilities):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            os.kill(os.getpid(), self.signal_number)
        return super().answers(images, spacings, probabilities)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_keeps_the_batch_that_is_computed_and_the_job_goes_on(
    tmp_path, images, predictor, caplog, number, raised
):
    stopping = Stopping(predictor.model, predictor.codec, device="cpu")
    stopping.signal_number = number
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(raised) as stopped:
        stopping.predict_files([images], tmp_path / "out", batch_size=3)
    if raised is Preempted:
        assert stopped.value.code == AGAIN
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert "6 of 11 images are done" in caplog.text
    assert "--resume" in caplog.text
    assert sorted(read_journals([tmp_path / "out" / JOURNAL]).entries) == [0, 1]
    stopping.calls = 2
    report = stopping.predict_files([images], tmp_path / "out", batch_size=3, resume=True)
    assert stopping.calls == 4  # the two batches that were left
    assert (report.done, len(report.failed)) == (10, 1)
    predictor.predict_files([images], tmp_path / "whole", batch_size=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def unfinished(tmp_path, images, predictor) -> Path:
    stopping = Stopping(predictor.model, predictor.codec, device="cpu")
    with pytest.raises(Preempted):
        stopping.predict_files([images], tmp_path / "out", batch_size=3)
    return tmp_path / "out"


def test_an_unfinished_job_is_not_begun_anew_by_mistake(tmp_path, images, predictor):
    out = unfinished(tmp_path, images, predictor)
    before = (out / JOURNAL).read_bytes()
    with pytest.raises(ValueError, match=r"unfinished job, with 5 of 11 masks\. `--resume` goes on"):
        predictor.predict_files([images], out, batch_size=3)
    assert (out / JOURNAL).read_bytes() == before
    assert predictor.predict_files([images], out, batch_size=3, overwrite="always").done == 10
    # One that is finished is.
    assert predictor.predict_files([images], out).done == 10


def test_a_job_that_keeps_masks_is_not_resumed_as_one_that_does_not(tmp_path, images, predictor):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s009.png").write_bytes(b"by hand")
    stopping = Stopping(predictor.model, predictor.codec, device="cpu")
    with pytest.raises(Preempted):
        stopping.predict_files([images], tmp_path / "out", batch_size=3, overwrite="never")
    with pytest.raises(ValueError, match="overwrite was 'never', now it is 'always'"):
        predictor.predict_files([images], tmp_path / "out", batch_size=3, resume=True)
    predictor.predict_files([images], tmp_path / "out", batch_size=3, resume=True, overwrite="never")
    assert (tmp_path / "out" / "s009.png").read_bytes() == b"by hand"


def test_a_job_begun_anew_leaves_nothing_of_one_that_was_killed(tmp_path, images, predictor):
    out = unfinished(tmp_path, images, predictor)
    (out / f".s009.png.{'0' * 12}.part").write_bytes(b"half")
    predictor.predict_files([images], out, batch_size=3, overwrite="always")
    predictor.predict_files([images], tmp_path / "whole", batch_size=3)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_mask_whose_place_is_taken_is_that_of_one_input(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(large, "LARGE_PIXELS", 2**10)
    (tmp_path / "in").mkdir()
    for name in "abc":
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", np.full((48, 64, 3), 7, np.uint8), photometric="rgb")
    (tmp_path / "out" / "b.tif").mkdir(parents=True)
    predictor = Predictor(model(), open_codec("tiff", FORMAT), device="cpu")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out")
    assert report.done == 2
    assert report.failed == [(str(tmp_path / "in" / "b.tif"), f"{tmp_path / 'out' / 'b.tif'}: Is a directory")]
    (tmp_path / "out" / "b.tif").rmdir()
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out", overwrite="never")
    assert (report.done, report.kept, report.failed) == (3, 2, [])


def test_an_out_that_is_a_file_is_named(tmp_path, images, predictor):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=rf"{tmp_path}/out: cannot be written \(File exists\)"):
        predictor.predict_files([images], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, images: {"batch_size": 4}, "batch size was 3, now it is 4"),
        (lambda p, images: {"batch_size": 3, "overlay": True}, "overlay was False, now it is True"),
        (lambda p, images: (images / "s003.png").rename(images / "t.png") and {"batch_size": 3}, "other inputs"),
        (lambda p, images: (images / "s003.png").unlink() or {"batch_size": 3}, "images was 11, now it is 10"),
        (lambda p, images: setattr(p, "tile", 64) or {"batch_size": 3}, "tile was None, now it is 64"),
        (lambda p, images: setattr(p, "model", model(resize=32)) or {"batch_size": 3}, "other model"),
        (
            lambda p, images: setattr(p, "codec", open_codec("palette_png", FORMAT)) or {"batch_size": 3},
            "codec was .*index_png",
        ),
    ],
)
def test_another_job_is_not_resumed_and_told_apart(tmp_path, images, predictor, change, message):
    out = unfinished(tmp_path, images, predictor)
    other = Predictor(predictor.model, predictor.codec, device="cpu")
    options = change(other, images)
    with pytest.raises(ValueError, match=f"is of another job: .*{message}"):
        other.predict_files([images], out, resume=True, **options)


def test_resuming_what_is_finished_computes_nothing_and_says_the_same(tmp_path, images, predictor):
    first = predictor.predict_files([images], tmp_path / "out", resume=True)  # begins the job
    (tmp_path / "out" / "s001.png").unlink()
    again = predictor.predict_files([images], tmp_path / "out", resume=True)
    assert again == first
    assert not (tmp_path / "out" / "s001.png").exists()


def test_masks_that_are_there_are_kept(tmp_path, images, predictor):
    out = tmp_path / "out"
    predictor.predict_files([images], out, batch_size=3)
    whole = contents(out)
    (out / "s004.png").unlink()
    for name in ("s003.png", "s008.png"):  # of the batch of the one that is missing, and of another
        (out / name).write_bytes(b"by hand")
    seen = []
    read = predictor.model.reading.__class__.read
    predictor_read = pytest.MonkeyPatch()
    predictor_read.setattr(
        predictor.model.reading.__class__, "read", lambda self, ref: seen.append(ref.path.name) or read(self, ref)
    )
    with predictor_read.context():
        report = predictor.predict_files([images], out, batch_size=3, overwrite="never")
    predictor_read.undo()
    # 000, 000-broken, 001 | 002, 003, 004 | 005, 006, 007 | 008, 009: whole batches, so that masks do not depend on it.
    assert sorted(seen) == ["s000-broken.png", "s000.png", "s001.png", "s002.png", "s003.png", "s004.png"]
    assert contents(out) == {**whole, "s003.png": b"by hand", "s008.png": b"by hand"}
    assert (report.done, report.kept, len(report.failed)) == (10, 9, 1)


def test_what_is_missing_beside_a_mask_is_added(tmp_path, images, predictor):
    out = tmp_path / "out"
    predictor.predict_files([images], out)
    (out / "s001.png").write_bytes(b"by hand")
    predictor.predict_files([images], out, overwrite="never", overlay=True, objects=True)
    assert (out / "s001.png").read_bytes() == b"by hand"
    assert len(list((out / "_overlay").iterdir())) == 10
    assert len(json.loads((out / "_objects.json").read_text())["images"]) == 10


def test_a_sample_with_one_of_two_class_files_is_written_whole(tmp_path):
    format = FORMATS["overlapping"]
    images = write_images(tmp_path / "in", 2)
    predictor = Predictor(model(format), open_codec("file_per_class", format), device="cpu")
    predictor.predict_files([images], tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "disc" / "s001.png").unlink()
    report = predictor.predict_files([images], tmp_path / "out", overwrite="never")
    assert (report.done, report.kept) == (2, 1)
    assert contents(tmp_path / "out") == whole


def test_a_full_disk_stops_the_job_which_then_goes_on(tmp_path, images, predictor, monkeypatch):
    written = []

    def full(path, content):
        written.append(path)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        Path(path).write_bytes(content)

    monkeypatch.setattr(png_files, "write_whole", full)
    with pytest.raises(OSError, match=r"No space left on device.*--resume goes on"):
        predictor.predict_files([images], tmp_path / "out", batch_size=3)
    monkeypatch.undo()
    report = predictor.predict_files([images], tmp_path / "out", batch_size=3, resume=True)
    assert (report.done, len(report.failed)) == (10, 1)


def test_a_name_that_is_too_long_for_a_mask_is_that_of_one_input(tmp_path, predictor, monkeypatch):
    images = write_images(tmp_path / "in", 3)

    def too_long(path, content):
        if Path(path).name == "s001.png":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        Path(path).write_bytes(content)

    monkeypatch.setattr(png_files, "write_whole", too_long)
    report = predictor.predict_files([images], tmp_path / "out")
    assert (report.done, len(report.failed)) == (2, 1)
    assert "File name too long" in report.failed[0][1]


class Small(Predictor):
    """Has memory for few images."""

    room = 2

    def answers(self, images, spacings, probabilities):
        self.sizes = [*getattr(self, "sizes", []), len(images)]
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return super().answers(images, spacings, probabilities)


def test_out_of_memory_halves_the_batch_and_is_told_once(tmp_path, images, predictor, caplog):
    small = Small(predictor.model, predictor.codec, device="cpu")
    report = small.predict_files([images], tmp_path / "out", batch_size=4)
    # 3 readable of the first batch, then 4 and 3, two at a time.
    assert small.sizes == [3, 2, 1, 2, 2, 2, 1]
    assert (report.done, len(report.failed)) == (10, 1)
    assert caplog.text.count("do not fit into memory") == 1
    predictor.predict_files([images], tmp_path / "whole", batch_size=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_job_that_goes_on_computes_as_few_at_once_as_before(tmp_path, images, predictor):
    class Both(Small, Stopping):
        pass

    stopping = Both(predictor.model, predictor.codec, device="cpu")
    with pytest.raises(Preempted):
        stopping.predict_files([images], tmp_path / "out", batch_size=4)
    again = Small(predictor.model, predictor.codec, device="cpu")
    again.predict_files([images], tmp_path / "out", batch_size=4, resume=True)
    assert max(again.sizes) == 2


def test_an_image_that_does_not_fit_alone_is_named(tmp_path, images, predictor):
    small = Small(predictor.model, predictor.codec, device="cpu")
    small.room = 0
    report = small.predict_files([images / "s001.png"], tmp_path / "out")
    assert report.done == 0
    assert "does not fit into memory even alone" in report.failed[0][1]
    assert "--tile" in report.failed[0][1]


def test_an_image_that_the_model_refuses_is_named_and_its_batch_is_done(tmp_path):
    (tmp_path / "in").mkdir()
    for name, bands in (("a", 4), ("b", 5), ("c", 4)):
        pixels = np.full((24, 40, bands), 7, np.uint16)
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", pixels, photometric="minisblack", planarconfig="contig")
    format = MaskFormat.binary("x")
    predictor = Predictor(model(format, in_channels=4), open_codec("index_png", format), device="cpu")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out")
    assert [Path(file).name for file, _ in report.failed] == ["b.tif"]
    assert report.done == 2


def test_shards_write_what_one_process_writes(tmp_path, images, predictor):
    predictor.predict_files([images], tmp_path / "whole", batch_size=2, objects=True)
    out = tmp_path / "out"
    first = predictor.predict_files([images], out, batch_size=2, objects=True, shard="1/2")
    assert (first.complete, first.done, len(first.failed)) == (False, 5, 1)
    assert not (out / "_objects.json").exists()
    last = predictor.predict_files([images], out, batch_size=2, objects=True, shard="2/2")
    assert (last.complete, last.done, len(last.failed)) == (True, 10, 1)
    assert contents(out) == contents(tmp_path / "whole")
    # Resumed in another number of shards: nothing is left to do.
    again = predictor.predict_files([images], out, batch_size=2, objects=True, shard="3/4", resume=True)
    assert (again.complete, again.done) == (True, 10)


def test_a_shard_begins_where_no_other_job_was(tmp_path, images, predictor):
    out = tmp_path / "out"
    predictor.predict_files([images], out, shard="1/2")
    for shard in ("1/2", "1/3"):
        with pytest.raises(ValueError, match="there is a job here already"):
            predictor.predict_files([images], out, shard=shard)
    with pytest.raises(ValueError, match=r"another job: batch size was 4, now it is 5"):
        predictor.predict_files([images], out, shard="2/2", batch_size=5)


def test_one_process_at_a_time_works_on_a_job(tmp_path, images, predictor):
    held = unfinished(tmp_path, images, predictor) / JOURNAL
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); "
        "sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(held)], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        for options in ({"resume": True}, {"overwrite": "always"}):
            with pytest.raises(ValueError, match="another process is at work"):
                predictor.predict_files([images], held.parent, batch_size=3, **options)
        other.stdin.close()
    assert predictor.predict_files([images], held.parent, batch_size=3, resume=True).done == 10


def test_options_that_mean_nothing_are_refused(tmp_path, images, predictor):
    with pytest.raises(ValueError, match="expected always or never"):
        predictor.predict_files([images], tmp_path / "out", overwrite="sometimes")
    with pytest.raises(ValueError, match="expected 1 or more"):
        predictor.predict_files([images], tmp_path / "out", batch_size=0)


def test_what_cannot_be_joined_is_named_and_joined_once_it_can(tmp_path, images, predictor, monkeypatch):
    def refuse(root):
        raise ValueError("no room for the whole")

    out = tmp_path / "out"
    monkeypatch.setattr(predictor.codec, "finish", refuse)
    report = predictor.predict_files([images], out, objects=True)
    assert report.failed[-1] == (str(out), "no room for the whole")
    assert predictor.predict_files([images], out, objects=True, resume=True) == report
    monkeypatch.undo()
    again = predictor.predict_files([images], out, objects=True, resume=True)
    assert (again.done, again.failed) == (10, report.failed[:-1])
    assert len(json.loads((out / "_objects.json").read_text())["images"]) == 10


def test_volumes_are_batches_of_their_own_and_kept_whole(tmp_path):
    given = write_volumes(tmp_path / "in", "abc")
    (given / "b.nii.gz").write_bytes((given / "b.nii.gz").read_bytes()[:-2000])
    predictor = Predictor(model(in_channels=1), open_codec("nifti", FORMAT), device="cpu")
    seen = []
    report = predictor.predict_files([given], tmp_path / "out", progress=lambda *counts: seen.append(counts))
    assert (report.done, len(report.failed)) == (6, 1)
    assert seen == sorted(seen)
    assert seen[-1] == (9, 9)
    entries = read_journals([tmp_path / "out" / JOURNAL]).entries
    assert [(entry.done, len(entry.failed)) for _, entry in sorted(entries.items())] == [(3, 0), (0, 1), (3, 0)]
    assert read_quarantine(tmp_path / "out" / "_quarantine.txt", "train")[0] == ["b"]
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "a.nii.gz").unlink()
    report = predictor.predict_files([given], tmp_path / "out", overwrite="never")
    assert (report.done, report.kept, len(report.failed)) == (6, 3, 1)
    assert contents(tmp_path / "out") == whole


def test_a_volume_that_does_not_fit_into_memory_is_computed_slice_by_slice(tmp_path, monkeypatch):
    given = write_volumes(tmp_path / "in", "a")
    predictor = Predictor(model(in_channels=1), open_codec("nifti", FORMAT), device="cpu")
    predictor.predict_files([given], tmp_path / "whole")
    network, sizes = predictor.model, []
    answer = network.predict_coarse_logits

    def with_room_for_one(images, spacing_mm=None):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(images, spacing_mm)

    monkeypatch.setattr(network, "predict_coarse_logits", with_room_for_one)
    report = predictor.predict_files([given], tmp_path / "out")
    assert (report.done, report.failed, sizes) == (3, [], [3, 1, 1, 1])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
