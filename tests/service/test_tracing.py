"""One trace id from POST /segment to the child and the webhook, and logs as JSON."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from service.logs import JsonFormatter, job_context
from service.settings import Settings
from service.trace import TRACEPARENT, child_of
from tests.chaos.stub_child import stub_video
from tests.worker.jobs.test_worker import running_worker, warm_up

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


def test_a_span_continues_the_trace_of_its_caller() -> None:
    span = child_of(CALLER)
    assert span.startswith(f"00-{TRACE}-")
    assert span.endswith("-01")
    assert span != CALLER
    assert child_of(f"cc-{TRACE}-b7ad6b7169203331-00-future").split("-")[1] == TRACE


@pytest.mark.parametrize(
    "header",
    [None, "", "00", CALLER + "-more", f"ff{CALLER[2:]}", f"00-{'0' * 32}-b7ad6b7169203331-01", CALLER.upper()],
)
def test_without_a_valid_caller_a_new_trace_begins(header: str | None) -> None:
    span = child_of(header)
    assert TRACEPARENT.fullmatch(span)
    assert TRACE not in span


def test_the_trace_of_a_request_is_kept_with_its_job(http: TestClient) -> None:
    job = http.post("/segment", files={"video": ("a.mp4", stub_video())}, headers={"traceparent": CALLER}).json()
    assert job["trace_id"] == TRACE
    assert http.get(f"/jobs/{job['id']}").json()["trace_id"] == TRACE
    other = http.post("/segment", files={"video": ("a.mp4", stub_video())}).json()
    assert len(other["trace_id"]) == 32
    assert other["trace_id"] != TRACE


def test_log_lines_of_a_job_have_its_ids() -> None:
    formatter = JsonFormatter("worker")
    log = logging.getLogger("test")

    def line(message: str, *arguments: object) -> dict[str, object]:
        record = log.makeRecord("test", logging.INFO, "file", 1, message, arguments, None)
        parsed: dict[str, object] = json.loads(formatter.format(record))
        return parsed

    assert line("job %s: a\nb", "123")["job_id"] == "123"
    assert "job_id" not in line("starts")
    with job_context("123", TRACE):
        inside = line("decodes %d frames", 3)
    assert (inside["job_id"], inside["trace_id"], inside["message"]) == ("123", TRACE, "decodes 3 frames")


def test_every_execution_of_a_job_writes_its_trace_also_after_a_crash(
    http: TestClient, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    crashing = stub_video(crash=True, log="parses the video")
    job = http.post("/segment", files={"video": ("a.mp4", crashing)}, headers={"traceparent": CALLER}).json()
    with running_worker(settings.model_copy(update={"log_format": "json"})) as worker:
        for _ in range(2):
            warm_up(worker)
            worker.execute(job["id"])
    children = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["message"] for line in children] == ["parses the video"] * 2
    assert {(line["trace_id"], line["job_id"], line["process"]) for line in children} == {(TRACE, job["id"], "child")}
    assert len({line["pid"] for line in children}) == 2
