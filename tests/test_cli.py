"""The command lines: help, one-sentence errors without a traceback, tables that fit a terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.videos import make_scene, write_video
from uvos.contract import SegmentParams
from uvos.models import MODELS


def run(
    module: str, *arguments: str, timeout: float = 280, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", f"{module}.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"UVOS_MODEL": "tiny"} | (environment or {}),
    )


def assert_one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    words = " ".join(done.stderr.split())
    assert "error: " in words
    return words.partition("error: ")[2]


@pytest.mark.parametrize(
    ("module", "commands"),
    [("service", ["up", "serve", "segment", "jobs"]), ("worker", ["run", "segment", "models", "export-block"])],
)
def test_help_names_the_commands(module: str, commands: list[str]) -> None:
    done = run(module, "--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in commands)


@pytest.mark.parametrize(
    "options",
    [
        ["--tau", "--key-ratio", "--mode", "--model", "--weights", "--resolution", "--clustering"],
        ["--background", "--edges", "--dtype", "--format", "--tokens", "--out"],
    ],
)
def test_worker_segment_has_the_options(options: list[str]) -> None:
    done = run("worker", "segment", "--help")
    assert all(option in done.stdout for option in options)


def test_worker_segment_writes_masks(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=4).frames)
    out = tmp_path / "out"
    done = run("worker", "segment", str(video), "--out", str(out), "--tau", "0.5", "--tau", "2", "--tokens")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"manifest.json", "levels", "tokens.npz"}
    for level in ("0.5", "2"):
        assert len(list((out / "levels" / level / "masks").iterdir())) == 4
        assert (out / "levels" / level / "rle.json").is_file()
    again = run("worker", "segment", str(video), "--out", str(out))
    assert "already holds a result" in assert_one_sentence(again)


def test_an_invalid_option_is_named(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=2).frames)
    done = run("worker", "segment", str(video), "--out", str(tmp_path / "out"), "--key-ratio", "1.5")
    assert "--key-ratio" in assert_one_sentence(done)
    done = run("worker", "segment", str(video), "--out", str(tmp_path / "out"), "--model", "[/sam]")
    assert "[/sam]" in assert_one_sentence(done)  # not parsed as markup of the terminal


@pytest.mark.parametrize("arguments", [("worker", "segment"), ("service", "segment"), ("worker", "evaluate")])
def test_options_are_those_of_the_contract(arguments: tuple[str, str]) -> None:
    text = run(*arguments, "--help", environment={"COLUMNS": "200"}).stdout
    omitted = {"format", "start", "end", "fps", "background", "min_area"} if arguments[1] == "evaluate" else set()
    for name, field in SegmentParams.model_fields.items():
        option = "--" + name.replace("_", "-")
        assert (f"{option} " in text) == (name not in omitted), option
        if name not in omitted | {"model"}:
            assert " ".join((field.description or "").split())[:40] in text


def test_the_table_of_models_is_complete_at_80_columns() -> None:
    lines = run("worker", "models", environment={"COLUMNS": "80"}).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name, entry in MODELS.items():
        (row,) = (line.split() for line in lines if line.split()[:1] == [name])
        assert row[1:3] == [str(entry.patch), str(entry.short_side)]
        assert row[7] == entry.licence.split()[0]


def test_progress_is_printed_without_a_terminal(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=2).frames)
    done = run("worker", "segment", str(video), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^masks: 2 of 2 after \d+ s$", done.stderr, re.MULTILINE)


def test_a_file_that_is_not_a_video_is_rejected(tmp_path: Path) -> None:
    text = tmp_path / "letter.mp4"
    text.write_text("Dear all")
    assert_one_sentence(run("worker", "segment", str(text), "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_exceeding_the_memory_budget_reports_both_values_and_the_setting(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=2).frames)
    options = ["--out", str(tmp_path / "out"), "--tau", "0.000001", "--resolution", "64x96"]
    done = run("worker", "segment", str(video), *options, environment={"UVOS_MEMORY_BUDGET_BYTES": "100000"})
    message = assert_one_sentence(done)
    needed, allowed = map(int, re.findall(r"(\d{5,}) (?:bytes|are)", message))
    assert needed > allowed == 50_000  # half of the budget is for clusters, half for stored rows
    assert "UVOS_MEMORY_BUDGET_BYTES" in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_worker_without_a_queue_names_the_missing_setting() -> None:
    assert "UVOS_REDIS_URL" in assert_one_sentence(run("worker", "run"))


def test_an_unreachable_service_is_reported_with_the_command_to_start_it(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=2).frames)
    done = run("service", "segment", str(video), "--url", "http://127.0.0.1:9")
    assert "uvos up" in assert_one_sentence(done)


def test_the_client_commands_submit_and_list_jobs(service_url: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=4).frames)
    done = run("service", "segment", str(video), "--url", service_url, "--out", str(tmp_path / "masks"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "manifest.json").is_file()
    listed = run("service", "jobs", "--url", service_url)
    assert "succeeded" in listed.stdout + listed.stderr
