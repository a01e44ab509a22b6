"""ZIP archives in memory that are the same, byte for byte, for the same entries."""

import io
import zipfile
from collections.abc import Iterable

FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # of ZIP; the time of creation would change the archive


def archive(entries: Iterable[tuple[str, bytes | str]]) -> bytes:
    """A deflated ZIP archive of (path, content) entries, in the given order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, content in entries:
            file.writestr(zipfile.ZipInfo(path, FIRST_TIME), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
