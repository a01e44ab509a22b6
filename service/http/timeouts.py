"""HTTP connections that must get on: a deadline for headers, a least pace for bodies, in both directions.

A client that sends a byte now and then holds a connection, a task and a file for as long as it likes; h11 bounds the
size of headers, nothing in uvicorn their time. One that reads a byte now and then holds them too, and what is made in
memory for it. How much it has taken is the kernel's to tell: our own buffer empties by megabytes, as its does.
"""

import asyncio
import json
import random
import socket
import struct
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.problems import MEDIA_TYPE
from uvos.errors import RequestTooSlow

CHECK_S = (1.0, 2.0)  # at random between these, so that many connections are not looked at together
HEADERS_WITHIN_S = 8.0
BODY_WINDOW_S = 10.0
BODY_BYTES_PER_WINDOW = 10_000  # a kilobyte a second: slower than any line that a video is sent over
READ_BYTES_PER_S = 1000  # as slow a reader as a sender
BYTES_ACKED_AT = 120  # tcpi_bytes_acked in struct tcp_info of Linux's tcp.h (4.1 and later)


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol, and an end to waiting."""

    READ_WINDOW_S: ClassVar[float] = 60.0
    """A reader's window opens by 64 KiB at a time on loopback, hence longer than that for senders."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._now = asyncio.get_running_loop().time
        self._headers_since: float | None = self._now()
        self._received = 0
        self._window_since, self._window_received = self._now(), 0
        self._is_lost = False
        self._read_since, self._read_bytes = self._now(), 0
        self._schedule_check()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers_since = None
        elif self._headers_since is None:
            self._headers_since = self._now()

    def _schedule_check(self) -> None:
        asyncio.get_running_loop().call_later(random.uniform(*CHECK_S), self._check)

    def _check(self) -> None:
        if self._is_lost:
            return
        now = self._now()
        if self._reads_too_slowly(now):
            self.transport.abort()  # to close would wait until it has read all
            return
        if self.transport.is_closing():  # it still reads what was said to it
            self._schedule_check()
            return
        if self._headers_since is not None and now - self._headers_since > HEADERS_WITHIN_S:
            self._cut_off(f"the headers did not arrive within {HEADERS_WITHIN_S:g} s")
            return
        if self.conn.their_state is not h11.SEND_BODY or self.flow.read_paused:  # it is not they who are slow
            self._window_since, self._window_received = now, self._received
        elif now - self._window_since >= BODY_WINDOW_S:
            if self._received - self._window_received < BODY_BYTES_PER_WINDOW:
                self._cut_off(f"less than {BODY_BYTES_PER_WINDOW} bytes arrived in {BODY_WINDOW_S:g} s")
                return
            self._window_since, self._window_received = now, self._received
        self._schedule_check()

    def _reads_too_slowly(self, now: float) -> bool:
        """Whether something has waited for the client all through a window and it took next to nothing."""
        taken = self._taken_bytes() if self.transport.get_write_buffer_size() else None
        if taken is None:  # nothing waits, or the kernel does not tell
            self._read_since, self._read_bytes = now, 0
        elif not self._read_bytes or now - self._read_since >= self.READ_WINDOW_S:
            if self._read_bytes and taken - self._read_bytes < READ_BYTES_PER_S * self.READ_WINDOW_S:
                return True
            self._read_since, self._read_bytes = now, taken
        return False

    def _taken_bytes(self) -> int | None:
        """How many bytes the other side has acknowledged since the connection was made; None where nobody knows."""
        connection = self.transport.get_extra_info("socket")
        try:
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            (taken,) = struct.unpack_from("Q", told, BYTES_ACKED_AT)
        except (AttributeError, OSError, struct.error):  # not Linux, not TCP, or an old kernel
            return None
        return int(taken)

    def _cut_off(self, why: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # whatever the app says now comes too late
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = RequestTooSlow(why).problem()
            body = json.dumps(problem.model_dump(exclude_none=True)).encode()
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
