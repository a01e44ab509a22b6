"""Supervision: dead processes are restarted, only one that cannot start ends the service."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.supervisor import CANNOT_START, AttachedProcess, Backoff, CannotStart, Supervisor, listen
from tests.up import command, descendants, free_port, is_ready, is_running, running_service, wait_for
from tests.videos import make_scene, write_video
from uvos.contract import Status

QUICK = Backoff(first_s=0.05, max_s=0.1, stable_s=0.5, max_failed_starts=3)
RECOVERY_TIMEOUT_S = 60.0  # the restarted worker loads its models, on a shared machine
# Appends its pid to a file; exits with status 3 once the file has as many lines as the second argument.
PROGRAM = """
import os, sys
from service.supervisor import exit_with_parent
with open(sys.argv[1], "a+") as file:
    file.seek(0)
    if len(file.readlines()) >= int(sys.argv[2]): sys.exit(3)
    file.write(f"{os.getpid()}\\n")
exit_with_parent(lambda: os._exit(0))
import time; time.sleep(600)
"""


def process(pids: Path, starts: int = 1000) -> AttachedProcess:
    return AttachedProcess("test process", [sys.executable, "-c", PROGRAM, str(pids), str(starts)], dict(os.environ))


def read_pids(path: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(line) for line in path.read_text().splitlines()]
    return []


@contextmanager
def killing(pids: Path, kills: int, supervisor: Supervisor) -> Iterator[None]:
    """Kill the process with SIGKILL each time it has started, in the background; then stop the supervisor."""

    def kill() -> None:
        for count in range(1, kills + 1):
            wait_for(lambda starts=count: len(read_pids(pids)) >= starts, 20)  # type: ignore[misc]
            os.kill(read_pids(pids)[-1], signal.SIGKILL)
        wait_for(lambda: len(read_pids(pids)) > kills, 20)
        supervisor.stop()

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


def test_a_killed_process_is_restarted_and_stopped_at_the_end(tmp_path: Path) -> None:
    supervisor = Supervisor([[process(tmp_path / "pids")]], QUICK)
    with killing(tmp_path / "pids", 4, supervisor):
        supervisor.run()
    pids = read_pids(tmp_path / "pids")
    assert len(pids) == 5
    assert not any(map(is_running, pids))


def test_a_process_that_cannot_start_ends_the_service(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(CannotStart, match=rf"test process cannot start.*exit status {CANNOT_START}"):
        Supervisor([[process(other)], [process(tmp_path / "pids", starts=0)]], QUICK).run()
    assert not any(map(is_running, read_pids(other)))


def test_a_process_that_cannot_be_restarted_is_tried_again_before_the_service_ends(tmp_path: Path) -> None:
    supervisor = Supervisor([[process(tmp_path / "pids", starts=1)]], QUICK)
    thread = threading.Thread(
        target=lambda: (wait_for(lambda: len(read_pids(tmp_path / "pids")) == 1, 20), kill_last(tmp_path / "pids"))
    )
    thread.start()
    with pytest.raises(CannotStart):
        supervisor.run()
    thread.join()


def kill_last(pids: Path) -> None:
    os.kill(read_pids(pids)[-1], signal.SIGKILL)


def test_listen_names_the_port_that_is_in_use() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port}: another process uses it"):
            listen("127.0.0.1", port)


def test_accepted_connections_send_without_delay() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("subcommand", ["up", "serve"])
def test_a_busy_port_is_reported_in_one_sentence_before_any_address_is_announced(
    subcommand: str, tmp_path: Path
) -> None:
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        arguments = [sys.executable, "-m", "service.cli", subcommand, "--port", str(port)]
        environment = os.environ | {"UVOS_DATA_DIR": str(tmp_path), "UVOS_REDIS_URL": "redis://127.0.0.1:1"}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    output = " ".join((done.stdout + done.stderr).split())
    assert f"cannot listen on 127.0.0.1 port {port}: another process uses it" in output
    assert "listens on" not in output
    assert "Traceback" not in output


def test_up_ends_with_one_sentence_if_the_first_child_cannot_start(tmp_path: Path) -> None:
    environment = os.environ | {"UVOS_DEVICE": "cuda:99"}
    arguments = command(tmp_path, free_port())
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    output = " ".join((done.stdout + done.stderr).split())
    assert output.count("cannot start") == 1
    assert "error: the worker cannot start: the models could not be loaded" in output
    assert "Traceback" not in output


def test_a_second_up_on_the_same_folder_is_refused_and_the_first_one_continues(tmp_path: Path) -> None:
    with running_service(tmp_path) as (_, client):
        arguments = command(tmp_path, free_port())
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "another process already runs a queue" in " ".join((done.stdout + done.stderr).split())
        assert is_ready(client)


def test_killed_processes_of_up_are_restarted_and_jobs_end_with_a_webhook_secret_set(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=4).frames)
    environment = {"UVOS_WEBHOOK_SECRET": "a secret that no child process may hold"}
    with running_service(tmp_path, environment) as (process, client):
        for pid in descendants(process.pid):
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"child_process" in name:
                assert b"a secret that" not in Path(f"/proc/{pid}/environ").read_bytes()
        for part in (b"valkey", b"service.cli", b"worker.cli"):
            job = client.submit(video)
            [pid] = [pid for pid in descendants(process.pid) if part in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda killed=pid: not is_running(killed), 10)  # type: ignore[misc]
            took = wait_for(lambda: is_ready(client), RECOVERY_TIMEOUT_S)
            print(f"ready {took:.1f} s after SIGKILL of {part.decode()}")
            assert client.wait(client.job(job.id)).status == Status.succeeded
        assert httpx.get(f"{client._http.base_url}/readyz").status_code == 200
