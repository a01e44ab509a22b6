"""Deliver webhooks: signed, retried, and only to public addresses.

Signatures follow the Standard Webhooks specification. The secret of each API key is derived from the service's secret,
so that no receiver can forge webhooks for another.

Pending deliveries and their attempts are in storage and survive a restart. A webhook is sent only after the end of the
job is in storage, so the receiver can fetch the result.
"""

import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from service.storage.folder import Storage
from service.trace import child_of
from uvos.contract import Delivery, JobRecord, JobView
from uvos.errors import InvalidParameters, JobNotFound

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 15.0  # for all of it: name lookup, connection, response
SENDERS = 4  # concurrent deliveries, so that a slow receiver does not delay the others
MAX_URL = 2048  # characters
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Schedule:
    """When deliveries are attempted, seconds."""

    poll_interval_s: float
    retry_delays_s: Sequence[float]
    """Delay before each further attempt; after the last one the delivery is given up."""


class AddressRefused(Exception):
    """The host has no address that webhooks may be sent to."""


class Webhooks:
    """Delivers pending webhooks in background threads while the service runs."""

    def __init__(
        self,
        storage: Storage,
        *,
        secret: str,
        networks: Sequence[Network],
        view: Callable[[str], JobView],
        schedule: Schedule,
    ) -> None:
        self.storage = storage
        self.secret = secret
        self.networks = networks
        self.view = view
        self.schedule = schedule
        self._due_at: dict[str, float] = {}  # monotonic clock
        self._sending: set[str] = set()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _run(self) -> None:
        while not self._stopped.wait(self.schedule.poll_interval_s):
            try:
                self.send_due()
            except OSError as error:
                log.warning("webhooks are delayed: storage failed (%s)", error)

    def send_due(self) -> None:
        """Start the deliveries that are due."""
        waiting = set(self.storage.pending_callbacks())
        self._due_at = {job_id: due for job_id, due in self._due_at.items() if job_id in waiting}
        now = time.monotonic()
        for job_id in waiting - self._sending:
            if self._due_at.get(job_id, now) <= now and self.storage.has_ended(job_id):
                self._sending.add(job_id)
                self._pool.submit(self._deliver, job_id)

    def _deliver(self, job_id: str) -> None:
        try:
            with self.storage.callback_lock(job_id) as is_locked:
                if is_locked:
                    self._attempt(job_id)
        except JobNotFound:
            self.storage.remove_callback(job_id)
        except Exception:
            log.exception("job %s: the webhook could not be sent", job_id)
            self._due_at[job_id] = time.monotonic() + self.schedule.retry_delays_s[0]
        finally:
            self._sending.discard(job_id)

    def _attempt(self, job_id: str) -> None:
        """Make the next attempt if it is due, and record it."""
        record = self.storage.record(job_id)
        if record.callback_url is None:  # the record of the job is damaged
            self.storage.remove_callback(job_id)
            return
        last = self.storage.last_delivery(job_id)
        now = datetime.now(UTC)
        if last is not None and last.next_at is None:  # the last attempt; its process died before it removed the marker
            self.storage.remove_callback(job_id)
            return
        if last is not None and last.next_at is not None and last.at <= now < last.next_at:
            self._wait_until(job_id, last.next_at)
            return  # unless the clock was set back since the attempt: then its schedule is not known
        status, error = self._send(record, self.view(job_id))
        delivery = self._delivery(1 if last is None else last.attempt + 1, now, status, error)
        self.storage.record_delivery(job_id, delivery)
        log.info("job %s: webhook, attempt %d: %s", job_id, delivery.attempt, error or status)
        if delivery.next_at is None:
            self.storage.remove_callback(job_id)
        else:
            self._wait_until(job_id, delivery.next_at)

    def _wait_until(self, job_id: str, at: datetime) -> None:
        self._due_at[job_id] = time.monotonic() + (at - datetime.now(UTC)).total_seconds()

    def _send(self, record: JobRecord, job: JobView) -> tuple[int | None, str | None]:
        """Send one webhook; the HTTP status of the response, or the error."""
        content = {
            "type": f"job.{job.status.value}",
            "timestamp": (job.ended_at or datetime.now(UTC)).isoformat(),
            "data": job.model_dump(mode="json", exclude_none=True),
        }
        body = json.dumps(content)
        headers = sign(body, f"msg_{job.id}", datetime.now(UTC), secret_of(self.secret, record.owner))
        headers["traceparent"] = child_of(record.traceparent)
        assert record.callback_url is not None
        try:
            return post(record.callback_url, body.encode(), headers, networks=self.networks), None
        except (AddressRefused, OSError, http.client.HTTPException, ValueError) as failure:
            return None, str(failure)[:200] or type(failure).__name__

    def _delivery(self, attempt: int, at: datetime, status: int | None, error: str | None) -> Delivery:
        delays_s = self.schedule.retry_delays_s
        is_accepted = status is not None and (200 <= status < 300 or status == 410)
        is_last = is_accepted or attempt > len(delays_s)
        next_at = None if is_last else datetime.now(UTC) + timedelta(seconds=delays_s[attempt - 1])
        return Delivery(attempt=attempt, at=at, status=status, error=error, next_at=next_at)


