"""Simulate a fleet: what saturates first, and what an hour of video costs. Writes the tables of docs/scaling.md.

python -m benchmarks.scaling

A run of real jobs with one and with two workers gives stage times, sizes, commands and processor time per job. The same
simulation first predicts that run, with an error that must stay below 20 %, and then fleets of 1 to 1,000 GPUs.
"""

import math
import os
import random
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import simpy

from tests.chaos.fleet import Fleet
from uvos.contract import JobView, Stage

SAMPLE = Path(__file__).parents[1] / "examples" / "sample.mp4"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
JOBS = 8
MAX_ERROR = 0.2
DAY_S = 86_400.0
SIMULATED_JOBS = 4000  # per fleet
MAX_WAIT_S = 60.0  # 95th percentile of a fleet that is large enough

# --- assumptions: not measured here
VIDEO_S, VIDEO_FPS, VIDEO_BYTES = 30.0, 24.0, 15e6
GPU_SPEEDUP = 20.0  # of features, attention and clustering, against two CPU cores
CORES_PER_GPU = 4.0
LINK_BYTES_PER_S = 1.25e9  # of the storage and of the connection to the internet: 10 Gbit/s each
DOWNLOADS = 1.0  # of each result
GPU_HOUR, CORE_HOUR, EGRESS_GB, STORED_GB_DAY = 2.0, 0.04, 0.09, 0.023 / 30  # US dollars


@dataclass(frozen=True)
class Costs:
    """What one job needs, seconds and bytes."""

    decode_s: float
    """One core."""
    device_s: float
    masks_s: float
    """One core."""
    overhead_s: float
    """Between two jobs of a worker, and around the stages of one."""
    redis_s: float
    """Processor time of Redis, which is single-threaded."""
    api_s: float
    """Processor time of an API process."""
    upload_bytes: float
    result_bytes: float

    @property
    def worker_s(self) -> float:
        return self.decode_s + self.device_s + self.masks_s + self.overhead_s

    @property
    def storage_bytes(self) -> float:
        """Written and read: the upload once each, the result once and per download."""
        return 2 * self.upload_bytes + (1 + DOWNLOADS) * self.result_bytes


@dataclass(frozen=True)
class Measured:
    """A run of `JOBS` real jobs that were submitted at once."""

    workers: int
    costs: Costs
    makespan_s: float
    mean_wait_s: float
    frames: int


@dataclass(frozen=True)
class Simulated:
    makespan_s: float
    mean_wait_s: float
    p95_wait_s: float


def simulate(costs: Costs, workers: int, arrivals: list[float]) -> Simulated:
    """Jobs that arrive at these times, in seconds, pass the API's storage link, Redis, a worker, and the link again."""
    environment = simpy.Environment()
    pool = simpy.Resource(environment, workers)
    redis, link = simpy.Resource(environment, 1), simpy.Resource(environment, 1)
    waits: list[float] = []

    def use(resource: simpy.Resource, seconds: float) -> Generator[Any, Any, None]:
        with resource.request() as request:
            yield request
            yield environment.timeout(seconds)

    def job(at: float) -> Generator[Any, Any, None]:
        yield environment.timeout(at)
        yield from use(link, costs.upload_bytes / LINK_BYTES_PER_S)
        yield from use(redis, costs.redis_s / 2)
        accepted_at = environment.now
        with pool.request() as request:
            yield request
            waits.append(environment.now - accepted_at)
            yield environment.timeout(costs.worker_s)
        yield from use(redis, costs.redis_s / 2)
        yield from use(link, costs.result_bytes / LINK_BYTES_PER_S)

    for at in arrivals:
        environment.process(job(at))
    environment.run()
    waits.sort()
    return Simulated(environment.now, sum(waits) / len(waits), waits[int(0.95 * (len(waits) - 1))])


# --- the measured run


