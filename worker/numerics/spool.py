"""Rows on disk: tokens of long videos, kept out of memory by plain reads and writes."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Spool:
    """Rows of one shape and dtype in one file: written at the end, read anywhere.

    Plain reads and writes, not a memory map: the pages of a map count as this process's memory, those of the page
    cache do not. bfloat16 has no NumPy dtype and is kept as its bits, uint16.

    Args:
        folder: An existing folder that the caller gives and removes.
        row_shape: Shape of one row, for example (N, heads, d) of a frame's queries.
        dtype: dtype of the rows.
        name: File name in the folder.

    Raises:
        FileExistsError: the folder already has a file of that name.
    """

    def __init__(self, folder: Path, *, row_shape: Sequence[int], dtype: DTypeLike, name: str = "rows.spool") -> None:
        self.row_shape = tuple(row_shape)
        self.dtype = np.dtype(dtype)
        self.path = folder / name
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))
        if self._row_bytes == 0:
            raise ValueError(f"rows of shape {self.row_shape} hold nothing")
        self._count = 0
        self._file = self.path.open("x+b", buffering=0)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows of shape (n, *row_shape) after those already there.

        Raises:
            ValueError: another shape or dtype than the spool's.
            OSError: the disk is full, or another fault of the file; the rows then do not count.
        """
        if rows.shape[1:] != self.row_shape or rows.dtype != self.dtype:
            raise ValueError(f"expected rows of {self.row_shape} {self.dtype}, got {rows.shape[1:]} {rows.dtype}")
        view = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        offset = self._count * self._row_bytes
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        self._count += len(rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The rows start to stop (exclusive), shape (stop - start, *row_shape).

        Raises:
            IndexError: rows that were never written.
        """
        if not 0 <= start <= stop <= self._count:
            raise IndexError(f"rows {start} to {stop} of {self._count}")
        rows = np.empty((stop - start, *self.row_shape), self.dtype)
        view, offset = memoryview(rows.reshape(-1).view(np.uint8).data), start * self._row_bytes
        while view:
            got = os.preadv(self._file.fileno(), [view], offset)
            if got == 0:
                raise OSError(f"{self.path} ends before row {stop}")
            view, offset = view[got:], offset + got
        return rows

    def close(self) -> None:
        """Close and remove the file; closing twice is harmless."""
        if not self._file.closed:
            self._file.close()
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