def check_url(url: str, field: str = "callback_url") -> str:
    """Validate the URL in a field; the address of its host is checked at each request.

    Raises:
        InvalidParameters: It is not an http or https URL, has credentials, or exceeds `MAX_URL`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or port == 0
        or len(url) > MAX_URL
        or not url.isascii()
        or any(character <= " " or character == "\x7f" for character in url)
    ):
        raise InvalidParameters(
            f"{field} must be an http or https URL without credentials, of at most {MAX_URL} ASCII characters",
            actual=url[:200],
        )
    return url


def sign(body: str, message_id: str, timestamp: datetime, secret: bytes) -> dict[str, str]:
    """The headers of the Standard Webhooks specification."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(timestamp.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, timestamp, body),
    }


def secret_of(service_secret: str, owner: str | None) -> bytes:
    """The signing secret of one API key; `uvos keys webhook` prints it as "whsec_" and base64."""
    return hmac.new(service_secret.encode(), f"uvos webhook {owner or ''}".encode(), hashlib.sha256).digest()


def post(
    url: str,
    body: bytes,
    headers: dict[str, str],
    *,
    networks: Sequence[Network] = (),
    timeout_s: float = DELIVERY_TIMEOUT_S,
) -> int:
    """POST to a public address, or to one in `networks`. Redirects are not followed.

    Returns:
        The HTTP status of the response.

    Raises:
        AddressRefused: The host has no such address.
        OSError, http.client.HTTPException: There is no valid response within the timeout.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    encrypted = parts.scheme == "https"
    deadline = time.monotonic() + timeout_s
    plain = open_checked(parts.hostname, parts.port or (443 if encrypted else 80), networks, timeout_s=timeout_s)
    # The timeout of a socket is per read; the timer also ends a response that arrives byte by byte.
    timer = threading.Timer(max(0.1, deadline - time.monotonic()), shut_down, (plain,))
    timer.start()
    try:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
        tls = ssl.create_default_context() if encrypted else None
        connection.sock = tls.wrap_socket(plain, server_hostname=parts.hostname) if tls else plain
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        all_headers = {
            "Content-Type": "application/json",
            "User-Agent": "uvos-webhooks",
            "Host": parts.netloc,
            **headers,
        }
        connection.request("POST", path, body, all_headers)
        with connection.getresponse() as response:
            return response.status
    finally:
        timer.cancel()
        shut_down(plain)
        plain.close()
        with suppress(UnboundLocalError, OSError):
            connection.close()


def shut_down(connection: socket.socket) -> None:
    """End a connection that other threads use."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def open_checked(host: str, port: int, networks: Sequence[Network], *, timeout_s: float) -> socket.socket:
    """Connect to the first allowed address of a host.

    The connection goes to the address that was checked, not to the name, which could resolve differently a second time.

    Raises:
        AddressRefused: The host has no allowed address.
        OSError: The name does not resolve, or the connection fails.
    """
    refused = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_allowed(str(address[0]), networks):
            refused = AddressRefused(f"{host} is at {address[0]}, which is not a public address")
            continue
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_s / 2)
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection
    raise refused or AddressRefused(f"{host} has no address")


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address is public or in one of `networks`; IPv4 addresses embedded in IPv6 are checked as such."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return is_allowed(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)), networks)
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_allowed(str(inner), networks)
    if any(ip.version == network.version and ip in network for network in networks):
        return True
    return ip.is_global and not ip.is_multicast
