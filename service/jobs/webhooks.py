"""Deliver webhooks: signed, retried, and only to public addresses.

Signatures follow the Standard Webhooks specification. The secret of each API key is derived from the service's secret,
so that no receiver can forge webhooks for another.

Pending deliveries and their attempts are in storage and survive a restart. A webhook is sent only after the end of the
job is in storage, so the receiver can fetch the result.
"""

import hashlib
import hmac
import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

from service.jobs.public_address import AddressRefused, Network, connected
from service.storage.folder import Storage
from service.trace import child_of
from uvos.contract import Delivery, JobRecord, JobView
from uvos.errors import JobNotFound

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 15.0  # for all of it: name lookup, connection, response
SENDERS = 4  # concurrent deliveries, so that a slow receiver does not delay the others


@dataclass(frozen=True)
class Schedule:
    """When deliveries are attempted, seconds."""

    poll_interval_s: float
    retry_delays_s: Sequence[float]
    """Delay before each further attempt; after the last one the delivery is given up."""


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
    all_headers = {"Content-Type": "application/json", "User-Agent": "uvos-webhooks", **headers}
    with connected(url, networks, timeout_s=timeout_s) as (connection, target):
        connection.request("POST", target, body, all_headers)
        with connection.getresponse() as response:
            return response.status
