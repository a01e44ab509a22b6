"""A video while it is uploaded."""

import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from service.storage.durable import storage_full_errors


class Upload:
    """A video file that is being written; removed on exit unless it was submitted as a job."""

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self.folder = folder
        self.path = folder / "input"
        self.size = 0
        self._digest = hashlib.sha256()
        folder.mkdir(parents=True)
        self._file: BinaryIO = self.path.open("wb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # until `__exit__`: `is_in_progress`

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            StorageFull: The disk is full.
        """
        with storage_full_errors(self.folder):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Sync the file to disk and return its SHA-256 in hex.

        Raises:
            StorageFull: The disk is full.
        """
        with storage_full_errors(self.folder):
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # a submitted folder has been renamed and is not here


def is_in_progress(folder: Path) -> bool:
    """Whether a process is writing this upload; independent of clocks, which may jump."""
    with suppress(OSError), (folder / "input").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
