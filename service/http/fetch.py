"""Fetch a video from a URL: only from public addresses, with limits of size and time."""

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

from service.jobs.webhooks import AddressRefused, Network, check_url, open_checked, shut_down
from uvos.errors import UploadTooLarge, VideoUrlFailed

TIMEOUT_S = 120.0  # for all of it, redirects included
IDLE_TIMEOUT_S = 15.0  # between two reads
MAX_REDIRECTS = 5
CHUNK = 2**18
HEADERS = {"User-Agent": "uvos", "Accept": "video/*, image/gif, application/zip, */*;q=0.1"}


def fetch(
    url: str,
    write: Callable[[bytes], None],
    *,
    max_bytes: int,
    networks: Sequence[Network] = (),
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Pass the content of a URL to `write`, piece by piece. The address is checked again at every redirect.

    Args:
        url: An http or https URL.
        write: Receives the content.
        max_bytes: Limit of the content.
        networks: Networks that are allowed although they are not public.
        timeout_s: Limit of the time, redirects included.

    Raises:
        InvalidParameters: The URL, or that of a redirect, is not allowed.
        VideoUrlFailed: The address is not allowed or does not answer with the whole content within the time.
        UploadTooLarge: The content exceeds `max_bytes`.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        check_url(url, "video_url")
        try:
            with _get(url, networks, deadline) as response:
                location = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or location is None:
                    _read(url, response, write, max_bytes, deadline)
                    return
                url = urljoin(url, location)
        except (AddressRefused, OSError, http.client.HTTPException, ValueError) as error:
            reason = f"it took longer than {timeout_s:g} s" if time.monotonic() >= deadline else str(error)[:200]
            raise _failure(url, reason or type(error).__name__) from error
    raise _failure(url, f"more than {MAX_REDIRECTS} redirects")


def _failure(url: str, reason: str) -> VideoUrlFailed:
    return VideoUrlFailed(f"the video could not be fetched from {urlsplit(url).hostname}: {reason}", actual=url[:200])


def _read(
    url: str, response: http.client.HTTPResponse, write: Callable[[bytes], None], max_bytes: int, deadline: float
) -> None:
    if response.status != 200:
        raise _failure(url, f"the answer is {response.status} {response.reason[:100]}")
    announced, received = response.length, 0
    if announced is not None and announced > max_bytes:
        raise UploadTooLarge(
            f"the video has {announced} bytes, the limit is {max_bytes}", limit=max_bytes, actual=announced
        )
    while data := response.read1(CHUNK):
        received += len(data)
        write(data)
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:  # the connection was shut down
        raise TimeoutError
    if announced is not None and received < announced:
        raise _failure(url, f"the connection ended after {received} of {announced} bytes")


@contextmanager
def _get(url: str, networks: Sequence[Network], deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The response to a GET of the address that was checked; its connection ends at the deadline."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    encrypted = parts.scheme == "https"
    port = parts.port or (443 if encrypted else 80)
    left_s = max(0.1, deadline - time.monotonic())
    sock = open_checked(parts.hostname, port, networks, timeout_s=min(left_s, IDLE_TIMEOUT_S))
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=IDLE_TIMEOUT_S)
    timer = threading.Timer(left_s, lambda: shut_down(connection.sock or sock))
    timer.start()
    try:
        sock.settimeout(IDLE_TIMEOUT_S)
        tls = ssl.create_default_context() if encrypted else None
        connection.sock = tls.wrap_socket(sock, server_hostname=parts.hostname) if tls else sock
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={**HEADERS, "Host": parts.netloc})
        with connection.getresponse() as response:
            yield response
    finally:
        timer.cancel()
        connection.close()
        sock.close()
