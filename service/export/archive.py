"""ZIP archives that are the same, byte for byte, for the same entries."""

import io
import zipfile
from collections.abc import Iterable, Iterator

FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # of ZIP; the time of creation would change the archive


def archive(entries: Iterable[tuple[str, bytes | str]]) -> bytes:
    """A deflated ZIP archive of (path, content) entries, in the given order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, content in entries:
            file.writestr(zipfile.ZipInfo(path, FIRST_TIME), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def stream_archive(entries: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """A ZIP archive of compressed files, entry by entry, with one entry in memory."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as file:
        for path, content in entries:
            file.writestr(zipfile.ZipInfo(path, FIRST_TIME), content)
            yield pieces.take()
    yield pieces.take()


class _Pieces:
    """A file that cannot seek and keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def write(self, data: bytes, /) -> int:
        self._buffer += data
        return len(data)

    def flush(self) -> None:
        """Nothing to do: `take` returns all that was written."""

    def close(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data
