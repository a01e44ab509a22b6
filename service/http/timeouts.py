"""Connection timeouts: a deadline for request headers and a minimum rate for bodies, in both directions.

h11 limits the size of headers, but neither h11 nor uvicorn limits the time that a client takes to send them, to send
a body or to read a response. Each slow connection holds a socket, a task and memory. The bytes that a client has read
come from the kernel (TCP_INFO), because asyncio's write buffer drains in steps of megabytes.
"""

import asyncio
import json
import random
import socket
import struct
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.problems import MEDIA_TYPE
from uvos.errors import RequestTooSlow

BYTES_ACKED_OFFSET = 120  # of tcpi_bytes_acked in struct tcp_info (linux/tcp.h, since Linux 4.1)


@dataclass(frozen=True)
class Timeouts:
    """Limits for slow connections; `TimeoutProtocol` enforces them."""

    header_s: float = 8.0
    """Deadline for the headers of a request."""
    body_window_s: float = 10.0
    """Window over which the upload rate is measured."""
    read_window_s: float = 60.0
    """Window over which the download rate is measured; on loopback the TCP window opens in steps of 64 KiB, which
    takes longer than `body_window_s` at the minimum rate."""
    min_bytes_per_s: float = 1000.0
    """Minimum rate in both directions; no network that carries video is slower."""
    check_interval_s: tuple[float, float] = (1.0, 2.0)
    """Range of the random interval between checks; random so that the checks of many connections do not coincide."""


class TimeoutProtocol(H11Protocol):
    """uvicorn's h11 protocol with `Timeouts`."""

    def __init__(self, *args: Any, timeouts: Timeouts, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timeouts = timeouts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._now = asyncio.get_running_loop().time
        self._headers_since: float | None = self._now()
        self._received = 0
        self._body_since, self._body_received = self._now(), 0
        self._read_since, self._read_acked = self._now(), 0
        self._is_lost = False
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
        asyncio.get_running_loop().call_later(random.uniform(*self._timeouts.check_interval_s), self._check)

    def _check(self) -> None:
        if self._is_lost:
            return
        now, limits = self._now(), self._timeouts
        if self._reads_too_slowly(now):
            self.transport.abort()  # close() would first wait for the client to read the rest
        elif self.transport.is_closing():  # the client still reads the end of the response
            self._schedule_check()
        elif self._headers_since is not None and now - self._headers_since > limits.header_s:
            self._reject(f"the headers did not arrive within {limits.header_s:g} s")
        elif self._sends_too_slowly(now):
            least = limits.min_bytes_per_s * limits.body_window_s
            self._reject(f"less than {least:g} bytes arrived within {limits.body_window_s:g} s")
        else:
            self._schedule_check()

    def _sends_too_slowly(self, now: float) -> bool:
        """Whether a window of the body has passed below the minimum rate."""
        limits = self._timeouts
        is_waiting_for_client = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        if is_waiting_for_client and now - self._body_since < limits.body_window_s:
            return False
        received = self._received - self._body_received
        self._body_since, self._body_received = now, self._received
        return is_waiting_for_client and received < limits.min_bytes_per_s * limits.body_window_s

    def _reads_too_slowly(self, now: float) -> bool:
        """Whether data was pending during a whole window in which the client read below the minimum rate."""
        limits = self._timeouts
        acked = self._acked_bytes() if self.transport.get_write_buffer_size() else None
        if acked is None:  # nothing is pending, or the kernel does not report it
            self._read_since, self._read_acked = now, 0
        elif not self._read_acked or now - self._read_since >= limits.read_window_s:
            if self._read_acked and acked - self._read_acked < limits.min_bytes_per_s * limits.read_window_s:
                return True
            self._read_since, self._read_acked = now, acked
        return False

    def _acked_bytes(self) -> int | None:
        """Bytes that the client has acknowledged on this connection; None where the kernel does not report them."""
        connection = self.transport.get_extra_info("socket")
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            (acked,) = struct.unpack_from("Q", info, BYTES_ACKED_OFFSET)
        except (AttributeError, OSError, struct.error):  # not Linux, not TCP, or an old kernel
            return None
        return int(acked)

    def _reject(self, detail: str) -> None:
        """Respond with 408 where a response has not begun, and close the connection."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # discards a later response of the application
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = RequestTooSlow(detail).problem()
            body = json.dumps(problem.model_dump(exclude_none=True)).encode()
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol(timeouts: Timeouts) -> type[asyncio.Protocol]:
    """The value for `http` of `uvicorn.Config`, which calls it with the protocol's own arguments."""
    return partial(TimeoutProtocol, timeouts=timeouts)  # type: ignore[return-value]
