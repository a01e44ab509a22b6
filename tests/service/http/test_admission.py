"""Requests that are rejected before their body is read."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.jobs import Jobs
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker
from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video


def post_unread(settings: Settings, headers: list[tuple[bytes, bytes]]) -> tuple[int, dict[bytes, bytes]]:
    """Send POST /segment to the application; fails if it reads the body."""
    app = create_app(settings)
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    from service.jobs.queue import connect

    assert settings.redis_url is not None
    connection = connect(settings.redis_url.get_secret_value())
    jobs = Jobs(
        Storage(settings.data_dir, result_ttl_s=60), Broker(connection, job_timeout_s=60), settings, Instruments()
    )
    scope = {
        "type": "http", "method": "POST", "path": "/segment", "query_string": b"", "http_version": "1.1",
        "headers": headers, "state": {"jobs": jobs, "settings": settings}, "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    connection.close()
    return sent[0]["status"], dict(sent[0]["headers"])


def test_an_announced_size_above_the_limit_is_rejected(settings: Settings) -> None:
    status, headers = post_unread(settings, [(b"content-length", b"9" * 15)])
    assert status == 413
    assert headers[b"connection"] == b"close"


def test_a_full_queue_rejects_uploads(settings: Settings) -> None:
    small = settings.model_copy(update={"max_queued_jobs": 1})
    with TestClient(create_app(small)) as http:
        assert http.post("/segment", files={"video": ("a.mp4", stub_video())}).status_code == 202
        status, headers = post_unread(small, [])
    assert status == 503
    assert int(headers[b"retry-after"]) > 0


def test_a_missing_key_is_rejected(settings: Settings) -> None:
    guarded = settings.model_copy(update={"api_keys": SecretStr("ada:" + "0" * 64)})
    assert post_unread(guarded, [])[0] == 401


def test_an_unavailable_queue_rejects_uploads(settings: Settings) -> None:
    status, headers = post_unread(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1")}), [])
    assert status == 503
    assert int(headers[b"retry-after"]) > 0


@pytest.mark.parametrize("length", [b"", b"-1", b"abc", b"1e9"])
def test_an_invalid_content_length_is_ignored(settings: Settings, length: bytes) -> None:
    with pytest.raises(AssertionError, match="body was read"):
        post_unread(settings, [(b"content-length", length), (b"content-type", b"multipart/form-data; boundary=x")])
