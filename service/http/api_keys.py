"""API keys: random secrets of which the service stores only the hash.

A key has 256 random bits, so a single round of SHA-256 is as safe as a slow password hash.
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


class ApiKeys:
    """Owner names by the hash of their keys, from a setting and from a file that is reloaded when it changes."""

    def __init__(self, setting: str | None = None, file: Path | None = None) -> None:
        self._from_setting = _parse(setting.replace(",", "\n")) if setting else {}
        self._file = file
        self._file_version: tuple[int, int] | None = None
        self._from_file: dict[str, str] = {}
        self._reload()

    def __bool__(self) -> bool:
        return bool(self._from_setting or self._from_file)

    def owner_of(self, authorization: str) -> str:
        """Name of the owner of the key in an Authorization header.

        Raises:
            KeyRequired: the header has no key, or an unknown one.
        """
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise KeyRequired("the request has no API key: send Authorization: Bearer uvos_...")
        self._reload()
        presented = digest_of(key.strip())
        owner = None
        for digest, name in (*self._from_setting.items(), *self._from_file.items()):  # no early exit: constant time
            if hmac.compare_digest(digest, presented):
                owner = name
        if owner is None:
            raise KeyRequired("the API key is unknown")
        return owner

    def _reload(self) -> None:
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except FileNotFoundError:
            self._from_file, self._file_version = {}, None
            return
        if (status.st_mtime_ns, status.st_size) != self._file_version:
            self._from_file = _parse(self._file.read_text())
            self._file_version = (status.st_mtime_ns, status.st_size)


def new_key() -> str:
    """A random API key."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """SHA-256 of a key, in hex: the only form in which a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str) -> str:
    """Create a key for `name`, append its hash to `file`, and return the key, which is not stored.

    Raises:
        ValueError: the name is invalid.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(f"a key name has 1 to 32 characters of a-z, 0-9, '.', '_', '-', got {name!r}")
    key = new_key()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    with file.open("a") as lines:
        lines.write(f"{name}:{digest_of(key)}\n")
    return key


def list_keys(file: Path) -> list[tuple[str, str]]:
    """Owner and hash of every key in `file`, in its order."""
    if not file.is_file():
        return []
    return [(name, digest) for digest, name in _parse(file.read_text()).items()]


def revoke_keys(file: Path, name: str) -> int:
    """Remove all keys of an owner from `file`, atomically; the number of removed keys.

    Raises:
        ValueError: the owner has no key.
    """
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    kept = [line for line in lines if line.partition(":")[0].strip() != name]
    if len(kept) == len(lines):
        known = ", ".join(dict.fromkeys(owner for owner, _ in list_keys(file))) or "none"
        raise ValueError(f"{name!r} has no API key in {file}: the owners are {known}")
    draft = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    draft.touch(mode=0o600)
    draft.write_text("".join(kept))
    draft.replace(file)
    return len(lines) - len(kept)


def _parse(text: str) -> dict[str, str]:
    """Owner names by key hash, from lines of name:sha256; a name may have several keys."""
    owners: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, digest = line.partition(":")
        if NAME.fullmatch(name) is None or re.fullmatch(r"[0-9a-f]{64}", digest.strip()) is None:
            raise ValueError(f"an API key entry must be name:sha256 with the hash in hex, got {line[:40]!r}")
        owners[digest.strip()] = name
    return owners
