"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

# Seconds, from a small image on a GPU to a large one on a busy CPU.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server; several in one process do not mix."""

    def __init__(self, waiting: Callable[[], float], answering: Callable[[], float]) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "segkit_requests",
            "Requests for a prediction, by what they asked for and the status.",
            ("output", "status"),
            registry=own,
        )
        self._seconds = Histogram(
            "segkit_request_seconds",
            "From a request to its answer, where it got one.",
            ("output",),
            buckets=_SECONDS,
            registry=own,
        )
        self._batches = Histogram(
            "segkit_batch_images", "Images that were computed together.", buckets=_BATCHES, registry=own
        )
        self._compute = Histogram(
            "segkit_batch_seconds", "Time that the model took for a batch.", buckets=_SECONDS, registry=own
        )
        queue = Gauge("segkit_queue_images", "Decoded images that wait for the model.", registry=own)
        queue.set_function(waiting)
        requests = Gauge("segkit_requests_in_progress", "Requests that are being answered.", registry=own)
        requests.set_function(answering)
        ProcessCollector(registry=own)

    def request(self, output: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(output, str(status)).inc()
        if status == 200:
            self._seconds.labels(output).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.observe(size)
        self._compute.observe(seconds)

    def text(self) -> bytes:
        """All of it, as `MEDIA_TYPE`."""
        return generate_latest(self._registry)
