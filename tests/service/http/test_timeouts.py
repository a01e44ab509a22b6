"""Connections that hold on and send nothing to speak of are cut off; others do not notice them."""

import os
import selectors
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.timeouts import DeadlineProtocol
from tests.service.live import free_port

CLOSED_WITHIN_S = 15.0
FULL = 500
CONNECTIONS = int(os.environ.get("UVOS_TEST_CONNECTIONS", "200"))


def connect(port: int, first: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(first)
    connection.setblocking(False)
    return connection


SILENT = b""
HEADERS = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: "
BODY = (
    b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b'Content-Length: 1000000\r\n\r\n--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
)
AFTER_ANSWER = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\n"


def test_slow_connections_are_closed_and_others_do_not_notice(port: int) -> None:
    kinds = (SILENT, HEADERS, BODY, AFTER_ANSWER)
    slow = {connect(port, kinds[index % len(kinds)]): index for index in range(CONNECTIONS)}
    opened_at = time.monotonic()
    answers, last_drip, last_ask = [], opened_at, 0.0
    with selectors.DefaultSelector() as selector, httpx.Client(trust_env=False) as healthy:
        for connection in slow:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() - opened_at < CLOSED_WITHIN_S:
            for key, _ in selector.select(0.05):
                try:
                    is_open = bool(key.fileobj.recv(4096))  # type: ignore[union-attr]
                except ConnectionError:
                    is_open = False
                if not is_open:
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if now - last_drip > 1:
                last_drip = now
                for connection, index in slow.items():
                    if index % len(kinds) and connection in selector.get_map():
                        with suppress(OSError):
                            connection.send(b"x")
            if now - last_ask > 0.1:
                last_ask = time.monotonic()
                healthy.get(f"http://127.0.0.1:{port}/livez").raise_for_status()
                answers.append(time.monotonic() - last_ask)
        left, closed_s = len(selector.get_map()), time.monotonic() - opened_at
    for connection in slow:
        connection.close()
    assert left == 0, f"{left} are still open after {CLOSED_WITHIN_S} s"
    slowest = sorted(answers)[int(len(answers) * 0.99)]
    print(f"{CONNECTIONS} closed within {closed_s:.1f} s; healthy: {len(answers)} answers, p99 {slowest * 1000:.0f} ms")
    # a short run has too few answers for its p99 to mean more than the one slowest
    assert (slowest if CONNECTIONS >= FULL else statistics.median(answers)) < 0.25


def test_a_slow_body_is_told_why_and_leaves_nothing(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(BODY)
        connection.settimeout(CLOSED_WITHIN_S)
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-too-slow" in answer


def test_endless_headers_are_cut_off(port: int) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(CLOSED_WITHIN_S)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(ConnectionError):
            while sent < 2**24:
                sent += connection.send(b"X-Header: " + b"x" * 4000 + b"\r\n")
    assert sent < 2**22


def test_an_upload_at_a_common_pace_goes_through(port: int) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n\0\0\0\x18ftypmp42'
        for _ in range(12):
            time.sleep(1)
            yield bytes(4096)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = httpx.post(f"http://127.0.0.1:{port}/segment", content=body(), headers=headers, trust_env=False)
    assert response.status_code == 202


class Impatient(DeadlineProtocol):
    READ_WINDOW_S = 3.0


LARGE = 2**26  # more than the kernel's buffers take at both ends


@contextmanager
def large_answers() -> Iterator[int]:
    """A port where every request is answered with much at once, to be read within the pace of `Impatient`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(bytes(LARGE))(scope, receive, send)

    port = free_port()
    config = uvicorn.Config(app, port=port, http=Impatient, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(20)


def read_at(port: int, bytes_per_s: int, seconds: float, request: bytes) -> tuple[int, bool]:
    """How much was read in that time, and whether the other side still had more to say."""
    read = 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            read += len(connection.recv(max(1, bytes_per_s // 10)))
            time.sleep(0.1)
        try:
            while data := connection.recv(1 << 20):
                read += len(data)
        except ConnectionResetError:
            return read, False
    return read, read > LARGE


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word is asked for in Linux's form")
@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"])
def test_a_reader_that_takes_next_to_nothing_is_cut_off_and_a_slow_one_is_not(last: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + last + b"\r\n"
    with large_answers() as port:
        read, got_all = read_at(port, 10, 11, request)
        assert not got_all
        assert read < LARGE
        if last:
            assert read_at(port, 200_000, 11, request)[1]
