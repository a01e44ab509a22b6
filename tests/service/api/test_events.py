"""Server-sent events and long polls: no event is lost, and the end of a job is reported without Redis."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.jobs.embedded import EmbeddedServer
from service.jobs.events import Listener, follow
from service.jobs.jobs import Jobs
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker, connect
from service.settings import Settings
from service.storage.folder import Storage
from tests.service.live import free_port, running_api
from tests.videos import make_scene, write_video
from uvos.client import Client
from uvos.contract import JobEnd, JobProgress, Stage, Status


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", make_scene(frames=3).frames).read_bytes()


class Worker:
    """Writes the records of a worker to Redis and storage."""

    def __init__(self, settings: Settings) -> None:
        assert settings.redis_url is not None
        self.broker = Broker(connect(settings.redis_url.get_secret_value()), job_timeout_s=60)
        self.storage = Storage(settings.data_dir, result_ttl_s=3600)

    def take(self, job_id: str) -> None:
        assert self.broker.take_lease(job_id, "e1", 30, owner=None)

    def report(self, job_id: str, done: int) -> None:
        self.broker.publish_progress(
            job_id,
            JobProgress(
                execution="e1", started_at=datetime.now(UTC), stage=Stage.features, frames_done=done, frames_total=10
            ),
        )

    def end(self, job_id: str) -> None:
        now = datetime.now(UTC)
        self.storage.finish(job_id, JobEnd(status=Status.canceled, ended_at=now, expires_at=now + timedelta(hours=1)))


@pytest.fixture
def worker(settings: Settings) -> Worker:
    return Worker(settings)


def submit(url: str, video: bytes) -> str:
    response = httpx.post(f"{url}/segment", files={"video": ("clip.mp4", video)}, timeout=20)
    job_id: str = response.json()["id"]
    return job_id


class Stream:
    """Events of a response."""

    def __init__(self, url: str, job_id: str, last: str | None = None) -> None:
        self.headers = {"Last-Event-ID": last} if last else {}
        self.url = f"{url}/jobs/{job_id}/events"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with httpx.stream("GET", self.url, headers=self.headers, timeout=30) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            event: dict[str, Any] = {}
            for line in response.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif event:
                    if "data" in event:
                        yield event | {"job": json.loads(event["data"])}
                    event = {}


def test_events_begin_with_the_current_job_and_end_with_its_end(
    settings: Settings, worker: Worker, video: bytes
) -> None:
    with running_api(settings) as url:
        job_id = submit(url, video)
        events = iter(Stream(url, job_id))
        first = next(events)
        assert first["event"] == "job"
        assert first["job"] == httpx.get(f"{url}/jobs/{job_id}").json()
        worker.take(job_id)
        worker.report(job_id, 3)
        event = next(events)
        assert (event["event"], event["job"]["status"], event["job"]["frames_done"]) == ("job", "running", 3)
        worker.end(job_id)
        (end,) = events
        assert (end["event"], end["id"], end["job"]["status"]) == ("end", "end", "canceled")
        again = httpx.get(f"{url}/jobs/{job_id}/events", headers={"Last-Event-ID": "end"})
        assert (again.status_code, again.content) == (204, b"")


def test_missed_events_are_sent_first(settings: Settings, worker: Worker, video: bytes) -> None:
    with running_api(settings) as url:
        job_id = submit(url, video)
        worker.take(job_id)
        for done in range(1, 6):
            worker.report(job_id, done)
            time.sleep(0.002)
        worker.end(job_id)
        ids = [name.decode() for name, _ in worker.broker.connection.xrange(f"uvos:events:{job_id}")]
        events = list(Stream(url, job_id, last=ids[1]))
        assert [event["job"]["frames_done"] for event in events[:-1]] == [3, 4, 5]
        assert [event["id"] for event in events] == [*ids[2:5], "end"]


def test_a_stream_resumes_at_another_api(settings: Settings, worker: Worker, video: bytes) -> None:
    port = free_port()
    with running_api(settings, port) as url:
        job_id = submit(url, video)
        worker.take(job_id)
        worker.report(job_id, 1)
        events = iter(Stream(url, job_id))
        last = next(events)["id"]
    assert list(events) == []  # the server has closed its streams
    worker.report(job_id, 2)
    with running_api(settings, port) as url:
        events = iter(Stream(url, job_id, last))
        assert next(events)["job"]["frames_done"] == 2
        worker.end(job_id)
        assert [event["event"] for event in events] == ["end"]


def test_a_stopping_server_closes_its_streams(settings: Settings, video: bytes) -> None:
    assert settings.redis_url is not None
    port = free_port()
    environment = {"UVOS_REDIS_URL": settings.redis_url.get_secret_value(), "UVOS_DATA_DIR": str(settings.data_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    with Client(url) as client:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                client.is_ready()
                break
            time.sleep(0.1)
    events = iter(Stream(url, submit(url, video)))
    next(events)
    process.send_signal(signal.SIGINT)
    assert list(events) == []  # no error: the response is complete
    _, log = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGINT)
    assert "Traceback" not in log


def test_the_end_is_reported_when_redis_loses_data_or_dies(tmp_path: Path, video: bytes) -> None:
    with EmbeddedServer(tmp_path / "queue") as server:
        settings = Settings(redis_url=SecretStr(server.url), data_dir=tmp_path / "data")
        worker = Worker(settings)
        with running_api(settings) as url:
            job_id, other = submit(url, video), submit(url, video)
            forgotten = iter(Stream(url, job_id))
            next(forgotten)
            redis.Redis.from_url(server.url).flushall()
            worker.end(job_id)
            assert [event["event"] for event in forgotten][-1] == "end"
            silent = iter(Stream(url, other))
            next(silent)
            server.stop()
            worker.end(other)
            assert [event["event"] for event in silent] == ["end"]
            waited = httpx.get(f"{url}/jobs/{other}", params={"wait": 10}, timeout=20)
            assert waited.json()["status"] == "canceled"


def test_events_of_an_unknown_job_are_not_found(http: TestClient) -> None:
    response = http.get("/jobs/0123abc/events")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/job-not-found")


@pytest.mark.parametrize("last", ["", "0", "-", "1-x", "9" * 60, "end-", "$", "-1-1"])
def test_an_invalid_last_event_id_starts_from_the_beginning(
    worker: Worker, http: TestClient, video: bytes, last: str
) -> None:
    job_id = http.post("/segment", files={"video": ("clip.mp4", video)}).json()["id"]
    worker.end(job_id)
    response = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    assert response.status_code == 200
    assert "event: end" in response.text


def test_idle_streams_send_keep_alives(settings: Settings, http: TestClient, video: bytes) -> None:
    job_id = http.post("/segment", files={"video": ("clip.mp4", video)}).json()["id"]
    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()

    async def first_two() -> list[object]:
        storage = Storage(settings.data_dir, result_ttl_s=3600)
        jobs = Jobs(storage, Broker(connect(url), job_timeout_s=60), settings, Instruments())
        listener = Listener(url)
        received = []
        async for event in follow(jobs, listener, storage.record(job_id), None, keep_alive_s=1):
            received.append(event)
            if len(received) == 2:
                break
        await listener.close()
        return received

    job, silence = asyncio.run(first_two())
    assert job is not None
    assert silence is None


def test_a_hundred_long_polls_hold_no_threads(settings: Settings, worker: Worker, video: bytes) -> None:
    with running_api(settings) as url, ThreadPoolExecutor(100) as pool:
        job_id = submit(url, video)
        waiting = [pool.submit(httpx.get, f"{url}/jobs/{job_id}?wait=30", timeout=60) for _ in range(100)]
        time.sleep(1)
        began = time.monotonic()
        assert httpx.get(f"{url}/jobs/{job_id}", timeout=20).status_code == 200  # the thread pool of the server is free
        assert time.monotonic() - began < 5
        assert not any(poll.done() for poll in waiting)
        threading.Thread(target=worker.end, args=(job_id,)).start()
        assert {poll.result().json()["status"] for poll in waiting} == {"canceled"}


def test_a_long_poll_responds_after_its_wait(http: TestClient, video: bytes) -> None:
    job_id = http.post("/segment", files={"video": ("clip.mp4", video)}).json()["id"]
    began = time.monotonic()
    assert http.get(f"/jobs/{job_id}", params={"wait": 0.5}).json()["status"] == "queued"
    assert 0.4 < time.monotonic() - began < 5
