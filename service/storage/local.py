"""A store in a folder that all processes share: atomic by hard links and renames, durable by fsync."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from service.storage.durable import create_once, replace_file, sync_folder, sync_tree

FOLDERS = ("uploads", "jobs", "open", "keys", "callbacks")


class FolderStore:
    """The folder `root`; a key is a path in it."""

    poll_interval_s = 0.5

    def __init__(self, root: Path) -> None:
        self.root = root
        with suppress(OSError):  # `check` reports a folder that is not available
            self._create_folders()

    def _create_folders(self) -> None:
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def create(self, key: str, data: bytes) -> bool:
        return create_once(self._in_folder(key), data)

    def put(self, key: str, data: bytes) -> None:
        path = self._in_folder(key)
        if data:
            replace_file(path, data)
        else:  # a marker
            path.touch()
            sync_folder(path.parent)

    def _in_folder(self, key: str) -> Path:
        """The path of a key. Creates folders in the folder of a job, but not this one: a deleted job stays deleted."""
        *folders, name = key.split("/")
        path = self.root.joinpath(*folders[:2])
        for folder in folders[2:]:
            path /= folder
            path.mkdir(exist_ok=True)
        return path / name

    def read(self, key: str) -> bytes:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._check_folder(key)
            raise FileNotFoundError(f"there is no {key}") from None

    def exists(self, key: str) -> bool:
        if (self.root / key).exists():
            return True
        self._check_folder(key)
        return False

    def _check_folder(self, key: str) -> None:
        """Raise OSError if the folder of all jobs is missing: then a missing key does not mean a deleted job."""
        folder = self.root / key.split("/", 1)[0]
        if not folder.is_dir():
            raise OSError(f"the folder {folder} is missing")

    def modified_at(self, key: str) -> datetime:
        return datetime.fromtimestamp((self.root / key).stat().st_mtime, UTC)

    def names(self, prefix: str) -> list[str]:
        return os.listdir(self.root / prefix)

    def remove(self, key: str) -> None:
        with suppress(NotADirectoryError):
            (self.root / key).unlink(missing_ok=True)

    def remove_tree(self, prefix: str) -> None:
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def discard_job(self, prefix: str) -> None:
        path = self.root / prefix
        trash = self.root / "uploads" / f"{path.name}.{secrets.token_hex(4)}.gone"
        with suppress(FileNotFoundError):
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def is_older(self, prefix: str, than: datetime) -> bool:
        return is_older(self.root / prefix, than)

    def commit_upload(self, folder: Path, prefix: str) -> None:
        sync_folder(folder)
        folder.rename(self.root / prefix)
        sync_folder((self.root / prefix).parent)

    def publish(self, folder: Path, prefix: str) -> None:  # noqa: ARG002  # the files are where they belong
        sync_tree(folder)

    def fetch(self, key: str, path: Path) -> None:
        """Nothing to do: the files are local."""

    def fetch_tree(self, prefix: str, folder: Path) -> None:
        """Nothing to do: the files are local."""

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Lock a file; the kernel releases it when the process exits."""
        try:
            file = (self.root / key).open("rb")
        except FileNotFoundError:
            yield False
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                is_locked = False
            yield is_locked

    def check(self) -> None:
        if not self.root.exists():
            self._create_folders()
        for name in FOLDERS:
            probe = self.root / name / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"1")
            probe.unlink()
            os.listdir(self.root / name)


def is_older(path: Path, than: datetime) -> bool:
    """Whether a file, or a folder and every entry in it, was last modified before this time."""
    with suppress(FileNotFoundError):
        entries = path.iterdir() if path.is_dir() else ()
        modified_at: float = max(entry.stat().st_mtime for entry in (path, *entries))
        return modified_at < than.timestamp()
    return False
