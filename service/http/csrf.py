"""Protection against cross-site requests and DNS rebinding, for a service that requires no API keys.

A browser sends a form of any site to any address, including addresses that only this machine can reach (cross-site
request forgery); `Origin` reveals it. A site can also point its own host name at this machine, so that the browser
lets its pages read the responses (DNS rebinding); `Host` reveals that. Clients other than browsers send no `Origin`
and are not affected. With API keys the check is unnecessary: neither kind of page has a key.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from uvos.errors import ForeignPage, HostNotAllowed

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}  # change nothing; without CORS headers another site cannot read the response
ANY_HOST = "*"


def check_origin(method: str, headers: dict[bytes, bytes], allowed_hosts: Collection[str]) -> None:
    """Reject requests that a browser sends on behalf of another site.

    Args:
        method: HTTP method.
        headers: Request headers, names in lower case.
        allowed_hosts: Host names accepted in Host and Origin besides localhost and IP addresses; "*" accepts any Host.

    Raises:
        HostNotAllowed: Host names a host that is not allowed.
        ForeignPage: Origin is another site, and the method is not safe.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    name = _host_name(host)
    # An IP address cannot be rebound, and a request without Host does not come from a browser.
    if host and not (name == "localhost" or name in allowed_hosts or ANY_HOST in allowed_hosts or _is_address(name)):
        raise HostNotAllowed(f"the host {host[:100]!r} is not allowed", actual=host[:100])
    if method in SAFE_METHODS or b"origin" not in headers or headers.get(b"sec-fetch-site") == b"same-origin":
        return
    origin = headers[b"origin"].decode("latin-1")
    _, _, site = origin.partition("://")
    if site.lower() != host.lower() and _host_name(site) not in allowed_hosts:
        raise ForeignPage(f"requests from pages of {origin[:100]!r} are not allowed", actual=origin[:100])


def _host_name(site: str) -> str | None:
    """`host:port` without the port, in lower case."""
    try:
        return urlsplit(f"//{site}").hostname
    except ValueError:
        return None


def _is_address(name: str | None) -> bool:
    try:
        return name is not None and bool(ip_address(name))
    except ValueError:
        return False
