"""Estimate how long a running job will take, from the timings of earlier jobs of its model and from its own speed.

The time of a stage is modelled as c * units^p: frames × pixels where pixels are read or written, frames × tokens in the
backbone and for motion, query tokens × key tokens in attention and clustering. Each of the nearest timings predicts the
stage with its own c; the estimate is their median. The stages that are done, and the share of the current one, correct
it for the machine and the video.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from uvos.contract import Clustering, JobParams, JobProgress, JobTiming, Motion, SecondsRange, Stage, Workload

NEAREST = 5  # timings per estimate: those whose work is closest to the job's
EXPONENT = 0.9  # p: a part of each stage does not grow with its work
MAX_CORRECTION = 10.0  # of the timings by the job's own speed
MIN_MEASURED_SHARE = 0.1  # of the expected time, before the job's own speed is used
MIN_OBSERVED_SHARE = 0.1  # of a stage's frames, before the stage's own speed is used
MARGIN = 1.3  # half-width of the range as a factor, with timings of similar jobs
MARGIN_PER_DISTANCE = 0.05  # added for each e-fold that the work differs from that of the nearest timing
MAX_MARGIN = 2.0
# Without timings of this model and these options, an estimate needs this share of the expected time to be measured.
MIN_MEASURED_SHARE_UNTIMED = 0.3
STAGES = tuple(Stage)

# A job with the packaged model on two CPU cores; used until the service has timings of its own.
UNTIMED = JobTiming(
    model="tiny",
    device="cpu",
    clustering=Clustering.algorithm1,
    motion=Motion.on,
    video_bytes=400_000,
    work=Workload(frames=48, tokens=1152, key_tokens=5760, pixels=480 * 854, levels=1),
    seconds={
        Stage.decode: 1.0,
        Stage.motion: 2.0,
        Stage.features: 1.5,
        Stage.attention: 3.0,
        Stage.clustering: 2.0,
        Stage.masks: 2.0,
    },
)


@dataclass(frozen=True)
class Pace:
    """The timings that estimates for a job are made from."""

    timings: tuple[JobTiming, ...]
    is_known: bool = True
    """Whether they are of this model with these options."""

    @classmethod
    def of(cls, timings: Sequence[JobTiming], params: JobParams, *, devices: Sequence[str] = ()) -> Self:
        """Select the timings with the same device, clustering and motion as the job, as far as there are any."""
        if not timings:
            return cls((UNTIMED,), is_known=False)
        same_device = [timing for timing in timings if timing.device in devices] or list(timings)
        options = (params.clustering, params.motion)
        same_options = [timing for timing in same_device if (timing.clustering, timing.motion) == options]
        return cls(tuple(same_options)) if same_options else cls(tuple(same_device), is_known=False)

    def stages(self, work: Workload) -> dict[Stage, float]:
        """The expected seconds of each stage for this amount of work."""
        nearest = sorted(self.timings, key=lambda timing: _distance(timing.work, work))[:NEAREST]
        return {stage: statistics.median(_scaled(timing, stage, work) for timing in nearest) for stage in STAGES}

    def remaining(self, progress: JobProgress) -> SecondsRange | None:
        """The remaining seconds of a running job; None until they are known well enough."""
        if progress.work is None:
            return None
        expected = self.stages(progress.work)
        index, share = STAGES.index(progress.stage), _share(progress)
        done_s = sum(expected[stage] for stage in STAGES[:index])
        measured = (done_s + share * expected[progress.stage]) / max(1e-9, sum(expected.values()))
        if not self.is_known and measured < MIN_MEASURED_SHARE_UNTIMED:
            return None
        spent_s = sum(progress.seconds.get(stage, 0.0) for stage in STAGES[:index])
        correction = 1.0
        if done_s > MIN_MEASURED_SHARE * sum(expected.values()):
            correction = min(MAX_CORRECTION, max(1 / MAX_CORRECTION, spent_s / done_s))
        current_s = expected[progress.stage] * correction
        if share >= MIN_OBSERVED_SHARE:
            observed_s = progress.seconds.get(progress.stage, 0.0) / share
            current_s = share * observed_s + (1 - share) * current_s
        later_s = correction * sum(expected[stage] for stage in STAGES[index + 1 :])
        return self._range((1 - share) * current_s + later_s, progress.work)

    def fraction(self, progress: JobProgress) -> float | None:
        """The share of the job that is done; None before the work is known."""
        if progress.work is None:
            return None
        expected = self.stages(progress.work)
        index = STAGES.index(progress.stage)
        done = sum(expected[stage] for stage in STAGES[:index]) + _share(progress) * expected[progress.stage]
        return min(0.99, done / max(1e-9, sum(expected.values())))

    def _range(self, seconds: float, work: Workload) -> SecondsRange:
        margin = MAX_MARGIN
        if self.is_known:
            distance = min(_distance(timing.work, work) for timing in self.timings)
            margin = min(MAX_MARGIN, MARGIN + MARGIN_PER_DISTANCE * distance)
        low, high = seconds / margin, seconds * margin
        return SecondsRange(median=round(seconds, 1), low=round(low, 1), high=round(high, 1))


def _share(progress: JobProgress) -> float:
    return min(1.0, progress.frames_done / progress.frames_total) if progress.frames_total else 0.0


def _units(stage: Stage, work: Workload) -> float:
    """The quantity that the time of a stage grows with."""
    match stage:
        case Stage.decode:
            return work.frames * work.pixels
        case Stage.motion | Stage.features:
            return work.frames * work.tokens
        case Stage.attention | Stage.clustering:
            return work.frames * work.tokens * work.key_tokens
        case Stage.masks:
            return work.frames * work.pixels * work.levels


def _scaled(timing: JobTiming, stage: Stage, work: Workload) -> float:
    """Seconds of a timed stage, scaled to another amount of work."""
    growth: float = (_units(stage, work) / _units(stage, timing.work)) ** EXPONENT
    return timing.seconds.get(stage, 0.0) * growth


def _distance(first: Workload, second: Workload) -> float:
    return sum(abs(math.log(_units(stage, first) / _units(stage, second))) for stage in STAGES) / len(STAGES)
