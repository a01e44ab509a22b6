"""Fetch a video from a URL: only from public addresses, with limits of size and time."""

import http.client
import time
from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

from service.jobs.public_address import AddressRefused, Network, check_url, connected
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
            left_s = max(0.1, deadline - time.monotonic())
            with connected(url, networks, timeout_s=left_s, idle_timeout_s=IDLE_TIMEOUT_S) as (connection, target):
                connection.request("GET", target, headers=HEADERS)
                with connection.getresponse() as response:
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
