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
JOBS = 6
SHORT = {"end": "0.25", "resolution": "96x168"}  # jobs of the run that the simulation predicts
WHOLE = {"tau": "4"}  # the job whose costs are scaled to fleets: the whole clip, default resolution
MAX_ERROR = 0.2
DAY_S = 86_400.0
SIMULATED_JOBS = 4000  # per fleet
MAX_BUSY = 0.9  # of the workers; beyond it waits grow for as long as the load lasts
MAX_WAIT_S = 60.0  # 95th percentile of a fleet that is large enough

UPLOAD_CORE_S_PER_BYTE = 2.5e-9  # of the API: 20 uploads of 5 MB against 20 of 0.1 MB, 18 and 6 ms each

# --- assumptions: not measured here
VIDEO_S, VIDEO_FPS, VIDEO_BYTES = 30.0, 24.0, 15e6
GPU_SPEEDUP = 40.0  # of features, attention and clustering, against one CPU core
CORES_PER_GPU = 4.0
LINK_BYTES_PER_S = 1.25e9  # of the storage and of the connection to the internet: 10 Gbit/s each
DOWNLOADS = 1.0  # of each result
GPU_HOUR, CORE_HOUR, EGRESS_GB, STORED_GB_DAY = 2.0, 0.04, 0.09, 0.023 / 30  # US dollars


@dataclass(frozen=True)
class Costs:
    """What one job needs, seconds and bytes."""

    decode_s: float
    device_s: float
    """Features, attention and clustering."""
    masks_s: float
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
    """A run of real jobs that were submitted at once."""

    workers: int
    jobs: int
    costs: Costs
    """Stages in seconds of the run, which other processes may have slowed down."""
    cores: float
    """Processor time of a job divided by the duration of its stages."""
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


def measure(workers: int, count: int, form: dict[str, str]) -> Measured:
    """Run real jobs with the model `tiny` on this machine."""
    settings = {"UVOS_TEST_CHILD": "worker.jobs.child_process", "UVOS_MODEL": "tiny", "UVOS_LEASE_S": "6"}
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), workers=workers, settings=settings) as fleet:
        run_jobs(fleet, workers, SHORT)  # compiles, and fills caches
        before = redis_seconds(fleet), api_seconds(fleet), child_seconds(fleet)
        began = time.time()
        jobs = run_jobs(fleet, count, form)
        after = redis_seconds(fleet), api_seconds(fleet), child_seconds(fleet)
        redis_s, api_s, child_s = ((end - start) / count for start, end in zip(before, after, strict=True))
        timings = [fleet.http.get(f"/jobs/{job.id}/manifest.json").json()["timings_s"] for job in jobs]
        result = [sum(path.stat().st_size for path in result_files(fleet, job)) for job in jobs]

    def mean(stages: tuple[Stage, ...]) -> float:
        return sum(timing[stage.value] for timing in timings for stage in stages) / count

    ended = max(job.ended_at.timestamp() for job in jobs if job.ended_at is not None)
    waits = [(job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at is not None]
    stages_s = sum(timing["total"] for timing in timings) / count
    costs = Costs(
        decode_s=mean((Stage.decode,)),
        device_s=mean((Stage.features, Stage.attention, Stage.clustering)),
        masks_s=mean((Stage.masks,)),
        overhead_s=between_stages_s(jobs, stages_s),
        redis_s=redis_s,
        api_s=api_s,
        upload_bytes=SAMPLE.stat().st_size,
        result_bytes=sum(result) / count,
    )
    makespan_s, wait_s = ended - began, sum(waits) / count
    return Measured(workers, count, costs, child_s / stages_s, makespan_s, wait_s, jobs[0].frames_total or 0)


def run_jobs(fleet: Fleet, count: int, form: dict[str, str]) -> list[JobView]:
    """Submit jobs at once and poll each twice a second until it has ended."""
    video = SAMPLE.read_bytes()
    ids = []
    for _ in range(count):
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
    return processor_seconds(fleet.api.pid)[0]


def child_seconds(fleet: Fleet) -> float:
    """Processor time of the children of the workers and of the decoders that they ran."""
    children = [child for worker in fleet.workers if (child := fleet.child_of(worker)) is not None]
    return sum(sum(processor_seconds(child)) for child in children)


def processor_seconds(pid: int) -> tuple[float, float]:
    """Of a process, and of its children that have ended."""
    fields = [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]]
    ticks = os.sysconf("SC_CLK_TCK")
    return (fields[0] + fields[1]) / ticks, (fields[2] + fields[3]) / ticks


