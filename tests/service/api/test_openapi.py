"""OpenAPI describes every field, parameter and status; a generated client can run a job."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.app import create_app
from service.settings import Settings
from tests.videos import make_scene, write_video

CONFIG = {
    "content_type_overrides": dict.fromkeys(
        (
            "application/zip",
            "image/png",
            "image/jpeg",
            "image/gif",
            "video/mp4",
            "video/webm",
            "video/quicktime",
            "application/xml",
            "text/event-stream",
        ),
        "application/octet-stream",
    ),
    "post_hooks": [],
}
RUN_A_JOB = """
import sys, time
from uvos_api import Client
from uvos_api.api.jobs import get_job
from uvos_api.api.results import manifest, masks_zip, rle
from uvos_api.api.segment import segment
from uvos_api.models import SegmentBody
from uvos_api.types import File

client = Client(sys.argv[1])
with open(sys.argv[2], "rb") as video:
    body = SegmentBody(video=File(video, "clip.mp4", "video/mp4"), tau=[0.5, 1.0])
    job = segment.sync(client=client, body=body, idempotency_key="once")
while job.status in ("queued", "running"):
    time.sleep(0.1)
    job = get_job.sync(job.id, client=client, wait=10)
assert job.status == "succeeded", job
made = manifest.sync(job.id, client=client)
masks = rle.sync(job.id, client=client, tau=1.0)
assert [level.tau for level in made.levels] == [0.5, 1.0]
assert len(masks.frames) == made.video.frame_count == int(sys.argv[3])
assert masks_zip.sync_detailed(job.id, client=client).content[:2] == b"PK"
print("done")
"""


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings(redis_url=SecretStr("redis://nowhere"))).openapi()


def operations(openapi: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def is_self_explanatory(field: dict[str, Any]) -> bool:
    """Whether a value needs no example: a reference, an enumeration, a boolean."""
    text = json.dumps(field)
    return "$ref" in text or "enum" in text or field.get("type") == "boolean"


def test_every_field_has_a_description_and_an_example(openapi: dict[str, Any]) -> None:
    form = openapi["paths"]["/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    schemas = openapi["components"]["schemas"] | {"form": form}
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, field_schema in schema.get("properties", {}).items()
        if not field_schema.get("description")
        or not (
            field_schema.get("examples")
            or is_self_explanatory(field_schema)
            or field_schema.get("format") == "binary"
            or "default" in field_schema
        )
    ]
    assert silent == []


def test_every_operation_parameter_and_status_is_described(openapi: dict[str, Any]) -> None:
    for name, operation in operations(openapi):
        assert operation["description"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])
            field_schema = parameter["schema"] | parameter
            assert "examples" in field_schema or "default" in field_schema or is_self_explanatory(field_schema), (
                name,
                parameter["name"],
            )
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)


def test_every_error_is_documented_as_a_problem_with_its_remedy(openapi: dict[str, Any]) -> None:
    for name, operation in operations(openapi):
        for status, response in operation["responses"].items():
            if status >= "400" and name not in ("get /readyz", "get /problems/{name}") and status != "416":
                examples = response["content"]["application/problem+json"]["examples"]
                assert all(example["summary"] for example in examples.values()), (name, status)


def test_bounds_are_documented(openapi: dict[str, Any]) -> None:
    form = openapi["paths"]["/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["key_ratio"]["exclusiveMinimum"] == 0
    assert form["properties"]["key_ratio"]["maximum"] == 1
    assert form["properties"]["tau"]["items"]["maximum"] == 1000
    assert form["additionalProperties"] is False


def test_responses_match_the_openapi_document(openapi: dict[str, Any], service_url: str) -> None:
    assert httpx.get(f"{service_url}/openapi.json").json()["paths"].keys() == openapi["paths"].keys()


def test_a_generated_client_runs_a_job(openapi: dict[str, Any], service_url: str, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(openapi))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    made = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--path", str(tmp_path / "openapi.json")),
            *("--config", str(tmp_path / "config.json"), "--output-path", str(tmp_path / "uvos_api")),
            *("--meta", "none", "--fail-on-warning"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=4).frames)
    done = subprocess.run(
        [sys.executable, "-c", RUN_A_JOB, service_url, str(video), "4"],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "done\n", done.stderr
