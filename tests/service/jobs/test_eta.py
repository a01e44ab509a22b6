"""Estimates are honest ranges: of a job like those timed, of a larger one, and of a real job half-way."""

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


def units(work: Workload) -> dict[Stage, float]:
    """A service whose stages take exactly as long as their work is large."""
    return {
        Stage.decode: 1e-8 * work.frames * work.pixels,
        Stage.features: 1e-5 * work.frames * work.tokens,
        Stage.attention: 1e-9 * work.frames * work.tokens * work.key_tokens,
        Stage.clustering: 2e-9 * work.frames * work.tokens * work.key_tokens,
        Stage.masks: 1e-8 * work.frames * work.pixels * work.levels,
    }


def timing(work: Workload, *, device: str = "cpu", motion: Motion = Motion.off, slower: float = 1.0) -> JobTiming:
    seconds = {stage: slower * value for stage, value in units(work).items()}
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
    took = {name: slower * value for name, value in units(work).items()}
    spent = {name: took[name] for name in stages[: stages.index(stage)]} | {stage: share * took[stage]}
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
def test_what_is_left_lies_in_the_range_where_time_follows_work(
    timed: list[Workload], work: Workload, stage: Stage, share: float
) -> None:
    pace = Pace.of([timing(each) for each in timed], PARAMS)
    told = progress(work, stage, share)
    left = sum(units(work).values()) - sum(told.seconds.values())
    estimate = pace.remaining(told, 1000 * work.frames, PARAMS)
    slack = 1e-6 + 0.01 * sum(units(work).values())  # shares are told in thousandths
    assert estimate.low - slack <= left <= estimate.high + slack


@given(works, st.sampled_from(list(Stage)[2:]), st.floats(0, 1), st.floats(0.2, 5))
def test_a_machine_that_is_busier_now_corrects_the_estimate(
    work: Workload, stage: Stage, share: float, slower: float
) -> None:
    pace = Pace.of([timing(work)], PARAMS)
    told = progress(work, stage, share, slower=slower)
    left = slower * sum(units(work).values()) - sum(told.seconds.values())
    estimate = pace.remaining(told, 1000 * work.frames, PARAMS)
    slack = 1e-6 + 0.01 * slower * sum(units(work).values())
    assert estimate.low - slack <= left <= estimate.high + slack


@given(works)
def test_the_share_done_grows_from_nothing_to_nearly_all(work: Workload) -> None:
    pace = Pace.of([timing(work)], PARAMS)
    shares = [pace.fraction(progress(work, stage, share)) for stage in Stage for share in (0.0, 0.5, 1.0)]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert shares[0] == 0
    assert shares[-1] == 0.99


@given(st.one_of(st.just([]), st.lists(works.map(timing), min_size=1)), st.integers(1, 2**31))
def test_there_is_an_estimate_before_anything_is_known(timings: list[JobTiming], video_bytes: int) -> None:
    estimate = Pace.of(timings, PARAMS).before(video_bytes, PARAMS)
    assert 0 <= estimate.low <= estimate.high < float("inf")


def test_the_size_of_the_file_tells_how_long_a_whole_video_takes() -> None:
    work = Workload(frames=100, tokens=1000, key_tokens=10_000, pixels=400_000, levels=1)
    pace = Pace.of([timing(work)], PARAMS)
    estimate = pace.before(100_000, PARAMS)
    assert estimate.low < sum(units(work).values()) < estimate.high < 4 * sum(units(work).values())


def test_jobs_that_did_the_same_on_the_same_device_count() -> None:
    work = Workload(frames=100, tokens=1000, key_tokens=10_000, pixels=400_000, levels=1)
    timings = [
        timing(work),
        timing(work, device="cuda", slower=0.01),
        timing(work, motion=Motion.on, slower=20),
    ]
    assert Pace.of(timings, PARAMS, devices=["cpu"]).timings == (timings[0],)
    assert Pace.of(timings, PARAMS, devices=["cuda"]).timings == (timings[1],)
    assert {id(each) for each in Pace.of(timings, PARAMS, devices=["mps"]).timings} == {
        id(timings[0]),
        id(timings[1]),
    }


def test_ranges_add_and_hold_one_another() -> None:
    assert Seconds(1, 2) + Seconds(3, 5) == Seconds(4, 7)
    assert Seconds.around([Seconds(1, 2), Seconds(0.5, 1)]) == Seconds(0.5, 2)
    assert Seconds(1, 4).middle == pytest.approx(2)


def test_half_way_through_a_real_job_its_end_lies_in_the_range(client: Client, tmp_path: Path) -> None:
    shapes = [Shape("disc", 40, (48, 20), (0, 1))]
    short = write_video(tmp_path / "short.mp4", make_scene(shapes, frames=12).frames)
    long = write_video(tmp_path / "long.mp4", make_scene(shapes, frames=90, seed=1).frames)
    assert client.wait(client.submit(short, key_ratio=0.2, resolution="96x128")).status == Status.succeeded
    job = client.submit(long, key_ratio=0.2, resolution="96x128")
    assert job.eta_s is not None  # the answer to POST has one already
    told = []
    while not job.status.is_terminal:
        job = client.job(job.id)
        if job.eta_s is not None:
            told.append((time.monotonic(), job.eta_s))
        time.sleep(0.02)
    end = time.monotonic()
    assert job.status == Status.succeeded
    half = (told[0][0] + end) / 2
    at, eta = min(told, key=lambda each: abs(each[0] - half))
    assert eta.low - 0.3 <= end - at <= eta.high + 0.3, (eta, end - at)
    assert eta.high < 30 * (end - at) + 1  # and the range says something