# --- fleets


def scaled(measured: Measured) -> Costs:
    """The costs of the assumed video on a GPU; times and sizes grow with the number of frames.

    Stages are scaled by processor time, on which other processes of the machine have little influence. Progress,
    leases and polling take Redis and the API a share of the duration of the job.
    """
    factor = VIDEO_S * VIDEO_FPS / measured.frames
    cores = measured.cores
    costs = measured.costs
    fleet = replace(
        costs,
        decode_s=factor * cores * costs.decode_s / CORES_PER_GPU,
        device_s=factor * cores * costs.device_s / GPU_SPEEDUP,
        masks_s=factor * cores * costs.masks_s / CORES_PER_GPU,
        upload_bytes=VIDEO_BYTES,
        result_bytes=factor * costs.result_bytes,
    )
    duration = fleet.worker_s / costs.worker_s
    upload_s = UPLOAD_CORE_S_PER_BYTE * VIDEO_BYTES
    return replace(fleet, redis_s=duration * costs.redis_s, api_s=duration * costs.api_s + upload_s)


def workers_for(costs: Costs, videos_per_day: float) -> tuple[int, Simulated]:
    """The smallest number of workers at which 95 % of the jobs wait less than `MAX_WAIT_S`."""
    rng = random.Random(0)
    at, arrivals = 0.0, []
    for _ in range(SIMULATED_JOBS):
        at += rng.expovariate(videos_per_day / DAY_S)
        arrivals.append(at)
    workers = max(1, math.ceil(costs.worker_s * videos_per_day / DAY_S / MAX_BUSY))
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
        simulated = simulate(run.costs, run.workers, [0.0] * run.jobs)
        for name, here, there in (
            (f"end of {run.jobs} jobs", run.makespan_s, simulated.makespan_s),
            ("mean wait", run.mean_wait_s, simulated.mean_wait_s),
        ):
            error = there / here - 1
            rows.append(f"| {run.workers} | {name} | {here:.1f} s | {there:.1f} s | {error:+.0%} |")
            print(rows[-1], flush=True)
            if abs(error) > MAX_ERROR:
                raise SystemExit(f"the simulation is off by {error:+.0%}; the limit is {MAX_ERROR:.0%}")
    return rows


def cost_rows(measured: Measured) -> list[str]:
    """What a job needs, measured and scaled."""
    here, fleet, cores = measured.costs, scaled(measured), measured.cores
    rows = [
        f"| of one job | measured, {measured.frames} frames, `tiny` on CPU | assumed video, GPU |",
        "| --- | ---: | ---: |",
    ]
    for name in ("decode", "device", "masks"):
        seconds = getattr(here, f"{name}_s") * cores
        rows.append(f"| {name} | {seconds:.2f} core-seconds | {getattr(fleet, f'{name}_s'):.2f} s |")
    for name, title in (
        ("overhead_s", "between stages and jobs"),
        ("redis_s", "Redis"),
        ("api_s", "API, with polling"),
    ):
        rows.append(f"| {title} | {1000 * getattr(here, name):.1f} ms | {1000 * getattr(fleet, name):.1f} ms |")
    for name in ("upload", "result"):
        sizes = (getattr(costs, f"{name}_bytes") / 1e6 for costs in (here, fleet))
        rows.append(f"| {name} | {' | '.join(f'{size:.2f} MB' for size in sizes)} |")
    return rows


def main() -> None:
    """Measure, check and simulate; write the tables."""
    runs = [measure(workers, JOBS, SHORT) for workers in (1, 2)]
    check = check_rows(runs)
    whole = measure(1, 1, WHOLE)
    costs = scaled(whole)
    tables = {
        "check": check,
        "costs": cost_rows(whole),
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
