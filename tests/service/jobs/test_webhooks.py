"""Webhooks: signed, sent to public addresses only, retried across restarts, sent after the end is in storage."""

import base64
import hashlib
import hmac
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.public_address import AddressRefused, check_url, is_allowed
from service.jobs.webhooks import post, secret_of, sign
from service.settings import Settings
from tests.chaos.stub_child import stub_video
from uvos.contract import Delivery, JobEnd, Status
from uvos.errors import InvalidParameters

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SECRET = "a secret of the service"


class Receiver:
    """A webhook receiver with programmed responses that records its requests."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.on_request: Any = lambda: None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.on_request()
                receiver.requests.append((dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def enabled(settings: Settings) -> Settings:
    """Settings that enable webhooks, to loopback too, with short delays."""
    return settings.model_copy(
        update={
            "webhook_secret": SecretStr(SECRET),
            "webhook_networks": [LOOPBACK],
            "webhook_poll_interval_s": 0.05,
            "webhook_retry_delays_s": (0.1, 0.1, 60),
        }
    )


def submit(http: TestClient, url: str):  # type: ignore[no-untyped-def]
    return http.post("/segment", files={"video": ("a.mp4", stub_video())}, data={"callback_url": url})


def last_delivery(http: TestClient, job_id: str, attempt: int) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        last: dict[str, Any] = http.get(f"/jobs/{job_id}").json()["callback"].get("last_delivery", {})
        if last.get("attempt") == attempt:
            return last
        time.sleep(0.02)
    raise AssertionError(f"no attempt {attempt}: {last}")


def test_a_webhook_is_signed_and_sent_after_the_end_is_in_storage(enabled: Settings, receiver: Receiver) -> None:
    with TestClient(create_app(enabled)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        end_existed = []
        receiver.on_request = lambda: end_existed.append((enabled.data_dir / "jobs" / job_id / "end.json").exists())
        time.sleep(0.3)
        assert receiver.requests == []
        http.post(f"/jobs/{job_id}/cancel")
        last = last_delivery(http, job_id, 1)
    assert last["status"] == 204
    assert "next_at" not in last
    assert end_existed == [True]
    [(headers, body)] = receiver.requests
    content = Webhook(secret_of(SECRET, None)).verify(body, headers)
    assert content["type"] == "job.canceled"
    assert content["data"]["id"] == job_id
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = hmac.new(secret_of(SECRET, None), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    assert headers["webhook-id"] == f"msg_{job_id}"
    assert headers["traceparent"].split("-")[1] == content["data"]["trace_id"]
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60


def test_a_failed_delivery_is_retried_also_after_a_restart(enabled: Settings, receiver: Receiver) -> None:
    receiver.statuses = [500, 302]
    with TestClient(create_app(enabled)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        http.post(f"/jobs/{job_id}/cancel")
        last_delivery(http, job_id, 2)
    with TestClient(create_app(enabled)) as http:
        assert last_delivery(http, job_id, 3)["status"] == 204
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert os.listdir(enabled.data_dir / "callbacks") == []


def test_a_webhook_is_not_delayed_by_a_clock_that_was_set_back(enabled: Settings, receiver: Receiver) -> None:
    with TestClient(create_app(enabled)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        delivery = Delivery(attempt=1, at=tomorrow, status=500, next_at=tomorrow + timedelta(minutes=1))
        http.app_state["jobs"].storage.record_delivery(job_id, delivery)
        http.post(f"/jobs/{job_id}/cancel")
        assert last_delivery(http, job_id, 2)["status"] == 204


def test_two_api_processes_deliver_a_webhook_once(enabled: Settings, receiver: Receiver) -> None:
    with TestClient(create_app(enabled)) as http, TestClient(create_app(enabled)):
        receiver.on_request = lambda: time.sleep(0.3)
        job_id = submit(http, receiver.url).json()["id"]
        http.post(f"/jobs/{job_id}/cancel")
        last_delivery(http, job_id, 1)
        time.sleep(0.3)
    assert len(receiver.requests) == 1


def test_no_webhook_is_sent_to_a_private_address(enabled: Settings, receiver: Receiver) -> None:
    strict = enabled.model_copy(update={"webhook_networks": []})
    with TestClient(create_app(strict)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        http.post(f"/jobs/{job_id}/cancel")
        last = last_delivery(http, job_id, 1)
    assert "not a public address" in last["error"]
    assert receiver.requests == []


def test_no_webhook_is_sent_for_a_deleted_job(enabled: Settings, receiver: Receiver) -> None:
    with TestClient(create_app(enabled)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        http.delete(f"/jobs/{job_id}")
        time.sleep(0.3)
    assert receiver.requests == []
    assert os.listdir(enabled.data_dir / "callbacks") == []


def test_a_callback_url_is_rejected_while_webhooks_are_disabled(http: TestClient) -> None:
    response = submit(http, "https://example.com/")
    assert response.status_code == 422
    assert "UVOS_WEBHOOK_SECRET is not set" in response.json()["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a.b/",
        "//a.b/",
        "http://",
        "http://u:p@a.b/",
        "http://a b/",
        "http://a.b:99999/",
        "http://a.b:0/",
        "http://a.b/\r\nX: y",
        "file:///etc/passwd",
        "http://[::1",
        "http://ä.b/",
        "http://a.b/" + "x" * 2050,
    ],
)
def test_an_invalid_callback_url_is_rejected(url: str) -> None:
    with pytest.raises(InvalidParameters):
        check_url(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "2001:db8::1",
    ],
)
def test_private_addresses_are_not_allowed(address: str) -> None:
    assert not is_allowed(address, [])


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, [])


@given(st.ip_addresses(v=4))
def test_an_embedded_ipv4_address_is_checked_as_such(address: ipaddress.IPv4Address) -> None:
    forms = (f"::ffff:{address}", str(ipaddress.IPv6Address((0x64FF9B << 96) + int(address))))
    assert {is_allowed(form, []) for form in forms} == {is_allowed(str(address), [])}


@pytest.mark.parametrize(
    ("scheme", "beginning"), [("http", b""), ("https", b"\x16\x03\x03\x40\x00")], ids=["response", "handshake"]
)
def test_what_arrives_byte_by_byte_is_cut_off(scheme: str, beginning: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(beginning)
                    for _ in range(100):
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        with pytest.raises(Exception, match=r".*"):
            post(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}, networks=[LOOPBACK], timeout_s=0.5)
        assert time.monotonic() - start < 3
        thread.join()


def test_a_name_that_resolves_to_a_private_address_is_refused() -> None:
    with pytest.raises(AddressRefused):
        post("http://localhost:9/", b"{}", {})


def test_each_api_key_has_its_own_secret() -> None:
    now = datetime.now(UTC)
    headers = sign("{}", "msg_1", now, secret_of(SECRET, "ada"))
    Webhook(secret_of(SECRET, "ada")).verify("{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(SECRET, "bob")).verify("{}", headers)


def test_a_job_that_ended_while_the_api_was_down_gets_its_webhook(enabled: Settings, receiver: Receiver) -> None:
    with TestClient(create_app(enabled)) as http:
        job_id = submit(http, receiver.url).json()["id"]
        storage = http.app_state["jobs"].storage
    now = datetime.now(UTC)
    storage.finish(job_id, JobEnd(status=Status.failed, ended_at=now, expires_at=now + timedelta(hours=1)))
    with TestClient(create_app(enabled)) as http:
        last_delivery(http, job_id, 1)
    assert json.loads(receiver.requests[0][1])["type"] == "job.failed"