def measure(workers: int) -> Measured:
    """Run real jobs with the model `tiny` on this machine."""
    settings = {"UVOS_TEST_CHILD": "worker.jobs.child_process", "UVOS_MODEL": "tiny", "UVOS_LEASE_S": "6"}
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), workers=workers, settings=settings) as fleet:
        run_jobs(fleet, workers)  # compiles, and fills caches
        redis_before, api_before = redis_seconds(fleet), api_seconds(fleet)
        began = time.time()
        jobs = run_jobs(fleet, JOBS)
        redis_s, api_s = redis_seconds(fleet) - redis_before, api_seconds(fleet) - api_before
        timings = [fleet.http.get(f"/jobs/{job.id}/manifest.json").json()["timings_s"] for job in jobs]
        result = [sum(path.stat().st_size for path in result_files(fleet, job)) for job in jobs]

    def mean(stages: tuple[Stage, ...]) -> float:
        return sum(timing[stage.value] for timing in timings for stage in stages) / JOBS

    ended = max(job.ended_at.timestamp() for job in jobs if job.ended_at is not None)
    waits = [(job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at is not None]
    stages_s = sum(timing["total"] for timing in timings) / JOBS
    costs = Costs(
        decode_s=mean((Stage.decode,)),
        device_s=mean((Stage.features, Stage.attention, Stage.clustering)),
        masks_s=mean((Stage.masks,)),
        overhead_s=between_stages_s(jobs, stages_s),
        redis_s=redis_s / JOBS,
        api_s=api_s / JOBS,
        upload_bytes=SAMPLE.stat().st_size,
        result_bytes=sum(result) / JOBS,
    )
    return Measured(workers, costs, ended - began, sum(waits) / JOBS, jobs[0].frames_total or 0)


def run_jobs(fleet: Fleet, count: int) -> list[JobView]:
    """Submit jobs at once and poll each twice a second until it has ended."""
    video = SAMPLE.read_bytes()
    ids = []
    for _ in range(count):
        form = {"end": "1", "tau": "4"}
        response = fleet.http.post("/segment", files={"video": ("clip.mp4", video)}, data=form).raise_for_status()
        ids.append(response.json()["id"])
    ended: dict[str, JobView] = {}
    while len(ended) < count:
        for job_id in [job_id for job_id in ids if job_id not in ended]:
            job = JobView.model_validate(fleet.http.get(f"/jobs/{job_id}").json())
            assert job.error is None, job.error
            if job.status.is_terminal:
                ended[job_id] = job
        time.sleep(0.5)
    return [ended[job_id] for job_id in ids]


def between_stages_s(jobs: list[JobView], stages_s: float) -> float:
    """Mean time of a job outside its stages: to start the execution, to sync and publish the result, to pop it."""
    spans = [
        (job.ended_at - job.started_at).total_seconds()
        for job in jobs
        if job.ended_at is not None and job.started_at is not None
    ]
    return max(0.0, sum(spans) / len(spans) - stages_s)


def result_files(fleet: Fleet, job: JobView) -> list[Path]:
    return [path for path in (fleet.data / "jobs" / job.id / "work").rglob("*") if path.is_file()]


def redis_seconds(fleet: Fleet) -> float:
    """Processor time that Redis has spent on commands."""
    statistics: Any = fleet.redis.info("commandstats")
    return sum(entry["usec"] for name, entry in statistics.items() if "blpop" not in name) / 1e6


def api_seconds(fleet: Fleet) -> float:
    assert fleet.api is not None
    fields = Path(f"/proc/{fleet.api.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- fleets


def scaled(measured: Measured) -> Costs:
    """The costs of the assumed video on a GPU; times and sizes grow with the number of frames."""
    factor = VIDEO_S * VIDEO_FPS / measured.frames
    costs = measured.costs
    return replace(
        costs,
        decode_s=factor * costs.decode_s / CORES_PER_GPU,  # codecs use several cores
        device_s=factor * costs.device_s / GPU_SPEEDUP,
        masks_s=factor * costs.masks_s / CORES_PER_GPU,
        upload_bytes=VIDEO_BYTES,
        result_bytes=factor * costs.result_bytes,
    )


def workers_for(costs: Costs, videos_per_day: float) -> tuple[int, Simulated]:
    """The smallest number of workers at which 95 % of the jobs wait less than `MAX_WAIT_S`."""
    rng = random.Random(0)
    at, arrivals = 0.0, []
    for _ in range(SIMULATED_JOBS):
        at += rng.expovariate(videos_per_day / DAY_S)
        arrivals.append(at)
    workers = max(1, math.ceil(costs.worker_s * videos_per_day / DAY_S))
    while True:
        simulated = simulate(costs, workers, arrivals)
        if simulated.p95_wait_s <= MAX_WAIT_S:
            return workers, simulated
        workers += max(1, workers // 20)


def shares(costs: Costs, videos_per_day: float, workers: int) -> dict[str, float]:
    """Utilisation of each part."""
    rate = videos_per_day / DAY_S
    return {
        "workers": rate * costs.worker_s / workers,
        "Redis": rate * costs.redis_s,
        "storage": rate * costs.storage_bytes / LINK_BYTES_PER_S,
        "egress": rate * DOWNLOADS * costs.result_bytes / LINK_BYTES_PER_S,
        "API processes": rate * costs.api_s,
    }


def dollars_per_video_hour(costs: Costs, videos_per_day: float, workers: int) -> float:
    machines = workers * (GPU_HOUR + CORES_PER_GPU * CORE_HOUR) * 24
    traffic = videos_per_day * (DOWNLOADS * EGRESS_GB + STORED_GB_DAY) * costs.result_bytes / 1e9
    return (machines + traffic) / (videos_per_day * VIDEO_S / 3600)


def fleet_rows(costs: Costs) -> list[str]:
    rows = [
        "| videos a day | workers | p95 wait | busy | Redis | storage | egress | API processes | $ per video-hour |"
    ]
    rows.append("| ---: " * 9 + "|")
    for videos in (1, 100, 10_000, 100_000, 1_000_000):
        workers, simulated = workers_for(costs, videos)
        used = shares(costs, videos, workers)
        cells = [f"{used[name]:.1%}" for name in ("workers", "Redis", "storage", "egress")]
        dollars = dollars_per_video_hour(costs, videos, workers)
        processes = max(1, math.ceil(used["API processes"] / 0.7))
        row = [
            f"{videos:,}",
            f"{workers:,}",
            f"{simulated.p95_wait_s:.0f} s",
            *cells,
            str(processes),
            f"{dollars:,.2f}",
        ]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def limit_rows(costs: Costs) -> list[str]:
    """The load at which each part is saturated, and the workers that this load needs."""
    rows = ["| part | saturated at videos a day | workers at that load |", "| --- | ---: | ---: |"]
    for name, share in shares(costs, DAY_S, 1).items():  # at one video a second
        if name != "workers":
            videos = DAY_S / share
            rows.append(f"| {name} | {videos:,.0f} | {videos / DAY_S * costs.worker_s:,.0f} |")
    return rows


def check_rows(runs: list[Measured]) -> list[str]:
    """Measured against simulated.

    Raises:
        SystemExit: the simulation is off by more than `MAX_ERROR`.
    """
    rows = ["| workers | | measured | simulated | error |", "| ---: | --- | ---: | ---: | ---: |"]
    for run in runs:
        simulated = simulate(run.costs, run.workers, [0.0] * JOBS)
        for name, here, there in (
            (f"end of {JOBS} jobs", run.makespan_s, simulated.makespan_s),
            ("mean wait", run.mean_wait_s, simulated.mean_wait_s),
        ):
            error = there / here - 1
            rows.append(f"| {run.workers} | {name} | {here:.1f} s | {there:.1f} s | {error:+.0%} |")
            print(rows[-1], flush=True)
            if abs(error) > MAX_ERROR:
                raise SystemExit(f"the simulation is off by {error:+.0%}; the limit is {MAX_ERROR:.0%}")
    return rows


def cost_rows(measured: Measured) -> list[str]:
    here, fleet = measured.costs, scaled(measured)
    rows = [
        f"| of one job | measured: {measured.frames} frames, `tiny`, CPU | assumed video on a GPU |",
        "| --- | ---: | ---: |",
    ]
    for name, unit, digits in (
        ("decode_s", "s", 3), ("device_s", "s", 3), ("masks_s", "s", 3), ("overhead_s", "s", 3), ("redis_s", "s", 5),
        ("api_s", "s", 4), ("upload_bytes", "B", 0), ("result_bytes", "B", 0),
    ):  # fmt: skip
        title = name.removesuffix("_s").removesuffix("_bytes").replace("redis", "Redis").replace("api", "API")
        rows.append(
            f"| {title} | {getattr(here, name):,.{digits}f} {unit} | {getattr(fleet, name):,.{digits}f} {unit} |"
        )
    return rows


def main() -> None:
    """Measure, check and simulate; write the tables."""
    runs = [measure(workers) for workers in (1, 2)]
    costs = scaled(runs[0])
    tables = {
        "check": check_rows(runs),
        "costs": cost_rows(runs[0]),
        "fleets": fleet_rows(costs),
        "limits": limit_rows(costs),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in tables.items():
        print("\n".join(rows), flush=True)
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name} -->\n" + "\n".join(rows) + f"\n<!-- end of {name} -->{after}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
