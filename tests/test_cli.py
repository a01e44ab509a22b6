"""The command lines: help, one-sentence errors without a traceback, tables that fit a terminal."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    done = run("service", "segment", str(video), "--key-ratio", "1.5", "--tau", "-1", "--url", "127.0.0.1:9")
    message = assert_one_sentence(done)
    assert "--key-ratio: Input should be less than or equal to 1, got 1.5" in message
    assert "--tau: Input should be greater than 0, got -1" in message
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


def test_what_cannot_work_is_reported_before_anything_is_sent(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=2).frames)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    done = run("service", "segment", str(video), "--url", "127.0.0.1:9", "--out", str(tmp_path / "file" / "deep"))
    assert f"--out: {tmp_path / 'file'} is a file" in assert_one_sentence(done)
    done = run("service", "segment", str(tmp_path / "empty"), "--url", "127.0.0.1:9")
    assert "no videos and no frames in" in assert_one_sentence(done)
    done = run("service", "jobs", "download", "1", "--format", "bmp", "--url", "127.0.0.1:9")
    assert "--format: must be one of masks_zip" in assert_one_sentence(done)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run("service", "up", "--port", str(listener.getsockname()[1]), "--data", str(tmp_path / "data"))
    assert "another process uses it" in assert_one_sentence(done)
    assert done.stderr.strip().startswith("error: ")
    assert run("service", "--version").stdout.split()[0] == "uvos"


def test_the_client_commands_submit_show_download_and_delete_jobs(service_url: str, tmp_path: Path) -> None:
    frames = tmp_path / "frames of clip"
    frames.mkdir()
    scene = make_scene(frames=12)
    for index, frame in enumerate(scene.frames):
        Image.fromarray(frame).save(frames / f"{index}.png")
    url, out = service_url.removeprefix("http://"), tmp_path / "masks"
    done = run("service", "segment", str(frames), "--url", url, "--out", str(out), "--tau", "1", "--background", "keep")
    assert done.returncode == 0, done.stderr
    message = " ".join(done.stderr.split())
    assert re.search(r"12 frames, \d+ objects? at tau 1, with tiny; 4 files in", message)
    assert (out / "levels" / "1" / "overlay.mp4").stat().st_size > 1000
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["video"]["name"] == "frames of clip"
    (job_id,) = re.findall(r"^(\w{32}): ", done.stderr, re.MULTILINE)
    assert f"{job_id}  succeeded" in run("service", "jobs", "list", "--url", url, "--status", "succeeded").stdout
    assert json.loads(run("service", "jobs", "get", job_id, "--url", url).stdout)["id"] == job_id
    saved = tmp_path / "cvat.xml"
    options = ["--format", "cvat", "--tau", "1", "--option", "tracks=polygon", "--out", str(saved)]
    assert run("service", "jobs", "download", job_id, "--url", url, *options).returncode == 0
    assert "<polygon" in saved.read_text()
    assert run("service", "jobs", "rm", job_id, "--url", url).returncode == 0
    assert "there is no job" in assert_one_sentence(run("service", "jobs", "get", job_id, "--url", url))


def test_keys_are_listed_and_revoked(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path)]
    for name in ("ada", "bob", "ada"):
        assert run("service", "keys", "new", name, *data).returncode == 0
    listed = run("service", "keys", "list", *data).stdout.split("\n")
    assert [line.split()[0] for line in listed if line] == ["ada", "bob", "ada"]
    assert run("service", "keys", "revoke", "ada", *data).returncode == 0
    assert (tmp_path / "keys.txt").read_text().startswith("bob:")
    assert (tmp_path / "keys.txt").stat().st_mode & 0o777 == 0o600
    assert "the owners are bob" in assert_one_sentence(run("service", "keys", "revoke", "ada", *data))
