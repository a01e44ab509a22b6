"""Prometheus metrics of the whole service: counted in every process, summed in Redis, served by any API process.

Each process counts in `Instruments` of its own. A `Publisher` adds what has changed since its last call to one hash in
Redis. A worker therefore needs no port of its own, a worker that is scaled away keeps its share of the sums, and the
cost of `render` depends neither on the number of jobs nor on the number of processes. A killed process loses the counts
of its last `PUBLISH_INTERVAL_S`; if Redis loses the hash, the counters start at zero, as after a restart.
"""

import json
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import redis
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest

from service.jobs.queue import Broker
from uvos.contract import JobEnd, WorkerInfo

log = logging.getLogger(__name__)

HASH = "uvos:metrics"
PUBLISH_INTERVAL_S = 1.0
HTTP_BUCKETS_S = (0.005, 0.01, 0.025, 0.1, 0.25, 1, 5)
STAGE_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
JOB_BUCKETS_S = (0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 14400)

Sample = tuple[str, tuple[tuple[str, str], ...]]  # name and sorted labels


class Instruments:
    """The counters and histograms of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = self._counter(
            "uvos_http_requests", "HTTP requests, by method, route and status", "method", "route", "status"
        )
        self.http_seconds = Histogram(
            "uvos_http_request_seconds",
            "Time from the request to the start of its response, by method and route",
            ["method", "route"],
            buckets=HTTP_BUCKETS_S,
            registry=self.registry,
        )
        self.uploads_refused = self._counter(
            "uvos_uploads_refused", "Requests to POST /segment that were rejected, by reason", "reason"
        )
        self.jobs_accepted = self._counter("uvos_jobs_accepted", "Jobs that were accepted")
        self.jobs_ended = self._counter(
            "uvos_jobs_ended", "Jobs that ended, by outcome and problem", "outcome", "problem"
        )
        self.queue_wait_seconds = Histogram(
            "uvos_queue_wait_seconds",
            "Time from the acceptance of a job to the start of its first execution",
            buckets=JOB_BUCKETS_S,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "uvos_stage_seconds",
            "Duration of the stages of jobs, by stage",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.job_seconds = Histogram(
            "uvos_job_seconds",
            "Time from the acceptance of a job to its end, of succeeded jobs",
            buckets=JOB_BUCKETS_S,
            registry=self.registry,
        )
        self.frames = self._counter("uvos_frames", "Frames of succeeded jobs")
        self.child_deaths = self._counter(
            "uvos_child_deaths", "Child processes of workers that died or were killed, by reason", "reason"
        )
        self.leases_lost = self._counter("uvos_leases_lost", "Executions that lost the lease of their job")
        self.requeues = self._counter("uvos_requeues", "Jobs that were queued again, by reason", "reason")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def count_end(self, end: JobEnd) -> None:
        """Count a job that has ended."""
        self.jobs_ended.labels(end.status.value, end.error.type.rsplit("/", 1)[-1] if end.error else "").inc()

    def samples(self) -> dict[Sample, float]:
        """The value of every sample."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }


