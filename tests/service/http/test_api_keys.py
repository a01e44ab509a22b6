"""API keys: stored as hashes, required unless only loopback can reach the service, one owner per key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.http.api_keys import PREFIX, ApiKeys, add_key, digest_of, new_key
from service.settings import Settings
from tests.chaos.stub_child import stub_video
from uvos.errors import KeyRequired


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def post(http: TestClient, key: str, **headers: str):  # type: ignore[no-untyped-def]
    return http.post("/segment", files={"video": ("a.mp4", stub_video())}, headers=bearer(key) | headers)


@pytest.fixture
def two_keys(settings: Settings) -> tuple[str, str]:
    return add_key(settings.keys_file, "ada"), add_key(settings.keys_file, "bob")


@pytest.fixture
def guarded(settings: Settings, two_keys: tuple[str, str]) -> Iterator[TestClient]:  # noqa: ARG001  # created before the service
    few = settings.model_copy(update={"max_queued_per_key": 3})
    with TestClient(create_app(few), raise_server_exceptions=False) as client:
        yield client


def test_only_the_hash_of_a_key_is_stored(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    key = add_key(file, "ada")
    assert key.startswith(PREFIX)
    assert key not in file.read_text()
    assert digest_of(key) in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert ApiKeys(file=file).owner_of(f"Bearer {key}") == "ada"


def test_a_key_from_the_setting_is_accepted() -> None:
    key = new_key()
    assert ApiKeys(f"bob:{digest_of(key)}").owner_of(f"bearer  {key}") == "bob"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer uvos_wrong", "Bearer \udcff"])
def test_invalid_headers_are_rejected(header: str) -> None:
    with pytest.raises(KeyRequired):
        ApiKeys(f"bob:{digest_of(new_key())}").owner_of(header.encode("utf-8", "replace").decode())


def test_a_hash_is_not_a_key() -> None:
    digest = digest_of(new_key())
    with pytest.raises(KeyRequired):
        ApiKeys(f"bob:{digest}").owner_of(f"Bearer {digest}")


def test_added_and_removed_keys_take_effect_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    first = add_key(file, "ada")
    keys = ApiKeys(file=file)
    second = add_key(file, "bob")
    assert keys.owner_of(f"Bearer {second}") == "bob"
    file.write_text("")
    with pytest.raises(KeyRequired):
        keys.owner_of(f"Bearer {first}")


@pytest.mark.parametrize("line", ["ada", "ada:xyz", "a b:" + "0" * 64, "../x:" + "0" * 64])
def test_an_invalid_entry_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="must be name:sha256"):
        ApiKeys(line)


def test_a_service_beyond_loopback_requires_keys(settings: Settings) -> None:
    with pytest.raises(ValueError, match="uvos keys new"):
        create_app(settings.model_copy(update={"host": "0.0.0.0"}))
    create_app(settings.model_copy(update={"host": "0.0.0.0", "require_key": False}))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/jobs", "/jobs/abc", "/segment", "/jobs/abc/masks.zip", "/anything"])
def test_requests_without_a_key_are_rejected(guarded: TestClient, method: str, path: str) -> None:
    response = guarded.request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["type"] == "/problems/key-required"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/models", "/metrics", "/openapi.json", "/docs"])
def test_health_and_documentation_need_no_key(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == (503 if path == "/readyz" else 200)  # not ready: there is no worker


def test_an_owner_sees_only_their_own_jobs(guarded: TestClient, two_keys: tuple[str, str]) -> None:
    ada, bob = two_keys
    job = post(guarded, ada).json()
    assert guarded.get(f"/jobs/{job['id']}", headers=bearer(ada)).status_code == 200
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/manifest.json")):
        assert guarded.request(method, f"/jobs/{job['id']}{path}", headers=bearer(bob)).status_code == 404
    assert [job["id"] for job in guarded.get("/jobs", headers=bearer(ada)).json()["jobs"]] == [job["id"]]
    assert guarded.get("/jobs", headers=bearer(bob)).json()["jobs"] == []


def test_idempotency_keys_are_scoped_by_owner(guarded: TestClient, two_keys: tuple[str, str]) -> None:
    ada, bob = two_keys
    first = post(guarded, ada, **{"Idempotency-Key": "k"}).json()["id"]
    assert post(guarded, ada, **{"Idempotency-Key": "k"}).json()["id"] == first
    assert post(guarded, bob, **{"Idempotency-Key": "k"}).json()["id"] != first


def test_the_quota_of_a_key_is_enforced_and_reported(
    guarded: TestClient, two_keys: tuple[str, str], settings: Settings
) -> None:
    ada, bob = two_keys
    responses = [post(guarded, ada) for _ in range(4)]
    assert [response.status_code for response in responses] == [202, 202, 202, 429]
    assert [response.headers["ratelimit"] for response in responses] == [f'"jobs";r={left}' for left in (2, 1, 0, 0)]
    assert responses[0].headers["ratelimit-policy"] == '"jobs";q=3;qu="concurrent-requests"'
    assert responses[3].json()["type"] == "/problems/too-many-jobs"
    assert int(responses[3].headers["retry-after"]) > 0
    assert post(guarded, bob).status_code == 202
    assert len(list((settings.data_dir / "jobs").iterdir())) == 4
    guarded.post(f"/jobs/{responses[0].json()['id']}/cancel", headers=bearer(ada))
    assert post(guarded, ada).status_code == 202


def test_secrets_are_not_shown_with_the_settings() -> None:
    shown = repr(Settings(api_keys=SecretStr("a:b"), redis_url=SecretStr("redis://u:p@h")))
    assert "a:b" not in shown
    assert "u:p" not in shown
