"""Each setting at a non-default value, end to end: three runs of `uvos up`, each with a group of compatible settings.

A setting that is in no group fails `test_every_setting_is_in_one_group`. `{...}` in a value is filled in by the test.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from standardwebhooks import Webhook

from service.http.api_keys import digest_of
from service.jobs.embedded import EmbeddedServer
from service.jobs.queue import Broker
from service.jobs.webhooks import secret_of
from service.settings import Settings
from tests.service.jobs.test_webhooks import Receiver
from tests.up import START_TIMEOUT_S, descendants, free_port, is_ready, wait_for
from tests.videos import make_scene, write_video
from uvos.client import Client
from uvos.contract import JobView, Problem, Status
from uvos.models import MODELS
from uvos.transport import RequestFailed
from uvos.weights import find_local_weights
from worker.models.loading import PACKAGED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and listens on 127.0.0.2")

SECRET = "a secret of the service"
ADA, BOB = "uvos_ada", "uvos_bob"
JOB_TIMEOUT_S = 60.0
RESOLUTION = "96x128"
GROUPS: dict[str, dict[str, str]] = {
    "access": {
        "data_dir": "{folder}/data",
        "redis_url": "{redis_url}",
        "port": "{port}",
        "api_keys": f"ada:{digest_of(ADA)}",
        "api_keys_file": "{folder}/more keys",
        "webhook_secret": SECRET,
        "webhook_networks": '["127.0.0.0/8"]',
        "webhook_retry_delays_s": "[0.5]",
        "webhook_poll_interval_s": "0.1",
        "fetch_networks": '["127.0.0.0/8"]',
        "max_queued_per_key": "2",
        "max_running_per_key": "1",
    },
    "limits": {
        "host": "127.0.0.2",
        "require_key": "false",
        "allowed_hosts": '["uvos.test"]',
        "model": "tiny",
        "weights_dir": "{folder}/elsewhere",
        "max_upload_bytes": "2000000",
        "max_queued_jobs": "1",
        "max_frames": "8",
        "max_pixels": "40000",
        "max_duration_s": "2",
        "max_decoded_bytes": "500000",
        "memory_budget_bytes": "400000",
        "max_key_tokens": "300",
        "recovery_interval_s": "7",
    },
    "execution": {
        "log_format": "json",
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": "{folder}/own.safetensors",
        "allow_hub": "false",
        "job_timeout_s": "10",
        "max_attempts": "1",
        "lease_s": "2",
        "shutdown_grace_s": "0",
        "result_ttl_s": "15",
    },
}


@dataclass(frozen=True)
class Service:
    """A running `uvos up`."""

    process: "subprocess.Popen[bytes]"
    url: str
    folder: Path
    """Working folder; the data folder is `data` in it, by the environment or by default."""
    video: Path
    """Six frames of 96x128 pixels."""

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, api_key=key, retry_for_s=0)

    def pid(self, part: bytes) -> int:
        """The process with this text in its command line."""
        [pid] = [pid for pid in descendants(self.process.pid) if part in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return pid

    @property
    def broker(self) -> redis.Redis:
        return redis.Redis.from_url(EmbeddedServer(self.folder / "data" / "queue").url)


@contextmanager
def running(group: str, folder: Path, *, host: str = "127.0.0.1", redis_url: str = "") -> Iterator[Service]:
    """`uvos up` with the settings of a group, from the environment alone."""
    port = free_port()
    values = {"folder": folder, "redis_url": redis_url, "port": port}
    environment = {f"UVOS_{name.upper()}": value.format(**values) for name, value in GROUPS[group].items()}
    command = [sys.executable, "-m", "service.cli", "up"]
    if "UVOS_PORT" not in environment:
        command += ["--port", str(port)]
    python_path = f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    video = write_video(folder / "clip.mp4", make_scene(frames=6).frames)
    url = f"http://{host}:{port}"
    with (folder / "log").open("wb") as log, Client(url) as client:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | environment | {"PYTHONPATH": python_path}
        )
        try:
            wait_for(lambda: is_ready(client) or process.poll() is not None, START_TIMEOUT_S)
            assert process.poll() is None, (folder / "log").read_text()
            yield Service(process, url, folder, video)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


def ended(client: Client, job: JobView) -> JobView:
    """The job after its end."""
    states: list[JobView] = []

    def has_ended() -> bool:
        states[:] = [client.job(job.id)]
        return states[0].status.is_terminal

    wait_for(has_ended, JOB_TIMEOUT_S)
    return states[0]


def failure(client: Client, job: JobView) -> Problem:
    """The problem of a job that fails."""
    job = ended(client, job)
    assert job.status == Status.failed, job
    assert job.error is not None
    return job.error


def succeed(client: Client, job: JobView) -> JobView:
    """The job, which must succeed."""
    job = ended(client, job)
    assert job.status == Status.succeeded, job.error
    return job


def post(url: str, video: bytes, **options: object) -> httpx.Response:
    return httpx.post(f"{url}/segment", files={"video": ("a.mp4", video)}, timeout=30, **options)  # type: ignore[arg-type]


def test_every_setting_is_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(Settings.model_fields)


@pytest.mark.parametrize("group", GROUPS)
def test_no_setting_of_a_group_has_its_default(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GROUPS[group].items():
        text = value.format(folder="/folder", redis_url="redis://127.0.0.1", port=1)
        monkeypatch.setenv(f"UVOS_{name.upper()}", text)
    settings = Settings()
    for name in GROUPS[group]:
        assert getattr(settings, name) != Settings.model_fields[name].get_default()


def test_settings_of_access_webhooks_and_quotas(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "more keys").write_text(f"bob:{digest_of(BOB)}\n")
    receiver = Receiver()
    receiver.statuses = [500]  # of the first attempt
    with running("access", tmp_path, redis_url=redis_url) as service:
        content = service.video.read_bytes()
        assert not (tmp_path / "data" / "queue").exists(), "no embedded queue"
        assert post(service.url, content).status_code == 401
        with service.client(ADA) as ada, service.client(BOB) as bob:
            job = succeed(bob, bob.submit(service.video, resolution=RESOLUTION, callback_url=receiver.url))
            wait_for(lambda: len(receiver.requests) == 2, 20)
            headers, body = receiver.requests[1]
            assert Webhook(secret_of(SECRET, "bob")).verify(body, headers)["data"]["id"] == job.id

            broker = Broker(redis.Redis.from_url(redis_url), job_timeout_s=60)
            broker.take_lease("another", "e", 60, owner="ada")
            jobs = [ada.submit(service.video, resolution=RESOLUTION) for _ in range(2)]
            response = post(service.url, content, headers={"Authorization": f"Bearer {ADA}"})
            assert response.status_code == 429
            assert response.headers["RateLimit-Policy"] == '"jobs";q=2;qu="concurrent-requests"'
            succeed(bob, bob.submit(service.video, resolution=RESOLUTION))
            assert [ada.job(job.id).status for job in jobs] == [Status.queued] * 2, "ada's one running job is `another`"
            broker.release_lease("another", "e", owner="ada")
            for job in jobs:
                succeed(ada, job)
            broker.connection.close()
    receiver.server.shutdown()
    receiver.server.server_close()


def test_settings_of_hosts_and_limits(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for entry in MODELS.values():
        (tmp_path / "elsewhere" / f"{entry.name}.safetensors").write_bytes(b"no weights")
    frames = make_scene(frames=9).frames
    large = make_scene(frames=2, size=(208, 208)).frames
    with running("limits", tmp_path, host="127.0.0.2") as service, service.client() as client:
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.url.replace("127.0.0.2", "127.0.0.1"))
        statuses = [
            httpx.get(f"{service.url}/jobs", headers={"Host": host}).status_code for host in ("uvos.test", "other.test")
        ]
        assert statuses == [200, 403]
        assert httpx.get(f"{service.url}/models").json()["default"] == "tiny"
        assert post(service.url, bytes(4_000_000)).json()["limit"] == 2_000_000
        many = write_video(tmp_path / "many.mp4", frames)
        wide = write_video(tmp_path / "wide.mp4", large)
        slow = write_video(tmp_path / "slow.mp4", frames[:4], fps=1)
        other = next(name for name, entry in MODELS.items() if not entry.is_packaged)
        failures: tuple[tuple[str, int | None, Path, dict[str, Any]], ...] = (
            ("too-many-frames", 8, many, {}),
            ("too-many-pixels", 40_000, wide, {}),
            ("too-long", 2, slow, {}),
            ("too-many-frames", 500_000, service.video, {"resolution": "480x640"}),
            ("out-of-memory-budget", 200_000, service.video, {"tau": 0.0001}),
            ("weights-invalid", None, service.video, {"model": other}),
        )
        for kind, limit, video, params in failures:
            problem = failure(client, client.submit(video, **{"resolution": RESOLUTION, "key_ratio": 1} | params))
            assert problem.type == f"/problems/{kind}", problem
            assert limit is None or str(limit) in problem.detail
        job = succeed(client, client.submit(service.video, resolution=RESOLUTION, key_ratio=1))
        [warning] = client.result(job).manifest.warnings
        assert "300 key tokens" in warning
        lowest_ms = [15_000]

        def heartbeat_is_late() -> bool:
            with service.broker as broker:
                lowest_ms.extend(int(broker.pttl(key)) for key in broker.scan_iter("uvos:worker:*"))
            return 0 < min(lowest_ms) < 9_500

        wait_for(heartbeat_is_late, 20)
        os.kill(service.pid(b"worker.cli"), signal.SIGSTOP)
        try:
            responses = [post(service.url, service.video.read_bytes()) for _ in range(3)]
        finally:
            os.kill(service.pid(b"worker.cli"), signal.SIGCONT)
        assert responses[-1].status_code == 503
        assert responses[-1].json()["limit"] == 1


def test_settings_of_execution(tmp_path: Path) -> None:
    save_file(load_file(PACKAGED / "tiny.safetensors"), tmp_path / "own.safetensors", {"note": "another file"})
    long = write_video(tmp_path / "long.mp4", make_scene(frames=120).frames)
    with running("execution", tmp_path) as service, service.client() as client:
        first = succeed(client, client.submit(service.video, resolution=RESOLUTION))
        manifest = client.result(first).manifest
        assert first.ended_at is not None
        assert first.expires_at is not None
        assert (first.expires_at - first.ended_at).total_seconds() == 15
        assert manifest.device == "cpu"
        assert manifest.dtype == "bfloat16"
        assert manifest.model.weights == "file: own.safetensors"
        # UVOS_ALLOW_HUB is off
        missing = next(e for e in MODELS.values() if not e.is_packaged and not find_local_weights(e, None))
        with pytest.raises(RequestFailed, match=f"uvos-worker weights fetch {missing.name}"):
            client.submit(service.video, resolution=RESOLUTION, model=missing.name)

        job = start(client, long)
        lease_ms: list[int] = []
        with service.broker as broker:
            for _ in range(20):
                lease_ms.append(int(broker.pttl(f"uvos:lease:{job.id}")))
                time.sleep(0.02)
        assert 0 < max(lease_ms) <= 2000
        problem = failure(client, job)
        assert problem.type == "/problems/deadline-exceeded"
        assert problem.limit == 10

        job = start(client, long)
        os.kill(service.pid(b"child_process"), signal.SIGKILL)
        problem = failure(client, job)
        assert problem.type == "/problems/too-many-attempts"
        assert problem.limit == 1

        wait_for(lambda: httpx.get(f"{service.url}/jobs/{first.id}").status_code == 404, 20)
        job = start(client, long)
        service.process.send_signal(signal.SIGINT)
        service.process.wait(30)
        assert (tmp_path / "data" / "open" / job.id).exists(), "handed back at once"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert {line["process"] for line in lines if line.get("job_id") == job.id} >= {"api", "worker"}
    assert {line["trace_id"] for line in lines if line.get("job_id") == job.id} == {job.trace_id}


def start(client: Client, video: Path) -> JobView:
    """A job that runs."""
    job = client.submit(video, resolution="256x320", key_ratio=1)
    wait_for(lambda: client.job(job.id).status == Status.running, JOB_TIMEOUT_S)
    return job


def test_a_recovery_interval_with_which_heartbeats_would_expire_is_rejected() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 10"):
        Settings(recovery_interval_s=15)
