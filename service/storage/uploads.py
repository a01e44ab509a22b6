"""A video while it is uploaded."""

import hashlib
import os
import shutil
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
        self._file.close()
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # a submitted folder has been renamed and is not here
