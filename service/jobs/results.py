"""The files of a published result, by level and format."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from uvos.contract import JobRecord, Manifest, ManifestLevel, RleDocument, level_name
from uvos.errors import JobDamaged, ResultNotFound

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Result:
    """The published files of one job."""

    folder: Path
    job: JobRecord

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @cached_property
    def manifest(self) -> Manifest:
        return _parse(Manifest, self.manifest_path)

    def manifest_level(self, tau: float | None) -> ManifestLevel:
        """The manifest's entry of a level.

        Raises:
            ResultNotFound: The job has no such level.
        """
        name = self.level(tau).name
        return next(level for level in self.manifest.levels if level.name == name)

    def tag(self, tau: float | None, name: str) -> str:
        """The ETag of a document derived from the RLE of a level; constant for a job and a version of this package."""
        parts = (version("uvos"), self.job.id, self.folder.name, self.level(tau).name, name)
        return f'"{hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]}"'

    def level(self, tau: float | None) -> Path:
        """The folder of the level at `tau`; the first level if None.

        Raises:
            ResultNotFound: The job has no such level.
        """
        names = [level_name(value) for value in self.job.params.tau]
        name = names[0] if tau is None else level_name(tau)
        if name not in names:
            raise ResultNotFound(f"this job has no level at tau {name}", limit=", ".join(names), actual=name)
        return self.folder / "levels" / name

    def file(self, tau: float | None, name: str) -> Path:
        """A file of a level.

        Raises:
            ResultNotFound: The format was not requested.
        """
        path = self.level(tau) / name
        if not path.is_file():
            formats = ", ".join(item.value for item in self.job.params.format)
            raise ResultNotFound(
                f"this job has no {name}: the requested formats are {formats}", limit=formats, actual=name
            )
        return path

    def shared_file(self, name: str) -> Path:
        """A file that all levels share.

        Raises:
            ResultNotFound: The job has no such file.
        """
        path = self.folder / name
        if not path.exists():
            raise ResultNotFound(f"this job has no {name}", actual=name)
        return path

    def images(self) -> Path:
        """The folder of the frames as JPEG.

        Raises:
            ResultNotFound: The format `frames` was not requested.
        """
        path = self.folder / "frames"
        if not path.is_dir():
            formats = ", ".join(item.value for item in self.job.params.format)
            raise ResultNotFound(
                f"this job has no frames: submit the video with format=frames (the requested formats are {formats})",
                limit=formats,
                actual="frames",
            )
        return path

    def rle(self, tau: float | None) -> RleDocument:
        """The RLE document of a level."""
        return _parse(RleDocument, self.file(tau, "rle.json"))


def _parse(model: type[ModelT], path: Path) -> ModelT:
    """Parse a result file.

    Raises:
        JobDamaged: The file is damaged.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise JobDamaged(f"the result file {path.name} of this job is damaged and cannot be read") from error
