"""Without keys, no page but the service's own can use it through somebody's browser."""

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.http.api_keys import digest_of, new_key
from service.http.csrf import check_origin
from service.settings import Settings
from tests.chaos.stub_child import stub_video

OURS = {"Host": "127.0.0.1:8000"}


def post(http: TestClient, **headers: str) -> tuple[int, str]:
    response = http.post("/segment", files={"video": ("a.mp4", stub_video())}, headers=headers)
    return response.status_code, response.json().get("type", "")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "uvos.lan:80", ""]
)
def test_names_of_its_own_and_addresses_are_answered(host: str) -> None:
    check_origin("GET", {b"host": host.encode()}, {"uvos.lan"})


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.lan", "[::1", "\xff", "*"]
)
@pytest.mark.parametrize("path", ["/", "/livez", "/jobs"])
def test_a_name_that_was_made_to_point_here_is_refused(http: TestClient, host: str, path: str) -> None:
    answer = http.get(path, headers={b"Host": host.encode("latin-1")})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/host-not-allowed"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "https://localhost:8000", ""]
)
def test_a_page_of_another_site_has_nothing_done(http: TestClient, origin: str) -> None:
    assert post(http, **OURS, Origin=origin) == (403, "/problems/foreign-page")
    assert http.post(f"/jobs/{'0' * 32}/cancel", headers=OURS | {"Origin": origin}).status_code == 403
    assert http.delete(f"/jobs/{'0' * 32}", headers=OURS | {"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "https://testserver"},  # a listed name, whose proxy gives another Host
        {"Origin": "https://uvos.example", "Sec-Fetch-Site": "same-origin"},  # so says the browser, behind a proxy
    ],
)
def test_its_own_page_and_programs_are_served(http: TestClient, headers: dict[str, str]) -> None:
    assert post(http, **OURS, **headers)[0] == 202


def test_any_name_where_the_setting_says_so(settings: Settings) -> None:
    anyone = settings.model_copy(update={"allowed_hosts": ["*"]})
    with TestClient(create_app(anyone)) as http:
        assert post(http, Host="uvos.example")[0] == 202
        assert post(http, Host="uvos.example", Origin="http://evil.example")[0] == 403


def test_with_keys_the_key_decides(settings: Settings) -> None:
    key = new_key()
    guarded = settings.model_copy(update={"api_keys": SecretStr(f"ada:{digest_of(key)}")})
    with TestClient(create_app(guarded)) as http:
        assert post(http, Host="uvos.example", Origin="http://evil.example")[0] == 401
        assert post(http, Host="uvos.example", Authorization=f"Bearer {key}")[0] == 202
