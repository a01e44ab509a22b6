"""The embedded Valkey: durable, one owner at a time, stopped when its owner dies."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from service.jobs.embedded import EmbeddedServer

OWNER = """
import sys, time
from pathlib import Path
from service.jobs.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1])).start()
print(server.pid, flush=True)
time.sleep(600)
"""


def client(server: EmbeddedServer) -> "redis.Redis":
    return redis.Redis.from_url(server.url, retry=None)


def test_data_survives_a_restart_and_is_never_evicted(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client(server) as connection:
        connection.set("a", "1")
        assert connection.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    with EmbeddedServer(tmp_path) as server, client(server) as connection:
        assert connection.get("a") == b"1"


def test_only_the_owner_can_connect(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client(server) as connection:
        assert server.socket.stat().st_mode & 0o077 == 0
        assert connection.config_get("port")["port"] == "0"


def test_it_restarts_with_its_data_after_sigkill(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        with client(server) as connection:
            connection.set("a", "1")
            time.sleep(1.1)  # appendfsync everysec
        os.kill(server.pid, signal.SIGKILL)
        server.start()
        with client(server) as connection:
            assert connection.get("a") == b"1"


def test_a_long_data_folder_gets_a_short_socket_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with EmbeddedServer(folder) as server, client(server) as connection:
        assert connection.ping()
    assert not server.socket.parent.exists()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path), pytest.raises(RuntimeError, match="another process"):
        EmbeddedServer(tmp_path).start()


def test_it_stops_when_its_owner_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        owner.kill()
        owner.wait()
        with EmbeddedServer(tmp_path) as successor, client(successor) as connection:  # at once
            assert connection.ping()
            assert not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text()


def test_a_failed_start_is_explained(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(RuntimeError, match="did not start"):
        EmbeddedServer(tmp_path).start()


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_append_only_file_does_not_prevent_a_start(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with EmbeddedServer(tmp_path) as server, client(server) as connection:
        for number in range(100):
            connection.set(f"key {number}", "value" * 10)
        if seed % 2:
            connection.bgrewriteaof()
            while connection.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.02)
    files = [path for path in (tmp_path / "appendonlydir").iterdir() if path.stat().st_size]
    path = rng.choice(sorted(files))
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 20] = rng.randbytes(20)
    path.write_bytes(content if seed % 3 else content[: start + 1])
    with EmbeddedServer(tmp_path) as server, client(server) as connection:
        connection.set("a", "1")
        assert connection.get("a") == b"1"
