"""The store: named contents under keys such as `jobs/<id>/job.json`, in a folder or in a bucket.

Everything else of storage is written in terms of these operations. `create` is the one on which correctness rests: of
several concurrent calls for one key exactly one succeeds.
"""

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """A folder or a bucket. Every method raises OSError if it is not available."""

    poll_interval_s: float
    """How often a process may ask for a change; requests to a bucket cost money."""

    def create(self, key: str, data: bytes) -> bool:
        """Create a key with this content, atomically and durably, unless it exists; whether this call did.

        Readers see the complete content or none. Callers that must be distinguished send different contents.

        Raises:
            FileNotFoundError: The store has folders, and the job of the key was deleted.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Create or replace a key, atomically and durably; raises as `create`."""
        ...

    def read(self, key: str) -> bytes:
        """The content of a key.

        Raises:
            FileNotFoundError: There is no such key.
        """
        ...

    def exists(self, key: str) -> bool: ...

    def modified_at(self, key: str) -> datetime:
        """When the key was last modified; raises as `read`."""
        ...

    def names(self, prefix: str) -> list[str]:
        """The next component of all keys below a prefix, without order.

        Raises:
            FileNotFoundError: The store has folders, and there is no such folder.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove a key if it exists."""
        ...

    def remove_tree(self, prefix: str) -> None:
        """Remove all keys below a prefix."""
        ...

    def discard_job(self, prefix: str) -> None:
        """Remove a job: it is invisible at once, even if removing all its keys fails."""
        ...

    def is_older(self, prefix: str, than: datetime) -> bool:
        """Whether all keys of a job were last modified before this time; False if there are none."""
        ...

    def commit_upload(self, folder: Path, prefix: str) -> None:
        """Move an upload, the files `input` and `job.json` of a local folder, to a prefix; durably, `job.json` last."""
        ...

    def publish(self, folder: Path, prefix: str) -> None:
        """Make the files below a local folder durable under a prefix."""
        ...

    def fetch(self, key: str, path: Path) -> None:
        """Have the content of a key as a local file; raises as `read`."""
        ...

    def fetch_tree(self, prefix: str, folder: Path) -> None:
        """Have all keys below a prefix as files in a local folder."""
        ...

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """Lock an existing key; whether this process holds the lock."""
        ...

    def check(self) -> None:
        """Raise OSError, with the reason, if the store cannot be listed or written."""
        ...
