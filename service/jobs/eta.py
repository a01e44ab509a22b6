"""Estimate how long a job will take, as a range, from the timings of the latest jobs of its model.

The time of a stage is modelled as a constant plus a term that is proportional to its work: frames × pixels where pixels
are read or written, frames × tokens in the backbone, query tokens × key tokens in attention and clustering. One timing
does not separate the two terms, so it gives a range; the ranges of several timings are merged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from uvos.contract import Clustering, JobParams, JobProgress, JobTiming, Motion, SecondsRange, Stage, Workload

NEAREST = 5  # timings per estimate: those whose work is closest to the job's
MAX_CONSTANT_SHARE = 0.3  # assumed upper bound of the constant term, as a share of a timed stage
MARGIN = 1.6  # other load on the machine, videos with more clusters
MARGIN_BEFORE_DECODING = 2.0  # file size is a weak predictor of the number of frames
MARGIN_UNTIMED = 5.0  # without timings of this model and these options
MIN_OBSERVED_SHARE = 0.1  # of a stage's frames, before its own speed is used
STAGES = tuple(Stage)

# A job with the packaged model on two CPU cores; used until the service has timings of its own.
UNTIMED = JobTiming(
    model="tiny",
    device="cpu",
    clustering=Clustering.algorithm1,
    motion=Motion.on,
    video_bytes=400_000,
    work=Workload(frames=48, tokens=1152, key_tokens=5760, pixels=480 * 854, levels=1),
    seconds={Stage.decode: 1.0, Stage.features: 1.5, Stage.attention: 3.0, Stage.clustering: 2.0, Stage.masks: 2.0},
)


@dataclass(frozen=True)
class Seconds:
    """A range of seconds."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.low + other.low, self.high + other.high)

    def times(self, low: float, high: float) -> "Seconds":
        return Seconds(self.low * low, self.high * high)

    @classmethod
    def around(cls, ranges: Sequence[Self]) -> "Seconds":
        """The smallest range that contains all `ranges`."""
        return Seconds(min(item.low for item in ranges), max(item.high for item in ranges))

    @property
    def middle(self) -> float:
        """The geometric mean of the bounds."""
        return math.sqrt(self.low * self.high)

    def view(self) -> SecondsRange:
        return SecondsRange(low=round(self.low, 1), high=round(self.high, 1))


