"""Connections to public addresses only, for URLs that callers send: those of webhooks and of videos."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from uvos.errors import InvalidParameters

MAX_URL = 2048  # characters
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefused(Exception):
    """The host has no address that is public or in an allowed network."""


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


@contextmanager
def connected(
    url: str, networks: Sequence[Network] = (), *, timeout_s: float, idle_timeout_s: float | None = None
) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """A connection to the host of a URL, at a public address or one in `networks`, and the target of a request there.

    The timeout of a socket is per read; a timer also ends what arrives byte by byte, TLS handshakes included.

    Args:
        url: An http or https URL.
        networks: Networks that are allowed although they are not public.
        timeout_s: Limit of everything, name lookup excluded.
        idle_timeout_s: Limit between two reads; None for `timeout_s`.

    Raises:
        AddressRefused: The host has no allowed address.
        OSError: There is no connection within the timeout.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    encrypted = parts.scheme == "https"
    default_port = 443 if encrypted else 80
    port = parts.port or default_port
    deadline = time.monotonic() + timeout_s
    idle_s = min(timeout_s, idle_timeout_s or timeout_s)
    stream = open_checked(parts.hostname, port, networks, timeout_s=idle_s)
    if encrypted:  # a handshake within wrap_socket could not be interrupted
        context = ssl.create_default_context()
        stream = context.wrap_socket(stream, server_hostname=parts.hostname, do_handshake_on_connect=False)
    stream.settimeout(idle_s)
    timer = threading.Timer(max(0.1, deadline - time.monotonic()), _shut_down, (stream,))
    timer.start()
    try:
        if isinstance(stream, ssl.SSLSocket):
            stream.do_handshake()
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.default_port = default_port  # not part of the Host header
        connection.sock = stream
        yield connection, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    finally:
        timer.cancel()
        _shut_down(stream)
        stream.close()


def _shut_down(stream: socket.socket) -> None:
    """End a connection that another thread reads; of TLS, the connection below it."""
    with suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


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