class Publisher:
    """Adds the counts of one process to the sums in Redis, in a thread."""

    def __init__(self, instruments: Instruments, connection: "redis.Redis") -> None:
        self._instruments = instruments
        self._connection = connection
        self._published: dict[Sample, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish for the last time and end the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_last = self._stopped.wait(PUBLISH_INTERVAL_S)
            try:
                self.publish()
            except redis.RedisError as error:  # the next call adds what this one could not
                log.debug("metrics are delayed: %s", error)
            if is_last:
                return

    def publish(self) -> None:
        """Add the changes since the last call.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        samples = self._instruments.samples()
        changes = {
            sample: value - self._published.get(sample, 0.0)
            for sample, value in samples.items()
            if value != self._published.get(sample)  # a new sample is published as 0, too: histograms need all buckets
        }
        if not changes:
            return
        with self._connection.pipeline() as pipeline:
            for sample, change in changes.items():
                pipeline.hincrbyfloat(HASH, json.dumps(sample), change)
            pipeline.execute()
        self._published = samples


class _Collected:
    """A collector of families that were collected elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(broker: Broker) -> bytes:
    """The metrics of the service in the Prometheus text format.

    Raises:
        redis.RedisError: Redis does not respond.
    """
    sums: Any = broker.connection.hgetall(HASH)
    registry = CollectorRegistry()
    state = _gauges(broker.length(), _age_s(broker.oldest()), broker.workers())
    registry.register(_Collected([*_summed(sums), *state]))
    return generate_latest(registry)


def _summed(sums: dict[bytes, bytes]) -> list[Metric]:
    """The families of `Instruments` with the values in Redis."""
    families = {family.name: family for family in Instruments().registry.collect()}
    values: dict[str, list[tuple[str, dict[str, str], float]]] = {name: [] for name in families}
    for field, value in sums.items():
        name, labels = json.loads(field)
        family = name.removesuffix("_total").removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        if family in values:  # Redis may hold samples of another version of this package
            values[family].append((name, dict(labels), float(value)))
    for name, family in families.items():
        if values[name]:
            family.samples = []
        for sample, labels, number in sorted(values[name], key=_order):
            family.add_sample(sample, labels, number)
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return list(families.values())


def _order(sample: tuple[str, dict[str, str], float]) -> tuple[list[tuple[str, str]], str, float]:
    """Series by series, the buckets of a histogram in ascending order."""
    name, labels, _ = sample
    return [(key, value) for key, value in labels.items() if key != "le"], name, float(labels.get("le", 0))


def families() -> list[Metric]:
    """All families that `render` writes, without values."""
    return [*Instruments().registry.collect(), *_gauges(0, 0.0, [])]


def _gauges(waiting: int, oldest_s: float, workers: list[WorkerInfo]) -> list[Metric]:
    """The state of queue and workers now."""
    runs = [worker for worker in workers if worker.problem is None]
    states = {
        "busy": sum(worker.busy_with is not None for worker in runs),
        "idle": sum(worker.busy_with is None for worker in runs),
        "unavailable": len(workers) - len(runs),
    }
    models = sorted({model for worker in workers for model in worker.models})
    peak = max(workers, key=lambda worker: worker.memory_peak_bytes / (worker.memory_bytes or 1), default=None)
    return [
        _gauge("uvos_jobs_waiting", "Jobs that wait for a worker", waiting),
        _gauge("uvos_jobs_running", "Jobs that a worker runs", states["busy"]),
        _gauge(
            "uvos_jobs_open", "Jobs that wait or run: with so many workers none would wait", waiting + states["busy"]
        ),
        _gauge(
            "uvos_oldest_job_seconds",
            "Age of the job at the front of the queue; 0 if it is empty",
            oldest_s,
        ),
        _gauge("uvos_workers", "Live workers, by state", states, "state"),
        _gauge(
            "uvos_warm_models",
            "Workers that have a model loaded, by model",
            {model: sum(model in worker.models for worker in workers) for model in models},
            "model",
        ),
        _gauge(
            "uvos_device_memory_peak_bytes",
            "Peak device memory of the worker that came closest to its limit (main memory on a CPU)",
            peak.memory_peak_bytes if peak else 0,
        ),
        _gauge("uvos_device_memory_bytes", "Device memory of the same worker", peak.memory_bytes if peak else 0),
    ]


def _gauge(name: str, documentation: str, value: float | dict[str, int], label: str | None = None) -> Metric:
    family = Metric(name, documentation, "gauge")
    for key, number in value.items() if isinstance(value, dict) else [("", value)]:
        family.add_sample(name, {label: key} if label is not None else {}, number)
    return family


def _age_s(job_id: str | None) -> float:
    """The age of a job by its id, which begins with 48 bits of milliseconds."""
    try:
        return max(0.0, time.time() - int((job_id or "")[:12], 16) / 1000)
    except ValueError:  # untrusted input
        return 0.0
