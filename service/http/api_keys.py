"""API keys: long random secrets that a client shows and the service knows by their hashes alone.

A key has 256 random bits, so one round of SHA-256 hides it as well as a slow hash would.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from uvos.errors import KeyRequired

PREFIX = "uvos_"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Keys:
    """Who may ask: names by the hashes of their keys, from a setting and from a file that may change meanwhile."""

    def __init__(self, listed: str | None = None, file: Path | None = None) -> None:
        self._listed = _parse(listed.replace(",", "\n")) if listed else {}
        self._file = file
        self._read_at: tuple[int, int] | None = None
        self._from_file: dict[str, str] = {}
        self._reload()

    def __bool__(self) -> bool:
        return bool(self._listed or self._from_file)

    def owner_of(self, authorization: str) -> str:
        """Whose key an Authorization header holds.

        Raises:
            KeyRequired: nobody's.
        """
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise KeyRequired("send an API key: Authorization: Bearer uvos_...")
        self._reload()
        shown = digest_of(key.strip())
        owner = None
        for digest, name in (*self._listed.items(), *self._from_file.items()):  # all of them, whichever it is
            if hmac.compare_digest(digest, shown):
                owner = name
        if owner is None:
            raise KeyRequired("this API key is not known")
        return owner

    def _reload(self) -> None:
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except FileNotFoundError:
            self._from_file, self._read_at = {}, None
            return
        if (status.st_mtime_ns, status.st_size) != self._read_at:
            self._from_file = _parse(self._file.read_text())
            self._read_at = (status.st_mtime_ns, status.st_size)


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """SHA-256 in hex: all that is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str) -> str:
    """Make a key for `name` and note its hash in `file`; the key itself is told once and never again.

    Raises:
        ValueError: that is no name.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name for a key: use up to 32 of a-z, 0-9, '.', '_', '-'")
    key = new_key()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    with file.open("a") as lines:
        lines.write(f"{name}:{digest_of(key)}\n")
    return key


def _parse(text: str) -> dict[str, str]:
    """Lines of name:sha256; a name may have several keys."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, digest = line.partition(":")
        if NAME.fullmatch(name) is None or re.fullmatch(r"[0-9a-f]{64}", digest.strip()) is None:
            raise ValueError(f"not an API key's line, name:sha256 in hex: {line[:40]!r}")
        found[digest.strip()] = name
    return found
