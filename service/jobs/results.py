"""The files of a published result, and its levels with the edits of their objects."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.storage.edits import EditLog, EditVersion
from service.storage.folder import Storage
from uvos.contract import JobRecord, Manifest, ManifestLevel, RleDocument, level_name
from uvos.edits import EditedObjects, EditState, ObjectPatch, Undo, applied, edited_objects, operated
from uvos.errors import EditConflict, InvalidEdit, JobDamaged, JobNotFound, ResultNotFound

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Result:
    """The published files of one job."""

    folder: Path
    job: JobRecord
    storage: Storage

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @cached_property
    def manifest(self) -> Manifest:
        return _parse(Manifest, self.manifest_path)

    def level(self, tau: float | None, *, original: bool = False) -> "ResultLevel":
        """The level at `tau`, the first one if None; with the edits of its objects unless `original`.

        Raises:
            ResultNotFound: The job has no such level.
        """
        names = [level_name(value) for value in self.job.params.tau]
        name = names[0] if tau is None else level_name(tau)
        if name not in names:
            raise ResultNotFound(f"this job has no level at tau {name}", limit=", ".join(names), actual=name)
        log = self.storage.edit_log(self.job.id, name)
        return ResultLevel(self, name, log, EditVersion() if original else log.latest(), original)

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


@dataclass(frozen=True)
class ResultLevel:
    """One level of a result.

    Attributes:
        result: The result.
        name: Name of the level.
        log: The edits of its objects.
        edits: The version that applies.
        original: Whether the original was requested, whatever edits there are.
    """

    result: Result
    name: str
    log: EditLog
    edits: EditVersion
    original: bool

    @property
    def is_edited(self) -> bool:
        return self.edits.state != EditState()

    def tag(self, name: str) -> str:
        """The ETag of a document of this level; constant for a job, its edits and a version of this package."""
        parts = (version("uvos"), self.result.job.id, self.result.folder.name, self.name, name)
        edits = (self.edits.state.model_dump_json(),) if self.is_edited else ()
        return f'"{hashlib.sha256("/".join((*parts, *edits)).encode()).hexdigest()[:32]}"'

    def file(self, name: str) -> Path:
        """An original file of the level.

        Raises:
            ResultNotFound: The format was not requested.
        """
        path = self.stored(name)
        if path is None:
            formats = ", ".join(item.value for item in self.result.job.params.format)
            raise ResultNotFound(
                f"this job has no {name}: the requested formats are {formats}", limit=formats, actual=name
            )
        return path

    def stored(self, name: str) -> Path | None:
        """An original file of the level; None if there is none."""
        path = self.result.folder / "levels" / self.name / name
        return path if path.is_file() else None

    @property
    def manifest(self) -> Manifest:
        return self.result.manifest

    @cached_property
    def document(self) -> RleDocument:
        """The masks, with the edits."""
        return self._applied[0]

    @cached_property
    def summary(self) -> ManifestLevel:
        """The manifest's entry of the level, with the edited objects."""
        return self._applied[1]

    @cached_property
    def _applied(self) -> tuple[RleDocument, ManifestLevel]:
        if not self.is_edited:
            return self._original_document, self._original_summary
        return applied(self.edits.state, self._original_document, self._original_summary)

    @cached_property
    def _original_document(self) -> RleDocument:
        return _parse(RleDocument, self.file("rle.json"))

    @property
    def _original_summary(self) -> ManifestLevel:
        return next(level for level in self.manifest.levels if level.name == self.name)

    def objects(self) -> EditedObjects:
        """The objects with the edits, hidden ones included."""
        return EditedObjects(
            tau=self._original_summary.tau,
            version=self.edits.number,
            can_undo=self.edits.undo_to is not None,
            objects=edited_objects(self.edits.state, self._original_document, self._original_summary),
        )

    def edit(self, patch: ObjectPatch, expected_version: int | None) -> "ResultLevel":
        """Apply operations to the objects; the level with the new version.

        Args:
            patch: The operations.
            expected_version: Version that the client knows; None applies them to the latest one.

        Raises:
            EditConflict: The latest version is another.
            InvalidEdit: An object does not exist, or there is nothing to undo or to merge.
            JobNotFound: The job has been deleted.
        """
        level = self
        while True:
            if expected_version not in (None, level.edits.number):
                raise EditConflict(
                    f"the objects of this level have version {level.edits.number}, If-Match expects {expected_version}",
                    limit=level.edits.number,
                    actual=expected_version,
                )
            try:
                appended = level._append(patch)
            except FileNotFoundError:
                raise JobNotFound(f"there is no job {self.result.job.id!r}") from None
            if appended is not None:
                return replace(level, edits=appended)
            level = replace(level, edits=self.log.latest())  # another request was first

    def _append(self, patch: ObjectPatch) -> EditVersion | None:
        if not isinstance(patch.operations[0], Undo):
            return self.log.append(self.edits, operated(self.edits.state, patch.operations, self._original_summary))
        if self.edits.undo_to is None:
            raise InvalidEdit("there is nothing to undo: the objects of this level are the original ones")
        return self.log.undo(self.edits)


def _parse(model: type[ModelT], path: Path) -> ModelT:
    """Parse a result file.

    Raises:
        JobDamaged: The file is damaged.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise JobDamaged(f"the result file {path.name} of this job is damaged and cannot be read") from error
