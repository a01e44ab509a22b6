"""The documentation is true: its tables are the code's, its links lead somewhere, its commands run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from docs import reference
from service import errors
from service.contract import SegmentParams
from service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str, *, after: str = "") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    text = text[text.index(after) :]
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def test_the_tables_of_limits_and_errors_are_those_of_the_code() -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert text == reference.filled(text), "run `python -m docs.reference`"
    assert errors.TooManyFrames.type() in text
    assert all(f"UVOS_{name.upper()}" in text for name in Settings.model_fields)


def test_every_failure_says_what_helps() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.UvosError)]
    assert all(kind.cure for kind in kinds if kind is not errors.UvosError)


def test_every_parameter_is_explained() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    missing = [name for name in SegmentParams.model_fields if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_type_of_a_problem_is_where_it_is_explained(http: TestClient) -> None:
    refused = http.get("/jobs/0123abc").json()
    told = http.get(refused["type"]).json()
    assert told == {"type": refused["type"], "title": refused["title"], "status": 404, "cure": errors.JobNotFound.cure}
    assert http.get("/problems/nothing").status_code == 404


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the commands expect it: the sample, and the installed commands on the PATH."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "sample.mp4").write_bytes((ROOT / "examples" / "sample.mp4").read_bytes())
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "uvos").write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    return tmp_path


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the commands use curl, which is not installed")


@needs_curl
def test_the_commands_of_the_first_ten_minutes_run(service_url: str, workplace: Path) -> None:
    script = "\n".join(["set -eu", *blocks("first-ten-minutes.md", "sh", after="<!-- run:")])
    script = script.replace("http://127.0.0.1:8000", service_url)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    done = subprocess.run(
        ["sh", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status": "succeeded"' in done.stdout
    assert (workplace / "overlay.mp4").stat().st_size > 1000
    assert (workplace / "cvat.xml").read_text().startswith("<?xml")
    assert (workplace / "many" / "two" / "manifest.json").is_file()


@needs_curl
def test_the_commands_of_the_readme_run(service_url: str, workplace: Path) -> None:
    start, use = (code for code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if code[0] == "sh")
    assert [line.split()[:2] for line in start[1].splitlines() if line] == [["make", "demo"], ["make", "test"]]
    lines = use[1].strip().splitlines()
    assert lines[0].startswith("make up")  # what `service_url` has done
    script = "\n".join(["set -eu", *lines[1:]]).replace("http://127.0.0.1:8000", service_url)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "UVOS_URL": service_url}
    done = subprocess.run(
        ["sh", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status":"queued"' in done.stdout.replace(" ", "")
    assert (workplace / "masks" / "manifest.json").is_file()


@pytest.mark.parametrize("page", ["first-ten-minutes.md", "formats.md", "http-api.md"])
def test_the_python_of_the_pages_runs(service_url: str, workplace: Path, page: str) -> None:
    for code in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("http://127.0.0.1:8000", service_url)],
            cwd=workplace,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
