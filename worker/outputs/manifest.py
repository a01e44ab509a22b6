"""The manifest of a result: everything needed to reproduce it, written when the result is complete."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from uvos.contract import (
    Manifest,
    ManifestLevel,
    ManifestModel,
    ManifestObject,
    ManifestRound,
    ManifestVideo,
    level_name,
)
from uvos.palette import MAX_PALETTE_ID, color
from worker.method.features import KeyFrames
from worker.outputs.drawing import LevelMasks
from worker.run import SegmentationRun
from worker.video.decode import DecodedVideo

VERSIONED = ("uvos", "torch", "timm", "av", "numpy")


def write_manifest(
    run: SegmentationRun,
    video: DecodedVideo,
    key_frames: KeyFrames,
    levels: list[LevelMasks],
    timings_s: dict[str, float],
) -> Manifest:
    """Write `manifest.json` and return it."""
    model, info = run.model, video.info
    size = run.frame_size.model_size(video.clip.video_size)
    grid = model.backbone.grid(size)
    manifest = Manifest(
        job_id=run.job_id,
        created_at=datetime.now(UTC),
        video=ManifestVideo(
            name=run.video_name,
            pts_s=video.clip.pts_s.tolist(),
            source_frames=None if video.clip.source_frames is None else list(video.clip.source_frames),
            **asdict(info),
        ),
        params=run.params.model_dump(mode="json"),
        model=ManifestModel(
            name=model.entry.name,
            weights=model.weights_source,
            sha256=model.sha256,
            version=model.version,
            affinity=model.affinity(run.params.affinity),
        ),
        versions={package: version(package) for package in VERSIONED},
        device=str(model.device),
        dtype=model.dtype,
        resolution=f"{size[0]}x{size[1]}",
        grid=f"{grid.height}x{grid.width}",
        key_frames=key_frames.indices,
        timings_s=timings_s,
        warnings=[*video.warnings, *key_frames.warnings, *_level_warnings(levels)],
        sandbox=list(video.sandbox),
        levels=[_level(run, level) for level in levels],
    )
    (run.out / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return manifest


def _level_warnings(levels: list[LevelMasks]) -> list[str]:
    messages = ((level_name(level.assignment.level.tau), _level_warning(level)) for level in levels)
    return [f"level {name} {message}" for name, message in messages if message]


def _level_warning(level: LevelMasks) -> str | None:
    objects = level.decision.objects
    if len(objects) > MAX_PALETTE_ID:
        return f"has {len(objects)} objects: its PNGs are 16-bit grey"
    if not objects:
        return "has no objects: nothing stands apart from the background; background=keep returns all clusters"
    if level.decision.nothing_stands_apart:
        share = f"{objects[0].area:.0%} of the frame"
        return f"is one object that covers {share}: nothing stands apart; a smaller tau separates more"
    return None


def _level(run: SegmentationRun, level: LevelMasks) -> ManifestLevel:
    clusters = level.assignment.level
    return ManifestLevel(
        tau=clusters.tau,
        name=level_name(clusters.tau),
        clusters=len(clusters.centroids),
        objects=[
            ManifestObject(color=color(video_object.id), **asdict(video_object))
            for video_object in level.decision.objects
        ],
        background_clusters=level.decision.background_clusters,
        nothing_stands_apart=level.decision.nothing_stands_apart,
        rounds=[
            ManifestRound(
                centroids=int(clustering_round.parents.max()) + 1,
                parents=clustering_round.parents.tolist() if number else [],
            )
            for number, clustering_round in enumerate(clusters.rounds)
        ],
        files=_files(run.out, run.level_folder(clusters.tau)),
    )


def _files(out: Path, folder: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in folder.rglob("*") if path.is_file())
