"""Which web pages may use a service that asks for no keys: its own.

A browser sends what any page tells it to, also to an address that only this machine can reach. A page of another site
may post a form there, unasked (cross-site request forgery); and a page whose own name is made to point at this
machine's address counts as ours to the browser, and may read the answers too (DNS rebinding). The first shows in
`Origin`, the second in `Host`. Programs that are no browsers send no `Origin` and are not concerned. Where keys are
asked for, neither page has one.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from uvos.errors import ForeignPage, HostNotAllowed

READING = {"GET", "HEAD", "OPTIONS"}  # change nothing, and without CORS headers another site cannot read the answer
ANY = "*"


def check_page(method: str, headers: dict[bytes, bytes], allowed: Collection[str]) -> None:
    """Refuse what a browser sends for a page that is not ours.

    Args:
        method: Of the request.
        headers: Names in lower case.
        allowed: Names that may stand in Host and Origin besides localhost and addresses; "*" in Host: any.

    Raises:
        HostNotAllowed: the service was asked for by a name that is not its own.
        ForeignPage: a page of another site wants something done.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    name = _name(host)
    # An address cannot be made to point elsewhere; whoever sends no Host is no browser.
    if not (host == "" or name == "localhost" or name in allowed or ANY in allowed or _is_address(name)):
        raise HostNotAllowed(f"this service is not known as {host[:100]!r}", actual=host[:100])
    if method in READING or b"origin" not in headers or headers.get(b"sec-fetch-site") == b"same-origin":
        return
    origin = headers[b"origin"].decode("latin-1")
    _, _, site = origin.partition("://")
    if site.lower() != host.lower() and _name(site) not in allowed:
        raise ForeignPage(f"a page of {origin[:100]!r} may not ask for this", actual=origin[:100])


def _name(site: str) -> str | None:
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
