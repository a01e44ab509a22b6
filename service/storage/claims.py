"""The claim log of a job: an append-only sequence of numbered entries that decides who may end the job.

Entry n is created exactly once (`Store.create`), so of two processes that append entry n exactly one succeeds. An
execution that holds entry n may append the end of the job only as entry n + 1. An execution that was superseded,
however long it was suspended, therefore cannot publish a result. A cancellation is one more append.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from service.storage.store import Store
from uvos.contract import JobEnd


class ExecutionClaim(BaseModel):
    """An execution began."""

    kind: Literal["execution"] = "execution"
    execution: str


class EndClaim(JobEnd):
    """The job ended; always the last entry. `end.json` holds a copy of it."""

    kind: Literal["end"] = "end"


@dataclass(frozen=True)
class UnreadableClaim:
    """An entry that is damaged; it still takes its number."""

    key: str


Claim = ExecutionClaim | EndClaim
CLAIM: TypeAdapter[Claim] = TypeAdapter(Annotated[Claim, Field(discriminator="kind")])


class ClaimLog:
    """The log of one job.

    In a folder, every method raises `FileNotFoundError` when the job has been deleted.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def last(self) -> tuple[int, Claim | UnreadableClaim | None]:
        """The number and content of the last entry; (0, None) for an empty log."""
        number = max(self._numbers(), default=0)
        return number, self.read(number) if number else None

    def append(self, claim: Claim, *, after: int | None = None) -> int | None:
        """Append an entry unless the job has ended.

        Args:
            claim: The entry; no other call appends an equal one.
            after: Append only if this is the number of the last entry; None appends after any entry but an end.

        Returns:
            The number of the new entry; None if the job has ended, or if `after` is no longer the last entry.
        """
        data = claim.model_dump_json(exclude_none=True).encode()
        number, last = self._last_or_none()
        while True:
            if isinstance(last, EndClaim) or after not in (None, number):
                return None
            if self._store.create(self._key(number + 1), data):
                return number + 1
            number, last = self.last()

    def _last_or_none(self) -> tuple[int, Claim | UnreadableClaim | None]:
        """The last entry; (0, None) also if there is no folder yet."""
        try:
            return self.last()
        except FileNotFoundError:
            return 0, None

    def has_entry_after(self, number: int) -> bool:
        return self._store.exists(self._key(number + 1))

    def hand_back(self, number: int) -> None:
        """Record that the execution of this entry stopped for a reason outside the job."""
        self._store.put(f"{self._key(number)}.back", b"")

    def unfinished(self) -> int:
        """The number of entries that have not been handed back."""
        names = self._store.names(self._prefix)
        return sum(name.isdigit() for name in names) - sum(name.endswith(".back") for name in names)

    def entries(self) -> list[Claim | UnreadableClaim]:
        """All entries in order."""
        return [self.read(number) for number in sorted(self._numbers())]

    def read(self, number: int) -> Claim | UnreadableClaim:
        """The content of an entry."""
        key = self._key(number)
        try:
            return CLAIM.validate_json(self._store.read(key))
        except ValidationError:
            return UnreadableClaim(key)

    def _numbers(self) -> list[int]:
        return [int(name) for name in self._store.names(self._prefix) if name.isdigit()]

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number}"
