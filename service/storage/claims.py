"""The claim log of a job: an append-only sequence of numbered files that decides who may end the job.

Entry n is created exactly once, as the hard link of a complete file, so of two processes that append entry n exactly
one succeeds. An execution that holds entry n may append the end of the job only as entry n + 1. An execution that was
superseded, however long it was suspended, therefore cannot publish a result. A cancellation is one more append.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from service.storage.durable import create_once
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
    """An entry whose file is damaged; it still takes its number."""

    path: Path


Claim = ExecutionClaim | EndClaim
CLAIM: TypeAdapter[Claim] = TypeAdapter(Annotated[Claim, Field(discriminator="kind")])


class ClaimLog:
    """The log in one folder.

    Every method raises `FileNotFoundError` when the job has been deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self) -> tuple[int, Claim | UnreadableClaim | None]:
        """The number and content of the last entry; (0, None) for an empty log."""
        number = max((int(name) for name in os.listdir(self._folder) if name.isdigit()), default=0)
        return number, self.read(number) if number else None

    def append(self, claim: Claim, *, after: int | None = None) -> int | None:
        """Append an entry unless the job has ended.

        Args:
            claim: The entry.
            after: Append only if this is the number of the last entry; None appends after any entry but an end.

        Returns:
            The number of the new entry; None if the job has ended, or if `after` is no longer the last entry.
        """
        self._folder.mkdir(exist_ok=True)
        while True:
            number, last = self.last()
            if isinstance(last, EndClaim) or after not in (None, number):
                return None
            if create_once(self._folder / str(number + 1), claim.model_dump_json(exclude_none=True).encode()):
                return number + 1

    def has_entry_after(self, number: int) -> bool:
        return (self._folder / str(number + 1)).exists()

    def hand_back(self, number: int) -> None:
        """Record that the execution of this entry stopped for a reason outside the job."""
        (self._folder / f"{number}.back").touch()

    def unfinished(self) -> int:
        """The number of entries that have not been handed back."""
        names = os.listdir(self._folder)
        return sum(name.isdigit() for name in names) - sum(name.endswith(".back") for name in names)

    def entries(self) -> list[Claim | UnreadableClaim]:
        """All entries in order."""
        numbers = sorted(int(name) for name in os.listdir(self._folder) if name.isdigit())
        return [self.read(number) for number in numbers]

    def read(self, number: int) -> Claim | UnreadableClaim:
        """The content of an entry."""
        path = self._folder / str(number)
        try:
            return CLAIM.validate_json(path.read_bytes())
        except ValidationError:
            return UnreadableClaim(path)
