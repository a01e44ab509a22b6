"""GET /metrics: sums over all processes, in the format that Prometheus accepts, at a cost independent of the jobs."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.jobs.metrics import HASH, Instruments, Publisher
from service.jobs.queue import Broker, connect
from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from tests.worker.jobs.test_worker import running_worker, warm_up
from uvos.contract import WorkerInfo


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    assert settings.redis_url is not None
    with closing(connect(settings.redis_url.get_secret_value())) as connection:
        yield Broker(connection, job_timeout_s=60)


def value(text: str, sample: str) -> float:
    """The value of a sample, written as in the text format."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{sample} ")]
    return float(line.rsplit(" ", 1)[1])


def until(http: TestClient, sample: str) -> str:
    """The metrics as soon as they have this sample; processes publish once a second."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = http.get("/metrics").text
        if f"\n{sample} " in text:
            return text
        time.sleep(0.1)
    raise AssertionError(f"no {sample} in\n{text}")


def submit(http: TestClient, video: bytes) -> str:
    job_id: str = http.post("/segment", files={"video": ("a.mp4", video)}).json()["id"]
    return job_id


def test_a_job_is_measured_from_the_request_to_the_end(http: TestClient, settings: Settings, broker: Broker) -> None:
    job_ids = [submit(http, stub_video(0)), submit(http, stub_video(crash=True))]
    assert value(http.get("/metrics").text, "uvos_jobs_waiting") == 2
    assert 0 < value(http.get("/metrics").text, "uvos_oldest_job_seconds") < 60
    quick = settings.model_copy(update={"max_attempts": 1})
    with running_worker(quick) as worker:
        for job_id in job_ids:
            warm_up(worker)
            broker.dequeue(job_id, owner=None)
            worker.execute(job_id)
        publisher = Publisher(worker.instruments, broker.connection)
        publisher.publish()
        publisher.publish()  # adds nothing
    text = until(http, 'uvos_http_requests_total{method="POST",route="/segment",status="202"}')
    assert value(text, 'uvos_jobs_ended_total{outcome="succeeded",problem=""}') == 1
    assert value(text, 'uvos_jobs_ended_total{outcome="failed",problem="too-many-attempts"}') == 1
    assert value(text, 'uvos_child_deaths_total{reason="crash"}') == 1
    assert value(text, "uvos_queue_wait_seconds_count") == 2
    assert value(text, "uvos_job_seconds_count") == 1
    assert value(text, 'uvos_job_seconds_bucket{le="+Inf"}') == 1
    assert value(text, "uvos_jobs_accepted_total") == 2
    assert value(text, "uvos_jobs_waiting") == 0


def test_refused_uploads_are_counted_by_problem_and_requests_by_route(http: TestClient) -> None:
    assert http.post("/segment", files={"video": ("a.txt", b"text")}).status_code == 415
    assert http.post("/segment", data={"tau": "1"}).status_code == 422
    assert http.post("/segment", headers={"Origin": "http://elsewhere"}).status_code == 403  # by a middleware
    assert http.get("/jobs/0123abc").status_code == http.get("/jobs/0123abd").status_code == 404
    assert http.get("/no/such/page").status_code == 404
    text = until(http, 'uvos_http_requests_total{method="GET",route="none",status="404"}')
    for reason in ("not-a-video", "invalid-parameters", "foreign-page"):
        assert value(text, f'uvos_uploads_refused_total{{reason="{reason}"}}') == 1
    assert value(text, 'uvos_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"}') == 2
    assert value(text, 'uvos_http_request_seconds_count{method="GET",route="/jobs/{job_id}"}') == 2


def test_counts_of_several_processes_are_added_and_survive_an_outage_of_redis(broker: Broker, http: TestClient) -> None:
    processes = [Instruments(), Instruments()]
    publishers = [Publisher(process, broker.connection) for process in processes]
    for process, publisher in zip(processes, publishers, strict=True):
        process.frames.inc(10)
        publisher.publish()
    assert value(http.get("/metrics").text, "uvos_frames_total") == 20
    broker.connection.delete(HASH)  # a counter that restarts at zero, which Prometheus expects
    processes[0].frames.inc(5)
    publishers[0].publish()
    assert value(http.get("/metrics").text, "uvos_frames_total") == 5


def test_the_state_of_workers_is_reported(broker: Broker, http: TestClient) -> None:
    broker.announce_worker(
        WorkerInfo(name="a", device="cuda", models={"tiny": "1"}, memory_bytes=9, memory_peak_bytes=4)
    )
    broker.announce_worker(WorkerInfo(name="b", device="cuda", busy_with="1", memory_bytes=7, memory_peak_bytes=6))
    broker.announce_worker(WorkerInfo(name="c", device="starting", problem="the models are being loaded"))
    text = http.get("/metrics").text
    assert [value(text, f'uvos_workers{{state="{state}"}}') for state in ("busy", "idle", "unavailable")] == [1, 1, 1]
    assert value(text, 'uvos_warm_models{model="tiny"}') == 1
    assert value(text, "uvos_jobs_open") == value(text, "uvos_jobs_running") == 1
    assert value(text, "uvos_device_memory_peak_bytes") == 6


def test_prometheus_accepts_the_format(http: TestClient) -> None:
    http.get("/jobs/0123abc")
    text = until(http, 'uvos_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"}')
    assert len(list(text_string_to_metric_families(text))) > 15
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_cost_does_not_depend_on_the_number_of_jobs(http: TestClient, settings: Settings, broker: Broker) -> None:
    storage = Storage(settings.data_dir, result_ttl_s=60)
    assert broker.connection.ping()

    def reads() -> int:
        def calls() -> int:
            statistics = broker.connection.info("commandstats")
            return sum(entry["calls"] for entry in statistics.values())

        before = calls()
        http.get("/metrics")
        return calls() - before

    few = min(reads() for _ in range(3))
    for number in range(300):
        broker.connection.set(f"uvos:progress:{number:032x}", "{}")
        (storage.root / "open" / f"{number:032x}").touch()
    assert min(reads() for _ in range(3)) == few