@dataclass(frozen=True)
class Pace:
    """The timings that estimates for a job are made from."""

    timings: tuple[JobTiming, ...]
    margin: float = MARGIN

    @classmethod
    def of(cls, timings: Sequence[JobTiming], params: JobParams, *, devices: Sequence[str] = ()) -> Self:
        """Select the timings with the same device, clustering and motion as the job, as far as there are any."""
        if not timings:
            return cls((UNTIMED,), MARGIN_UNTIMED)
        same_device = [timing for timing in timings if timing.device in devices] or list(timings)
        options = (params.clustering, params.motion)
        same_options = [timing for timing in same_device if (timing.clustering, timing.motion) == options]
        return cls(tuple(same_options)) if same_options else cls(tuple(same_device), MARGIN_UNTIMED)

    def stages(self, work: Workload) -> dict[Stage, Seconds]:
        """The time of each stage for this amount of work."""
        nearest = sorted(self.timings, key=lambda timing: _distance(timing.work, work))[:NEAREST]
        return {
            stage: Seconds.around([_scaled(timing, stage, work) for timing in nearest]).times(
                1 / self.margin, self.margin
            )
            for stage in STAGES
        }

    def works(self, video_bytes: int, params: JobParams) -> list[Workload]:
        """The possible amounts of work of a file of this size, one per timing, assuming the same frames per byte."""
        works = []
        for timing in self.timings:
            frames = max(1, round(timing.work.frames * video_bytes / max(1, timing.video_bytes)))
            if params.end is not None and params.fps is not None:
                frames = min(frames, max(1, round((params.end - (params.start or 0)) * params.fps)))
            keys = max(1, round(params.key_ratio * frames))
            levels = len(params.tau)
            tokens = timing.work.tokens
            sizes = {"tokens": tokens, "key_tokens": keys * tokens, "pixels": timing.work.pixels, "levels": levels}
            works.append(Workload(frames=frames, **sizes))
        return works

    def before(self, video_bytes: int, params: JobParams) -> Seconds:
        """The time of a whole job of which only parameters and file size are known.

        File size does not say how much of the video `start`, `end` and `fps` select, so these lower the lower bound.
        """
        totals = [sum(self.stages(work).values(), Seconds()) for work in self.works(video_bytes, params)]
        is_part = params.start is not None or params.end is not None or params.fps is not None
        low = 0.1 if is_part else 1 / MARGIN_BEFORE_DECODING
        return Seconds.around(totals).times(low, MARGIN_BEFORE_DECODING)

    def typical(self) -> Seconds:
        """The time of a job of which nothing is known."""
        totals = [timing.total_s for timing in self.timings]
        return Seconds(min(totals) / self.margin, max(totals) * self.margin)

    def remaining(self, progress: JobProgress, video_bytes: int, params: JobParams) -> Seconds:
        """The remaining time of a running job; its own speed so far corrects the timings of others."""
        if progress.work is None:
            spent = sum(progress.seconds.values())
            whole = self.before(video_bytes, params)
            return Seconds(max(0.0, whole.low - spent), max(whole.low, whole.high - spent))
        expected = self.stages(progress.work)
        index = STAGES.index(progress.stage)
        faster, slower = self._deviation(expected, progress, index)
        later = sum((expected[stage] for stage in STAGES[index + 1 :]), Seconds()).times(faster, slower)
        return _rest_of_stage(expected[progress.stage].times(faster, slower), progress) + later

    def fraction(self, progress: JobProgress) -> float | None:
        """The share of the job that is done; None before the work is known."""
        if progress.work is None:
            return None
        expected = {stage: seconds.middle for stage, seconds in self.stages(progress.work).items()}
        index = STAGES.index(progress.stage)
        done = sum(expected[stage] for stage in STAGES[:index]) + _share(progress) * expected[progress.stage]
        return min(0.99, done / max(1e-9, sum(expected.values())))

    def _deviation(self, expected: dict[Stage, Seconds], progress: JobProgress, index: int) -> tuple[float, float]:
        """Actual over expected time of the completed stages, as the bounds (at most 1, at least 1)."""
        done = STAGES[:index]
        expected_s = sum(expected[stage].middle for stage in done)
        if expected_s <= 0:
            return 1.0, 1.0
        ratio = min(10.0, max(0.1, sum(progress.seconds.get(stage, 0.0) for stage in done) / expected_s))
        return min(1.0, ratio), max(1.0, ratio)


def _rest_of_stage(expected: Seconds, progress: JobProgress) -> Seconds:
    share = _share(progress)
    rest = expected.times(1 - share, 1 - share)
    if share < MIN_OBSERVED_SHARE:
        return rest
    observed = progress.seconds.get(progress.stage, 0.0) * (1 - share) / share
    return Seconds(min(rest.low, observed) if share < 0.5 else observed / MARGIN, max(rest.high, observed * MARGIN))


def _share(progress: JobProgress) -> float:
    return min(1.0, progress.frames_done / progress.frames_total) if progress.frames_total else 0.0


def _units(stage: Stage, work: Workload) -> float:
    """The quantity that the time of a stage is proportional to."""
    match stage:
        case Stage.decode:
            return work.frames * work.pixels
        case Stage.features:
            return work.frames * work.tokens
        case Stage.attention | Stage.clustering:
            return work.frames * work.tokens * work.key_tokens
        case Stage.masks:
            return work.frames * work.pixels * work.levels


def _scaled(timing: JobTiming, stage: Stage, work: Workload) -> Seconds:
    """A timed stage scaled to another amount of work, with the constant term between 0 and `MAX_CONSTANT_SHARE`."""
    seconds = timing.seconds.get(stage, 0.0)
    scaled = seconds * _units(stage, work) / _units(stage, timing.work)
    damped = seconds * MAX_CONSTANT_SHARE + scaled * (1 - MAX_CONSTANT_SHARE)
    return Seconds(min(scaled, damped), max(scaled, damped))


def _distance(first: Workload, second: Workload) -> float:
    return sum(abs(math.log(_units(stage, first) / _units(stage, second))) for stage in STAGES)
