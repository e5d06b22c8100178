"""Jobs on the machines of a Ray cluster: `segkit predict --ray`, with `pip install 'segkit[ray]'`."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.inference.averaging import OneOrSeveral
from segkit.inference.batches import BatchWork, Wanted
from segkit.inference.computing import Batch, Computed, compute_here
from segkit.inference.journal import find_journals
from segkit.inference.predictor import Predictor
from segkit.inference.ray_cluster import Share, check_address, connected, share_out
from segkit.inference.reports import PredictReport

log = logging.getLogger("segkit")

# Images that a worker is given at once: enough to read and write others while some are computed, few enough that
# little is computed again when it is killed.
_IMAGES_OF_TASK = 64
# A task with which so many workers were killed is given up; Ray would try it for ever.
_MOST_TRIES = 4
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Task:
    """What a worker is given at once: batches that follow each other."""

    number: int
    batches: list[Batch]


def predict_on_ray(
    model: OneOrSeveral,
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    address: str = "auto",
    workers: int | None = None,
    codec: str | Mapping[str, Any] | Codec | None = None,
    device: str = "auto",
    tile: int | None = None,
    tta: str | Iterable[str] | None = None,
    **options: Any,
) -> PredictReport:
    """`Predictor.predict_files`, computed by workers of a Ray cluster; this process deals out and keeps the journal.

    Inputs, `out` and models given by path must lie where all machines see them, and segkit be installed on each.
    A worker that dies is replaced, and what it was at is computed again. A Ray that this process is connected to
    already is used, and left as it is.

    Args:
        model: as a `Predictor` takes it; each worker opens it once.
        address: `auto` for the cluster of this machine (or RAY_ADDRESS), HOST:PORT, or `local` for a Ray on this
            machine that is started for the job.
        workers: processes; default one for each GPU, without GPUs one for each machine. They share the CPUs alike,
            and GPUs too where there are more workers than GPUs.
        codec: how masks are written, as `open_codec` takes it; by default the codec stored in the bundle.
        device: auto, cpu, or cuda; auto is cuda where the cluster has GPUs.
        options: further ones of `Predictor.predict_files`.

    Raises:
        ValueError: Ray is missing or not there; a task that ends every worker (all others are done); and what
            `Predictor.predict_files` raises.
    """
    check_address(address)
    tta = tta if tta is None or isinstance(tta, str) else list(tta)
    # The CPU: this process only looks at the model.
    predictor = Predictor(model, device="cpu", tile=tile, tta=tta)
    if codec is not None:
        predictor.codec = open_codec(codec, predictor.model.format)
    with connected(address) as nodes:
        share = share_out(nodes, workers, device)
        # The default size of a batch, and what tells the job from another, are those of the device that computes.
        predictor.device = torch.device(share.device)
        compute = _OnRay(model, {"device": share.device, "tile": tile, "tta": tta}, share)
        return predictor.predict_files(inputs, out, compute=compute, **options)


def make_tasks(batches: Iterable[Batch], workers: int) -> list[Task]:
    """Batches that follow each other, as a worker is given them; smaller where there are few for each worker."""
    batches = list(batches)
    images = sum(len(item) for _, items in batches for item in items)
    most = min(_IMAGES_OF_TASK, max(1, images // (4 * workers)))
    tasks: list[Task] = []
    filled = most
    for batch in batches:
        count = sum(map(len, batch[1]))
        if filled + count > most:
            tasks.append(Task(len(tasks), []))
            filled = 0
        tasks[-1].batches.append(batch)
        filled += count
    return tasks


@dataclass(frozen=True)
class _OnRay:
    """A `Compute`: actors of Ray Data do tasks; their outcomes come back here, and outputs go to `work.out`."""

    model: OneOrSeveral
    given: Mapping[str, Any]
    share: Share

    def __call__(self, work: BatchWork, batches: Iterator[Batch], stopped: Callable[[], bool]) -> Iterator[Computed]:
        ray = _ray()
        tasks = make_tasks(batches, self.share.workers)
        if not tasks:
            return
        left = {number: items for task in tasks for number, items in task.batches}
        desk = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Desk).remote(_MOST_TRIES)
        folder = None if _are_absolute(self.model, work.out, left.values()) else os.getcwd()
        recipe = _Recipe(
            self.model, self.given, work.codec.to_spec(), work.out, work.wanted, work.together, folder, desk
        )
        with _watching(stopped, lambda: desk.stop.remote()):
            for computed, error in self._outcomes(tasks, recipe):
                for found in computed:
                    del left[found.batch]
                    yield self._told(found, work)
                if error is not None:
                    raise error
        if left and not stopped():
            raise ValueError(_given_up(left))

    def _outcomes(self, tasks: Sequence[Task], recipe: _Recipe) -> Iterator[tuple[list[Computed], Exception | None]]:
        ray = _ray()
        rows = [{"task": pickle.dumps(task)} for task in tasks]
        # A block each: what a task has computed comes back when it ends, and no other is done again with it.
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(recipe,),
            # One at a time: none waits behind a long one while another worker is idle.
            compute=ray.data.ActorPoolStrategy(
                size=min(self.share.workers, len(rows)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
        )
        data.context.enable_progress_bars = False
        # Without looking ahead, which would hold one back.
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from map(pickle.loads, table.column("outcome").to_pylist())

    def _told(self, found: Computed, work: BatchWork) -> Computed:
        if found.together is not None and (work.together is None or found.together < work.together):
            work.together = found.together
            log.warning("batches do not fit into the memory of a worker: %d images at once.", found.together)
        return found


@dataclass(frozen=True)
class _Recipe:
    """What a worker needs to know.

    Attributes:
        given: to a `Predictor`, beside the model.
        folder: where relative paths start; None without any.
        desk: a handle of `_Desk`.
    """

    model: OneOrSeveral
    given: Mapping[str, Any]
    codec: Mapping[str, Any]
    out: Path
    wanted: Wanted
    together: int | None
    folder: str | None
    desk: Any


class _Worker:
    """One process of the cluster, which opens the model when it gets its first task."""

    def __init__(self, recipe: _Recipe) -> None:
        self._recipe = recipe
        self._work: BatchWork | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        ray = _ray()
        done: list[Computed] = []
        error: Exception | None = None
        try:
            self._work = self._work or self._opened()
            desk, task = self._recipe.desk, pickle.loads(row["task"])
            batches = iter(task.batches if ray.get(desk.may_begin.remote(task.number)) else [])
            for found in compute_here(self._work, batches, lambda: ray.get(desk.is_stopped.remote())):
                done.append(found)  # one by one: what was done before an error counts
        except (OSError, ValueError) as found:
            error = found
        except Exception:
            # As text: what a library raises need not come through, and its frames may hold the memory of a GPU.
            error = RuntimeError(f"a worker on {socket.gethostname()} has failed:\n{traceback.format_exc()}")
        return {"outcome": pickle.dumps((done, error))}

    def _opened(self) -> BatchWork:
        recipe = self._recipe
        if recipe.folder is not None:
            try:
                os.chdir(recipe.folder)
            except OSError as error:
                raise ValueError(
                    f"{recipe.folder}: relative paths start here, but {socket.gethostname()}, a machine of the Ray "
                    f"cluster, does not see it ({error.strerror}). Give absolute paths that all machines see."
                ) from None
        if not find_journals(recipe.out):
            raise ValueError(
                f"{recipe.out}: {socket.gethostname()}, a machine of the Ray cluster, does not see the journal in it. "
                "Give an --out that all machines see, such as a folder of a shared file system."
            )
        predictor = Predictor(recipe.model, **recipe.given)
        work = BatchWork(predictor, open_codec(recipe.codec, predictor.model.format), recipe.out, recipe.wanted)
        work.together = recipe.together
        return work


class _Desk:
    """An actor where workers say what they begin, and ask whether to stop."""

    def __init__(self, most_tries: int) -> None:
        self._most_tries = most_tries
        self._tries: Counter[int] = Counter()
        self._stopped = False

    def may_begin(self, task: int) -> bool:
        """False once it was begun too often."""
        self._tries[task] += 1
        return self._tries[task] <= self._most_tries

    def stop(self) -> None:
        self._stopped = True

    def is_stopped(self) -> bool:
        return self._stopped


@contextmanager
def _watching(stopped: Callable[[], bool], stop: Callable[[], Any]) -> Iterator[None]:
    """Calls `stop` once `stopped` is True, while this thread waits for workers."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY_S):
            if stopped():
                stop()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ray() -> Any:
    """Of any type, as Ray's own ones know neither classes as functions of rows nor the tables that come back."""
    return import_module("ray")


def _are_absolute(model: OneOrSeveral, out: Path, batches: Iterable[Sequence[Any]]) -> bool:
    models = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    paths = [one for one in models if isinstance(one, str | Path)]
    images = (given.image for items in batches for item in items for given in item.inputs)
    return all(Path(path).is_absolute() for path in (*paths, out)) and all(
        path.is_absolute() for image in images for path in (image.path, *image.bands)
    )


def _given_up(left: Mapping[int, Sequence[Any]]) -> str:
    items = [item for number in sorted(left) for item in left[number]]
    return (
        f"{items[0].image}: with some of {sum(map(len, items))} images from this one to {items[-1].image} each worker "
        f"was killed, {_MOST_TRIES} times. All others are done. The logs of Ray say by what: if memory was short, take "
        "smaller windows or fewer workers, else leave the image out. `--resume` tries again."
    )
