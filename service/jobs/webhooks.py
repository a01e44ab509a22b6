"""Tell a client's own server how its job ended: signed, retried, and only to addresses that are public.

Signed as in the Standard Webhooks specification (standardwebhooks.com): `webhook-id`, `webhook-timestamp`, and
`webhook-signature: v1,<base64>`, an HMAC-SHA256 over "id.timestamp.body". Each caller has a secret of its own,
derived from the service's, so that none can sign for another.

What is to be told lies in storage with each attempt that was made, so a restart forgets nothing. Nothing is told
before the job's end lies there too: whoever is told can read the result.
"""

import base64
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
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from service.storage.folder import Storage
from uvos.contract import Delivery, JobView
from uvos.errors import InvalidParameters, JobNotFound

log = logging.getLogger(__name__)

RETRY_AFTER_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)  # then it is given up
POLL_S = 1.0
ANSWER_WITHIN_S = 15.0  # all of it: address, connection, answer
SENDERS = 4  # one receiver that is slow shall not delay the others
MAX_URL = 2048
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefused(Exception):
    """The host is not at an address that may be called."""


class Webhooks:
    """Delivers what is due, in threads of its own, while the service runs."""

    def __init__(
        self, storage: Storage, *, secret: str, networks: Sequence[Network], view: Callable[[str], JobView]
    ) -> None:
        self.storage = storage
        self.secret = secret
        self.networks = networks
        self.view = view
        self._due_at: dict[str, datetime] = {}
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
        while not self._stopped.wait(POLL_S):
            try:
                self.send_due()
            except OSError as error:
                log.warning("webhooks wait: %s", error)

    def send_due(self) -> None:
        """Hand what is due now to the senders."""
        waiting = set(self.storage.callbacks())
        self._due_at = {job_id: due for job_id, due in self._due_at.items() if job_id in waiting}
        now = datetime.now(UTC)
        for job_id in waiting - self._sending:
            if self._due_at.get(job_id, now) <= now and self.storage.has_ended(job_id):
                self._sending.add(job_id)
                self._pool.submit(self._turn, job_id)

    def _turn(self, job_id: str) -> None:
        try:
            with self.storage.callback_turn(job_id) as is_ours:
                if is_ours:
                    self._attempt(job_id)
        except JobNotFound:
            self.storage.end_callback(job_id)
        except Exception:
            log.exception("job %s: its webhook could not be sent", job_id)
            self._due_at[job_id] = datetime.now(UTC) + timedelta(seconds=RETRY_AFTER_S[0])
        finally:
            self._sending.discard(job_id)

    def _attempt(self, job_id: str) -> None:
        """Make the next attempt, if it is due, and note how it went."""
        record = self.storage.record(job_id)
        assert record.callback_url is not None
        last = self.storage.last_delivery(job_id)
        now = datetime.now(UTC)
        if last is not None and (last.next_at is None or last.next_at > now):
            if last.next_at is None:  # it was the last one; whoever made it died before this
                self.storage.end_callback(job_id)
            else:
                self._due_at[job_id] = last.next_at
            return
        job = self.view(job_id)
        content = {
            "type": f"job.{job.status.value}",
            "timestamp": (job.ended_at or now).isoformat(),
            "data": job.model_dump(mode="json", exclude_none=True),
        }
        body = json.dumps(content).encode()
        headers = sign(body, f"msg_{job_id}", int(time.time()), secret_of(self.secret, record.owner))
        status, error = None, None
        try:
            status = post(record.callback_url, body, headers, networks=self.networks)
        except (AddressRefused, OSError, http.client.HTTPException, ValueError) as failure:
            error = str(failure)[:200] or type(failure).__name__
        attempt = 1 if last is None else last.attempt + 1
        is_last = (status is not None and (200 <= status < 300 or status == 410)) or attempt > len(RETRY_AFTER_S)
        next_at = None if is_last else datetime.now(UTC) + timedelta(seconds=RETRY_AFTER_S[attempt - 1])
        delivery = Delivery(attempt=attempt, at=now, status=status, error=error, next_at=next_at)
        self.storage.note_delivery(job_id, delivery)
        log.info("job %s: webhook, attempt %d: %s", job_id, attempt, error or status)
        if is_last:
            self.storage.end_callback(job_id)
        elif next_at is not None:
            self._due_at[job_id] = next_at


def check_url(url: str) -> str:
    """The URL, if a webhook could be sent there; its address is checked when it is called.

    Raises:
        InvalidParameters: it could not.
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
        raise InvalidParameters("callback_url: give an http or https URL without user or password", actual=url[:200])
    return url


def sign(body: bytes, message_id: str, timestamp: int, secret: bytes) -> dict[str, str]:
    """The headers of the Standard Webhooks specification."""
    signature = hmac.new(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }


def secret_of(service_secret: str, owner: str | None) -> bytes:
    """What signs the webhooks of one caller; told as "whsec_" and base64."""
    return hmac.new(service_secret.encode(), f"uvos webhook {owner or ''}".encode(), hashlib.sha256).digest()


def post(url: str, body: bytes, headers: dict[str, str], *, networks: Sequence[Network] = ()) -> int:
    """Send it; the status of the answer. Redirects are not followed: a redirect is an answer like any other.

    Raises:
        AddressRefused: the host has no address that may be called.
        OSError, http.client.HTTPException: it does not answer as it should.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    encrypted = parts.scheme == "https"
    deadline = time.monotonic() + ANSWER_WITHIN_S
    plain = open_checked(parts.hostname, parts.port or (443 if encrypted else 80), networks)
    # Each read has a timeout of its own; a server that answers a byte at a time is cut off by this one.
    cut = threading.Timer(max(0.1, deadline - time.monotonic()), _shut, (plain,))
    cut.start()
    try:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_WITHIN_S)
        tls = ssl.create_default_context() if encrypted else None
        connection.sock = tls.wrap_socket(plain, server_hostname=parts.hostname) if tls else plain
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"Content-Type": "application/json", "User-Agent": "uvos-webhooks", "Host": parts.netloc, **headers}
        connection.request("POST", path, body, sent)
        with connection.getresponse() as response:
            return response.status
    finally:
        cut.cancel()
        _shut(plain)
        plain.close()
        with suppress(UnboundLocalError, OSError):
            connection.close()


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def open_checked(host: str, port: int, networks: Sequence[Network]) -> socket.socket:
    """A connection to the first of the host's addresses that may be called: the address that was checked, and no other.

    Raises:
        AddressRefused: there is none.
        OSError: the name is unknown, or nobody listens there.
    """
    refused = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_allowed(str(address[0]), networks):
            refused = AddressRefused(f"{host} is at {address[0]}, which is not a public address")
            continue
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(ANSWER_WITHIN_S / 2)
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection
    raise refused or AddressRefused(f"{host} has no address")


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the networks that the service was told to trust."""
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
