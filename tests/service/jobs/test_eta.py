"""Estimates are ranges that contain the actual time: of synthetic jobs, and of a real job half-way."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.eta import Pace, Seconds
from tests.videos import Shape, make_scene, write_video
from uvos.client import Client
from uvos.contract import Clustering, JobParams, JobProgress, JobTiming, Motion, Stage, Status, Workload

PARAMS = JobParams.model_validate({"tau": [1.0], "model": "tiny", "motion": "off"})
works = st.builds(
    Workload,
    frames=st.integers(1, 5000),
    tokens=st.integers(1, 10_000),
    key_tokens=st.integers(1, 40_000),
    pixels=st.integers(1, 4096 * 2304),
    levels=st.integers(1, 8),
)


def stage_seconds(work: Workload) -> dict[Stage, float]:
    """Stage times, seconds, exactly proportional to the work."""
    return {
        Stage.decode: 1e-8 * work.frames * work.pixels,
        Stage.features: 1e-5 * work.frames * work.tokens,
        Stage.attention: 1e-9 * work.frames * work.tokens * work.key_tokens,
        Stage.clustering: 2e-9 * work.frames * work.tokens * work.key_tokens,
        Stage.masks: 1e-8 * work.frames * work.pixels * work.levels,
    }


def timing(work: Workload, *, device: str = "cpu", motion: Motion = Motion.off, slower: float = 1.0) -> JobTiming:
    seconds = {stage: slower * value for stage, value in stage_seconds(work).items()}
    return JobTiming(
        model="tiny",
        device=device,
        clustering=Clustering.algorithm1,
        motion=motion,
        video_bytes=1000 * work.frames,
        work=work,
        seconds=seconds,
    )


def progress(work: Workload, stage: Stage, share: float, *, slower: float = 1.0) -> JobProgress:
    stages = list(Stage)
    whole = {name: slower * value for name, value in stage_seconds(work).items()}
    spent = {name: whole[name] for name in stages[: stages.index(stage)]} | {stage: share * whole[stage]}
    return JobProgress.model_validate(
        {
            "execution": "e",
            "started_at": "2026-01-01T00:00:00Z",
            "stage": stage,
            "frames_done": int(1000 * share),
            "frames_total": 1000,
            "work": work,
            "seconds": spent,
        }
    )


@given(st.lists(works, min_size=1, max_size=6), works, st.sampled_from(Stage), st.floats(0, 1))
def test_remaining_time_is_in_the_range_if_time_is_proportional_to_work(
    timed: list[Workload], work: Workload, stage: Stage, share: float
) -> None:
    pace = Pace.of([timing(work) for work in timed], PARAMS)
    current = progress(work, stage, share)
    remaining_s = sum(stage_seconds(work).values()) - sum(current.seconds.values())
    estimate = pace.remaining(current, 1000 * work.frames, PARAMS)
    slack = 1e-6 + 0.01 * sum(stage_seconds(work).values())  # shares are rounded to thousandths
    assert estimate.low - slack <= remaining_s <= estimate.high + slack


@given(works, st.sampled_from(list(Stage)[2:]), st.floats(0, 1), st.floats(0.2, 5))
def test_the_estimate_adapts_to_a_slower_machine(work: Workload, stage: Stage, share: float, slower: float) -> None:
    pace = Pace.of([timing(work)], PARAMS)
    current = progress(work, stage, share, slower=slower)
    remaining_s = slower * sum(stage_seconds(work).values()) - sum(current.seconds.values())
    estimate = pace.remaining(current, 1000 * work.frames, PARAMS)
    slack = 1e-6 + 0.01 * slower * sum(stage_seconds(work).values())
    assert estimate.low - slack <= remaining_s <= estimate.high + slack


@given(works)
def test_the_fraction_grows_from_0_to_0_99(work: Workload) -> None:
    pace = Pace.of([timing(work)], PARAMS)
    shares = [pace.fraction(progress(work, stage, share)) for stage in Stage for share in (0.0, 0.5, 1.0)]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert shares[0] == 0
    assert shares[-1] == 0.99


@given(st.one_of(st.just([]), st.lists(works.map(timing), min_size=1)), st.integers(1, 2**31))
def test_there_is_an_estimate_without_timings(timings: list[JobTiming], video_bytes: int) -> None:
    estimate = Pace.of(timings, PARAMS).before(video_bytes, PARAMS)
    assert 0 <= estimate.low <= estimate.high < float("inf")


def test_the_estimate_of_a_whole_video_follows_from_its_file_size() -> None:
    work = Workload(frames=100, tokens=1000, key_tokens=10_000, pixels=400_000, levels=1)
    pace = Pace.of([timing(work)], PARAMS)
    estimate = pace.before(100_000, PARAMS)
    assert estimate.low < sum(stage_seconds(work).values()) < estimate.high < 4 * sum(stage_seconds(work).values())


def test_timings_of_the_same_device_and_options_are_preferred() -> None:
    work = Workload(frames=100, tokens=1000, key_tokens=10_000, pixels=400_000, levels=1)
    timings = [
        timing(work),
        timing(work, device="cuda", slower=0.01),
        timing(work, motion=Motion.on, slower=20),
    ]
    assert Pace.of(timings, PARAMS, devices=["cpu"]).timings == (timings[0],)
    assert Pace.of(timings, PARAMS, devices=["cuda"]).timings == (timings[1],)
    assert {id(timing) for timing in Pace.of(timings, PARAMS, devices=["mps"]).timings} == {
        id(timings[0]),
        id(timings[1]),
    }


def test_ranges_add_and_merge() -> None:
    assert Seconds(1, 2) + Seconds(3, 5) == Seconds(4, 7)
    assert Seconds.around([Seconds(1, 2), Seconds(0.5, 1)]) == Seconds(0.5, 2)
    assert Seconds(1, 4).middle == pytest.approx(2)


def test_the_end_of_a_real_job_is_in_the_range_half_way(client: Client, tmp_path: Path) -> None:
    shapes = [Shape("disc", 40, (48, 20), (0, 1))]
    short = write_video(tmp_path / "short.mp4", make_scene(shapes, frames=12).frames)
    long = write_video(tmp_path / "long.mp4", make_scene(shapes, frames=90, seed=1).frames)
    assert client.wait(client.submit(short, key_ratio=0.2, resolution="96x128")).status == Status.succeeded
    job = client.submit(long, key_ratio=0.2, resolution="96x128")
    assert job.eta_s is not None  # in the response to POST
    estimates = []
    while not job.status.is_terminal:
        job = client.job(job.id)
        if job.eta_s is not None:
            estimates.append((time.monotonic(), job.eta_s))
        time.sleep(0.02)
    end = time.monotonic()
    assert job.status == Status.succeeded
    half = (estimates[0][0] + end) / 2
    at, eta = min(estimates, key=lambda estimate: abs(estimate[0] - half))
    assert eta.low - 0.3 <= end - at <= eta.high + 0.3, (eta, end - at)
    assert eta.high < 30 * (end - at) + 1  # and the range is not too wide
