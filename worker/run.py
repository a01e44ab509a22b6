"""The description of one segmentation: input, parameters, model, limits and callbacks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from uvos.contract import Clustering, JobParams, Stage, Workload, level_name
from worker.models.loading import LoadedModel
from worker.video.decode import FrameSize
from worker.video.request import DecodeLimits, DecodeRequest, VideoPart

OnProgress = Callable[[Stage, int, int | None], None]
"""Called with the stage, its frames done and all frames, at least every second or so; an exception it raises cancels
the run."""


@dataclass(frozen=True)
class Budget:
    """Limits of a run."""

    decode: DecodeLimits = field(default_factory=DecodeLimits)
    memory_bytes: int = 6 * 2**30
    """For centroids and attention rows kept in memory."""
    max_key_tokens: int = 40_000
    """The number of key frames is lowered to stay below it."""


@dataclass(frozen=True)
class Extras:
    """Additional outputs."""

    tokens: bool = False
    """`tokens.npz`: the cluster of every token before background is separated, and its motion energy if computed."""
    views: bool = False
    """`levels/<tau>/{single,multi}/00000.png …`: results of both modes with `background=auto`, for the evaluation."""
    rounds: bool = False
    """`levels/<tau>/rounds/<round>/00000.png …`: the groups after each round of the clustering, on patches."""
    source: bool = False
    """`source.mp4` and `thumbnail.jpg`: the segmented frames, so that they stay with the result."""


def ignore_progress(stage: Stage, done: int, total: int | None) -> None:
    """The default of `SegmentationRun.on_progress`."""


@dataclass(frozen=True, kw_only=True)
class SegmentationRun:
    """One segmentation.

    Attributes:
        source: A video file, or a folder of frames.
        params: Parameters, defaults filled in.
        model: The loaded model.
        out: An existing folder for the result.
        budget: Limits; a run that exceeds them fails.
        name: Name of the video in the manifest; default: the file's.
        job_id: For the manifest.
        extras: Additional outputs.
        on_progress: Receives progress; may cancel.
        on_workload: Receives the size of the job once the video is decoded.
        on_preview: Called when `preview.jpg`, a first coarse result, is written; None: no preview.
    """

    source: Path
    params: JobParams
    model: LoadedModel
    out: Path
    budget: Budget = field(default_factory=Budget)
    name: str | None = None
    job_id: str | None = None
    extras: Extras = field(default_factory=Extras)
    on_progress: OnProgress = ignore_progress
    on_workload: Callable[[Workload], None] | None = None
    on_preview: Callable[[], None] | None = None

    @property
    def video_name(self) -> str:
        return self.name or self.source.stem

    @property
    def decode_request(self) -> DecodeRequest:
        part = VideoPart(self.params.start, self.params.end, self.params.fps)
        return DecodeRequest(self.source, part, self.budget.decode)

    @property
    def frame_size(self) -> FrameSize:
        # The released procedure resizes frames itself, bilinearly and without antialiasing.
        native = self.params.clustering is Clustering.windowed
        return FrameSize(self.model.entry.short_side, self.model.backbone.patch, self.params.resolution, native)

    def level_folder(self, tau: float) -> Path:
        return self.out / "levels" / level_name(tau)

    def progress_of(self, stage: Stage) -> Callable[[int, int | None], None]:
        """`on_progress` for one stage."""
        return lambda done, total: self.on_progress(stage, done, total)
