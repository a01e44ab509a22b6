"""Durable file operations: write and sync, create exactly once, report a full disk."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path

from uvos.errors import StorageFull

RETRY_AFTER_S = 60


@contextmanager
def storage_full_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" into `StorageFull`, with the free space of the disk of `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT):
            raise
        free, missing = 0, "space"
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            missing = "space" if os.statvfs(folder).f_favail else "inodes"
        raise StorageFull(f"no {missing} left on the storage disk", actual=free, retry_after_s=RETRY_AFTER_S) from error


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_synced(draft, data)
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and sync its content to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def create_once(path: Path, data: bytes) -> bool:
    """Create a file with this content, atomically, unless it exists.

    Of several concurrent calls exactly one returns True. Readers see the complete file or none.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_synced(draft, data)
        os.link(draft, path)
    except FileExistsError:
        return False
    else:
        with suppress(OSError):  # the file is already visible to every reader
            sync_folder(path.parent)
        return True
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything below it to disk."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
