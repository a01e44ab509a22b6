"""The documentation matches the code: tables are generated, links resolve, commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import typer.main
from starlette.testclient import TestClient

from docs import reference
from service import cli
from service.api.problem_types import PROBLEM_TYPES
from service.settings import Settings
from tests.service.code_blocks import BLOCK, ROOT, blocks
from uvos import errors
from uvos.contract import SegmentParams
from worker import cli as worker_cli

PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_tables_are_generated_from_the_code() -> None:
    for page in reference.TABLES:
        assert page.read_text(encoding="utf-8") == reference.filled(page), "run `python -m docs.reference`"
    assert "`uvos_jobs_ended_total`" in reference.OPERATION_PAGE.read_text(encoding="utf-8")
    text = reference.PAGE.read_text(encoding="utf-8")
    assert errors.TooManyFrames.type() in text
    assert all(f"UVOS_{name.upper()}" in text for name in Settings.model_fields)


def test_every_problem_type_has_a_remedy() -> None:
    assert all(error.remedy for error in PROBLEM_TYPES.values())


def test_every_parameter_is_documented() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    missing = [name for name in SegmentParams.model_fields if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_type_of_a_problem_is_the_path_of_its_description(http: TestClient) -> None:
    refused = http.get("/jobs/0123abc").json()
    assert http.get(refused["type"]).json() == {
        "type": refused["type"],
        "title": refused["title"],
        "status": 404,
        "remedy": errors.JobNotFound.remedy,
    }
    assert http.get("/problems/nothing").status_code == 404


COMMANDS = {"uvos": typer.main.get_command(cli.app), "uvos-worker": typer.main.get_command(worker_cli.app)}
TEXTS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
CLIENT_VARIABLES = {"UVOS_URL", "UVOS_API_KEY"}


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of every command on a page, in code blocks and in text."""
    lines = [
        line for kind, code in BLOCK.findall(text) if kind == "sh" for line in code.replace("\\\n", "").splitlines()
    ]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]:
        for part in re.split(r"&&|\||;|&\s*$", line.partition(" #")[0]):
            words = part.replace("'", "").replace('"', "").split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_commands_in_the_documentation_exist_with_their_options(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for name, *words in commands_of(text):
        if name in COMMANDS:
            assert unknown_words(name, words) == [], (name, words)
        elif name == "make":
            assert set(words[:1]) <= targets, words
        elif name.startswith("python") and words[:1] == ["-m"]:
            assert find_spec(words[1]), words
    variables = set(re.findall(r"\bUVOS_(?!TEST_)[A-Z_]+\b", text))
    assert variables <= {f"UVOS_{field.upper()}" for field in Settings.model_fields} | CLIENT_VARIABLES


def unknown_words(name: str, words: list[str]) -> list[str]:
    """Words that are neither a command nor an option of it; arguments are not checked."""
    command = COMMANDS[name]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return words[:1]
        command, words = command.commands[words[0]], words[1:]
    options = {option for known in command.params for option in (*known.opts, *known.secondary_opts)} | {"--help"}
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in options]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the sample and the installed commands, as the documentation assumes."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "sample.mp4").write_bytes((ROOT / "examples" / "sample.mp4").read_bytes())
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "uvos").write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    return tmp_path


def run_shell(lines: list[str], service_url: str, workplace: Path) -> str:
    """Run commands against the service of the tests and return their output."""
    done = subprocess.run(
        ["sh", "-c", "\n".join(["set -eu", *lines]).replace("http://127.0.0.1:8000", service_url)],
        cwd=workplace,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "UVOS_URL": service_url},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the commands use curl, which is not installed")


@needs_curl
def test_the_commands_of_the_first_ten_minutes_run(service_url: str, workplace: Path) -> None:
    output = run_shell(blocks("first-ten-minutes.md", "sh", after="<!-- run:"), service_url, workplace)
    assert '"status": "succeeded"' in output
    assert (workplace / "overlay.mp4").stat().st_size > 1000
    assert (workplace / "cvat.xml").read_text().startswith("<?xml")
    assert (workplace / "many" / "two" / "manifest.json").is_file()


@needs_curl
def test_the_commands_of_the_http_api_run(service_url: str, workplace: Path) -> None:
    output = run_shell(blocks("http-api.md", "sh", after="<!-- run:"), service_url, workplace)
    (job_id,) = set(re.findall(r'\{"id":"(\w+)"', output.partition('{"jobs":')[0]))  # printed by the three ways to wait
    assert "event: end" in output
    assert '"jobs":[{' in output
    assert len(zipfile.ZipFile(workplace / "masks.zip").namelist()) == len(
        json.loads((workplace / "rle.json").read_text())["frames"]
    )
    assert (workplace / "00000.png").read_bytes().startswith(b"\x89PNG")
    deleted = httpx.get(f"{service_url}/jobs/{job_id}", trust_env=False)
    assert deleted.status_code == 404


@needs_curl
def test_the_commands_of_the_readme_run(service_url: str, workplace: Path) -> None:
    start, use = (code for code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if code[0] == "sh")
    assert [line.split()[:2] for line in start[1].splitlines() if line] == [["make", "demo"], ["make", "test"]]
    lines = use[1].strip().splitlines()
    assert lines[0].startswith("make up")  # `service_url` has started the service
    output = run_shell(lines[1:], service_url, workplace)
    assert '"status":"queued"' in output.replace(" ", "")
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
