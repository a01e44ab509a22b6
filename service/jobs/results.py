"""The files of a published result, by level and format."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from uvos.contract import JobRecord, Manifest, ManifestLevel, RleDocument, level_name
from uvos.errors import ResultNotFound


@dataclass(frozen=True)
class Result:
    """One job's published files: what workers wrote, found by name."""

    folder: Path
    job: JobRecord

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json(self.manifest_path.read_bytes())

    def manifest_level(self, tau: float | None) -> ManifestLevel:
        """What the manifest tells of a level.

        Raises:
            ResultNotFound: the job has no such level.
        """
        name = self.level(tau).name
        return next(each for each in self.manifest.levels if each.name == name)

    def tag(self, tau: float | None, name: str) -> str:
        """The ETag of what is made from a level's run lengths: neither they nor this version ever change."""
        parts = (version("uvos"), self.job.id, self.folder.name, self.level(tau).name, name)
        return f'"{hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]}"'

    def level(self, tau: float | None) -> Path:
        """The folder of the level at `tau`; the first level where None.

        Raises:
            ResultNotFound: the job has no such level.
        """
        names = [level_name(value) for value in self.job.params.tau]
        wanted = names[0] if tau is None else level_name(tau)
        if wanted not in names:
            raise ResultNotFound(f"this job has no level at tau {wanted}", limit=", ".join(names), actual=wanted)
        return self.folder / "levels" / wanted

    def file(self, tau: float | None, name: str) -> Path:
        """A file of a level.

        Raises:
            ResultNotFound: the job was not asked for it.
        """
        path = self.level(tau) / name
        if not path.is_file():
            formats = ", ".join(one.value for one in self.job.params.format)
            raise ResultNotFound(f"this job has no {name}: it was asked for {formats}", limit=formats, actual=name)
        return path

    def rle(self, tau: float | None) -> RleDocument:
        """The run lengths of a level."""
        return RleDocument.model_validate(json.loads(self.file(tau, "rle.json").read_bytes()))
