"""How long a job will take, as a range, from what the latest jobs of its model took.

The time of a stage is taken to be a fixed part and a part that grows with its work: frames times pixels where pixels
are read or written, frames times tokens in the backbone, query tokens times key tokens in attention and clustering.
Of one timed job the two parts cannot be told apart, so each gives a range; several give a wider one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from uvos.contract import Clustering, JobParams, JobProgress, JobTiming, Motion, SecondsRange, Stage, Workload

NEAREST = 5  # timed jobs an estimate is made of: those whose work is most like the job's
FIXED = 0.3  # of a timed stage's seconds at most this share is taken not to depend on its work
MARGIN = 1.6  # a machine that others load meanwhile, a video with more clusters
MARGIN_BEFORE_DECODING = 2.0  # the bytes of a file say little about its frames
MARGIN_UNTIMED = 5.0  # no job of the model has been timed here
SHARE_THAT_SHOWS = 0.1  # of a stage's frames: from here on its own pace counts
STAGES = tuple(Stage)

# What a job took with the packaged model on two cores: a beginning, until the service has timed one of its own.
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
        """The range that holds all of them."""
        return Seconds(min(each.low for each in ranges), max(each.high for each in ranges))

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)

    def view(self) -> SecondsRange:
        return SecondsRange(low=round(self.low, 1), high=round(self.high, 1))


@dataclass(frozen=True)
class Pace:
    """What the latest jobs of a model took."""

    timings: tuple[JobTiming, ...]
    margin: float = MARGIN

    @classmethod
    def of(cls, timings: Sequence[JobTiming], params: JobParams, *, devices: Sequence[str] = ()) -> Self:
        """The pace of the jobs most like this one: by device and by what it does, where such jobs have been timed."""
        if not timings:
            return cls((UNTIMED,), MARGIN_UNTIMED)
        here = [each for each in timings if each.device in devices] or list(timings)
        like = [each for each in here if (each.clustering, each.motion) == (params.clustering, params.motion)]
        return cls(tuple(like)) if like else cls(tuple(here), MARGIN_UNTIMED)

    def stages(self, work: Workload) -> dict[Stage, Seconds]:
        """What each stage takes for this much work."""
        nearest = sorted(self.timings, key=lambda each: _distance(each.work, work))[:NEAREST]
        return {
            stage: Seconds.around([_scaled(each, stage, work) for each in nearest]).times(1 / self.margin, self.margin)
            for stage in STAGES
        }

    def works(self, video_bytes: int, params: JobParams) -> list[Workload]:
        """What a file of this size may hold: as many frames per byte as the files of the timed jobs had.

        A part of a video, or fewer frames of it, cannot be told from bytes: the range then begins at next to none.
        """
        found = []
        for each in self.timings:
            frames = max(1, round(each.work.frames * video_bytes / max(1, each.video_bytes)))
            if params.end is not None and params.fps is not None:
                frames = min(frames, max(1, round((params.end - (params.start or 0)) * params.fps)))
            keys = max(1, round(params.key_ratio * frames))
            levels = len(params.tau)
            tokens = each.work.tokens
            sizes = {"tokens": tokens, "key_tokens": keys * tokens, "pixels": each.work.pixels, "levels": levels}
            found.append(Workload(frames=frames, **sizes))
        return found

    def before(self, video_bytes: int, params: JobParams) -> Seconds:
        """The whole job, known by its file's size alone."""
        totals = [sum(self.stages(work).values(), Seconds()) for work in self.works(video_bytes, params)]
        part = params.start is not None or params.end is not None or params.fps is not None
        low = 0.1 if part else 1 / MARGIN_BEFORE_DECODING
        return Seconds.around(totals).times(low, MARGIN_BEFORE_DECODING)

    def typical(self) -> Seconds:
        """A job of which nothing is known."""
        totals = [each.total_s for each in self.timings]
        return Seconds(min(totals) / self.margin, max(totals) * self.margin)

    def remaining(self, progress: JobProgress, video_bytes: int, params: JobParams) -> Seconds:
        """What is left of a running job: its own pace so far corrects the others'."""
        if progress.work is None:
            spent = sum(progress.seconds.values())
            whole = self.before(video_bytes, params)
            return Seconds(max(0.0, whole.low - spent), max(whole.low, whole.high - spent))
        expected = self.stages(progress.work)
        at = STAGES.index(progress.stage)
        faster, slower = self._deviation(expected, progress, at)
        later = sum((expected[stage] for stage in STAGES[at + 1 :]), Seconds()).times(faster, slower)
        return _rest_of_stage(expected[progress.stage].times(faster, slower), progress) + later

    def fraction(self, progress: JobProgress) -> float | None:
        """The share of the whole that is done; None before the work is known."""
        if progress.work is None:
            return None
        expected = {stage: seconds.middle for stage, seconds in self.stages(progress.work).items()}
        at = STAGES.index(progress.stage)
        done = sum(expected[stage] for stage in STAGES[:at]) + _share(progress) * expected[progress.stage]
        return min(0.99, done / max(1e-9, sum(expected.values())))

    def _deviation(self, expected: dict[Stage, Seconds], progress: JobProgress, at: int) -> tuple[float, float]:
        """How far the stages that are done were from what was expected: (at most 1, at least 1)."""
        done = STAGES[:at]
        wanted = sum(expected[stage].middle for stage in done)
        if wanted <= 0:
            return 1.0, 1.0
        ratio = min(10.0, max(0.1, sum(progress.seconds.get(stage, 0.0) for stage in done) / wanted))
        return min(1.0, ratio), max(1.0, ratio)


def _rest_of_stage(expected: Seconds, progress: JobProgress) -> Seconds:
    share = _share(progress)
    rest = expected.times(1 - share, 1 - share)
    if share < SHARE_THAT_SHOWS:
        return rest
    observed = progress.seconds.get(progress.stage, 0.0) * (1 - share) / share
    return Seconds(min(rest.low, observed) if share < 0.5 else observed / MARGIN, max(rest.high, observed * MARGIN))


def _share(progress: JobProgress) -> float:
    return min(1.0, progress.frames_done / progress.frames_total) if progress.frames_total else 0.0


def _units(stage: Stage, work: Workload) -> float:
    """What the time of a stage grows with."""
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
    """A timed stage at another amount of work: between growing with it and growing less by the fixed share."""
    seconds = timing.seconds.get(stage, 0.0)
    grown = seconds * _units(stage, work) / _units(stage, timing.work)
    damped = seconds * FIXED + grown * (1 - FIXED)
    return Seconds(min(grown, damped), max(grown, damped))


def _distance(one: Workload, other: Workload) -> float:
    return sum(abs(math.log(_units(stage, one) / _units(stage, other))) for stage in STAGES)
