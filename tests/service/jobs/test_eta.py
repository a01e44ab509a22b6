"""Estimates are close to the actual time: of synthetic jobs, and of a real job half-way."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.eta import Pace
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
        Stage.motion: 1e-5 * work.frames * work.tokens,
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


@given(works, st.sampled_from(Stage), st.floats(0, 1))
def test_the_median_is_exact_for_a_job_like_an_earlier_one(work: Workload, stage: Stage, share: float) -> None:
    current = progress(work, stage, share)
    total_s = sum(stage_seconds(work).values())
    estimate = Pace.of([timing(work)], PARAMS).remaining(current)
    assert estimate is not None
    remaining_s = total_s - sum(current.seconds.values())
    assert estimate.median == pytest.approx(remaining_s, abs=0.1 + 0.01 * total_s)  # rounded
    assert estimate.low <= estimate.median <= estimate.high <= 1.5 * estimate.median + 0.1


@given(st.integers(20, 500), st.integers(20, 500), st.floats(0.2, 5))
def test_the_estimate_adapts_to_other_work_and_a_slower_machine(frames: int, other: int, slower: float) -> None:
    work, timed = (
        Workload(frames=count, tokens=1000, key_tokens=100 * count, pixels=400_000, levels=1)
        for count in (frames, other)
    )
    stage, share = _half_way(work)
    current = progress(work, stage, share, slower=slower)
    remaining_s = slower * sum(stage_seconds(work).values()) - sum(current.seconds.values())
    estimate = Pace.of([timing(timed)], PARAMS).remaining(current)
    assert estimate is not None
    assert 0.7 * remaining_s - 0.1 <= estimate.median <= 1.3 * remaining_s + 0.1


def _half_way(work: Workload) -> tuple[Stage, float]:
    """The stage and its share when half of the time has passed."""
    seconds = stage_seconds(work)
    left = sum(seconds.values()) / 2
    for stage, value in seconds.items():
        if left <= value:
            return stage, left / value
        left -= value
    raise AssertionError


def test_nothing_is_estimated_before_it_is_known() -> None:
    work = Workload(frames=100, tokens=1000, key_tokens=10_000, pixels=400_000, levels=1)
    untimed, timed = Pace.of([], PARAMS), Pace.of([timing(work)], PARAMS)
    early, late = progress(work, Stage.features, 0.1), progress(work, Stage.masks, 0.5)
    assert untimed.remaining(early) is None
    assert timed.remaining(early) is not None
    assert untimed.remaining(late) is not None
    assert timed.remaining(early.model_copy(update={"work": None})) is None


@given(works)
def test_the_fraction_grows_from_0_to_0_99(work: Workload) -> None:
    pace = Pace.of([timing(work)], PARAMS)
    shares = [pace.fraction(progress(work, stage, share)) for stage in Stage for share in (0.0, 0.5, 1.0)]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert shares[0] == 0
    assert shares[-1] == 0.99


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


def test_the_end_of_a_real_job_is_in_the_range_half_way(client: Client, tmp_path: Path) -> None:
    shapes = [Shape("disc", 40, (48, 20), (0, 1))]
    short = write_video(tmp_path / "short.mp4", make_scene(shapes, frames=12).frames)
    long = write_video(tmp_path / "long.mp4", make_scene(shapes, frames=90, seed=1).frames)
    for _ in range(3):  # the first job of a service compiles kernels
        assert client.wait(client.submit(short, key_ratio=0.2, resolution="96x128")).status == Status.succeeded
    job = client.submit(long, key_ratio=0.2, resolution="96x128")
    began = time.monotonic()
    estimates = []
    while not job.status.is_terminal:
        job = client.job(job.id)
        if job.eta_s is not None:
            estimates.append((time.monotonic(), job.eta_s))
        time.sleep(0.02)
    end = time.monotonic()
    assert job.status == Status.succeeded
    at, eta = min(estimates, key=lambda estimate: abs(estimate[0] - (began + end) / 2))
    assert 0.4 * (end - at) - 0.5 <= eta.median <= 2.5 * (end - at) + 0.5, (eta, end - at)
    assert eta.low <= eta.median <= eta.high <= 2 * eta.median
