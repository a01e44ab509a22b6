"""Opens the input of the decoder process: a video file, or a folder of pictures packed into one file."""

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uvos.errors import NoFrames
from worker.video.sources import PICTURE_HEADER, PICTURE_SUFFIXES

HASH_BLOCK = 2**20
ZIP_SIGNATURE = b"PK\x03\x04"


@dataclass(frozen=True)
class DecoderInput:
    """An open input.

    Attributes:
        file: The video, or a pack of pictures.
        picture_count: Number of pictures; None: the input is a video.
        sha256: Returns the digest, waiting until it is computed.
        is_archive: Whether the input is a ZIP archive of pictures.
    """

    file: IO[bytes]
    picture_count: int | None
    sha256: Callable[[], str]
    is_archive: bool = False


@contextlib.contextmanager
def open_input(source: Path, work: Path | None) -> Iterator[DecoderInput]:
    """Open a video file, a ZIP archive of pictures, or a folder of pictures.

    The digest of a folder is computed over the bytes of its pictures in the order of names, each preceded by its
    length (8 bytes, little-endian).

    Args:
        source: The file or folder.
        work: Folder for the pack of pictures, which has no name in it; None: the system's temporary folder.

    Raises:
        NoFrames: the folder contains no pictures.
    """
    if source.is_dir():
        with _packed_pictures(source, work) as pack:
            yield pack
    else:
        with source.open("rb") as video, _background_digest(source) as sha256:
            is_archive = video.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE
            yield DecoderInput(video, None, sha256, is_archive)


@contextlib.contextmanager
def _background_digest(path: Path) -> Iterator[Callable[[], str]]:
    """Compute the file's SHA-256 in a thread; it stops when the block is left."""
    stop = threading.Event()

    def compute() -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while not stop.is_set() and (block := file.read(HASH_BLOCK)):
                digest.update(block)
        return digest.hexdigest()

    with ThreadPoolExecutor(1, "sha256") as pool:
        result = pool.submit(compute)
        try:
            yield result.result
        finally:
            stop.set()


@contextlib.contextmanager
def _packed_pictures(folder: Path, work: Path | None) -> Iterator[DecoderInput]:
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not pictures:
        raise NoFrames(f"the folder {folder.name} contains no {' or '.join(PICTURE_SUFFIXES)} file")
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=work, prefix="pictures-") as pack:
        for picture in pictures:
            data = picture.read_bytes()
            for block in (PICTURE_HEADER.pack(len(data)), data):
                pack.write(block)
                digest.update(block)
        pack.flush()
        yield DecoderInput(pack, len(pictures), digest.hexdigest)
