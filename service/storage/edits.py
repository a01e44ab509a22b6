"""The edits of one level of a result: an append-only sequence of numbered entries, one per version.

Version n is created exactly once (`Store.create`), so of two requests that change version n - 1 exactly one
succeeds. Each entry holds the whole state, so that only the last one is read.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from service.storage.store import Store
from uvos.edits import EditRecord, EditState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditVersion:
    """A version of the edits; 0 is the original result.

    Attributes:
        number: Number of the version.
        state: What differs from the original.
        undo_to: Version that undo restores; None if there is nothing to undo.
    """

    number: int = 0
    state: EditState = field(default_factory=EditState)
    undo_to: int | None = None


class EditLog:
    """The log under one prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def latest(self) -> EditVersion:
        """The latest version; its state is that of the last readable entry."""
        numbers: list[int] = []
        with suppress(FileNotFoundError):
            numbers = sorted((int(name) for name in self._store.names(self._prefix) if name.isdigit()), reverse=True)
        for number in numbers:
            with suppress(ValidationError):
                found = self._read(number)
                return EditVersion(numbers[0], found.state, found.undo_to)
            log.error("the edits %s are damaged and cannot be read", self._key(number))
        return EditVersion(numbers[0] if numbers else 0)

    def append(self, after: EditVersion, state: EditState) -> EditVersion | None:
        """Append a state that `undo` takes back to `after`.

        Returns:
            The new version; None if `after` is no longer the latest.

        Raises:
            FileNotFoundError: the job has been deleted.
        """
        return self._append(after, state, undo_to=after.number)

    def undo(self, after: EditVersion) -> EditVersion | None:
        """Append the state before the last change that has not been taken back; None as `append`."""
        assert after.undo_to is not None
        before = EditVersion()
        if after.undo_to > 0:
            with suppress(ValidationError, FileNotFoundError):
                found = self._read(after.undo_to)
                before = EditVersion(after.undo_to, found.state, found.undo_to)
        return self._append(after, before.state, undo_to=before.undo_to)

    def _append(self, after: EditVersion, state: EditState, *, undo_to: int | None) -> EditVersion | None:
        number = after.number + 1
        record = EditRecord(at=datetime.now(UTC), state=state, undo_to=undo_to)
        if not self._store.create(self._key(number), record.model_dump_json().encode()):
            return None
        return EditVersion(number, state, undo_to)

    def _read(self, number: int) -> EditRecord:
        return EditRecord.model_validate_json(self._store.read(self._key(number)))

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number}"
