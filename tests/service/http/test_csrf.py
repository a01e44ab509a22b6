"""Without API keys, browsers may use the service only from its own page."""

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.http.api_keys import digest_of, new_key
from service.http.csrf import check_origin
from service.settings import Settings
from tests.chaos.stub_child import stub_video

OWN = {"Host": "127.0.0.1:8000"}


def post(http: TestClient, **headers: str) -> tuple[int, str]:
    response = http.post("/segment", files={"video": ("a.mp4", stub_video())}, headers=headers)
    return response.status_code, response.json().get("type", "")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "uvos.lan:80", ""]
)
def test_allowed_host_names_and_addresses_are_accepted(host: str) -> None:
    check_origin("GET", {b"host": host.encode()}, {"uvos.lan"})


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.lan", "[::1", "\xff", "*"]
)
@pytest.mark.parametrize("path", ["/", "/livez", "/jobs"])
def test_other_host_names_are_rejected(http: TestClient, host: str, path: str) -> None:
    response = http.get(path, headers={b"Host": host.encode("latin-1")})
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/host-not-allowed"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "https://localhost:8000", ""]
)
def test_cross_site_requests_are_rejected(http: TestClient, origin: str) -> None:
    assert post(http, **OWN, Origin=origin) == (403, "/problems/foreign-page")
    assert http.post(f"/jobs/{'0' * 32}/cancel", headers=OWN | {"Origin": origin}).status_code == 403
    assert http.delete(f"/jobs/{'0' * 32}", headers=OWN | {"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},  # not a browser
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "https://testserver"},  # an allowed name; the proxy sends another Host
        {"Origin": "https://uvos.example", "Sec-Fetch-Site": "same-origin"},  # set by the browser, behind a proxy
    ],
)
def test_the_own_page_and_other_clients_are_accepted(http: TestClient, headers: dict[str, str]) -> None:
    assert post(http, **OWN, **headers)[0] == 202


def test_a_star_allows_any_host_but_no_other_origin(settings: Settings) -> None:
    anyone = settings.model_copy(update={"allowed_hosts": ["*"]})
    with TestClient(create_app(anyone)) as http:
        assert post(http, Host="uvos.example")[0] == 202
        assert post(http, Host="uvos.example", Origin="http://evil.example")[0] == 403


def test_with_api_keys_only_the_key_matters(settings: Settings) -> None:
    key = new_key()
    guarded = settings.model_copy(update={"api_keys": SecretStr(f"ada:{digest_of(key)}")})
    with TestClient(create_app(guarded)) as http:
        assert post(http, Host="uvos.example", Origin="http://evil.example")[0] == 401
        assert post(http, Host="uvos.example", Authorization=f"Bearer {key}")[0] == 202
