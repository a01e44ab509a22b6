"""Mutated uploads over HTTP, through the whole service: `python -m tests.service.fuzz [COUNT] [SEED] [SETTINGS]`.

SETTINGS is a group of `GROUPS`; without it, each group gets COUNT uploads in turn.

Every upload must get a problem or a job, every job must succeed or fail with a reason, and the worker must survive.
Prints the outcomes; exits with status 1 if any of this is violated.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.http.api_keys import digest_of
from service.storage.folder import Storage
from tests.up import command, free_port, wait_for
from tests.videos import make_scene, write_video
from tests.worker.video.fuzz_decode import MUTATIONS, SEEDS
from uvos.contract import Status

API_KEY = "uvos_fuzz"
LIMITS = {
    "UVOS_MODEL": "tiny",
    "UVOS_MAX_FRAMES": "100",
    "UVOS_MAX_PIXELS": str(2**20),
    "UVOS_RESULT_TTL_S": "36000",
}
GROUPS: dict[str, dict[str, str]] = {
    "defaults": {},
    "webhooks": {
        "UVOS_WEBHOOK_SECRET": "a secret of the service",
        "UVOS_WEBHOOK_NETWORKS": '["127.0.0.0/8"]',
        "UVOS_WEBHOOK_RETRY_DELAYS_S": "[0.1]",
        "UVOS_WEBHOOK_POLL_INTERVAL_S": "0.1",
    },
    "keys": {
        "UVOS_API_KEYS": f"fuzz:{digest_of(API_KEY)}",
        "UVOS_MAX_QUEUED_PER_KEY": "110",
        "UVOS_MAX_RUNNING_PER_KEY": "1",
    },
}
CALLBACK_URL = "http://127.0.0.1:1/hook"
INVALID_KEYS = ("", "Bearer", "Bearer uvos_other", f"Basic {API_KEY}", "\xe9", "Bearer " + "a" * 5000)
BOUNDARY = b"a-boundary-of-no-video"
MAX_OPEN_JOBS = 100  # before more uploads are sent
DECODED_SHARE = 0.06  # share of files with an intact signature: each costs a decoder process
END_TIMEOUT_S = 600.0
FIELDS: dict[str, tuple[str, ...]] = {
    "tau": ("1", "0.5", "0", "-1", "nan", "inf", "1e400", "", "1,5", "٣", "0x1", "1" * 5000),
    "key_ratio": ("0.1", "1", "0", "2", "nan"),
    "mode": ("multi", "single", "both", "\0"),
    "model": ("tiny", "none", "../../etc/passwd", "a" * 65),
    "format": ("png", "rle", "overlay", "exe"),
    "start": ("0", "0.1", "1e9", "-1"),
    "end": ("0.2", "1e308", "0"),
    "fps": ("5", "0.001", "0"),
    "resolution": ("48x64", "16x16", "0x0", "99999x99999", "48x64x3", "1e3x5"),
    "clustering": ("algorithm1", "windowed", "x"),
    "min_area": ("0", "0.01", "1", "nan"),
    "tua": ("1",),
    "callback_url": ("http://127.0.0.1/", "http://127.0.0.1:1/a?b=c", "http://[::1", "file:///etc/passwd", "x"),
    "video": ("text",),
}


def form(draw: random.Random, video: bytes, extra: Sequence[tuple[str, str]] = ()) -> tuple[bytes, dict[str, str]]:
    """A multipart body, intact or mutated, and its headers; `extra` are further fields."""
    fields = [(name, draw.choice(FIELDS[name])) for name in draw.choices(list(FIELDS), k=draw.choice((0, 0, 1, 3)))]
    if draw.random() < DECODED_SHARE * 2:
        fields = []
    fields += extra
    name = draw.choice((b"a.mp4", b"../../x.mp4", b"\xff\xfe", b'a\\".mp4', b"a" * 300, b""))
    parts = [b'Content-Disposition: form-data; name="video"; filename="' + name + b'"\r\n\r\n' + video]
    parts += [f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode() for key, value in fields]
    draw.shuffle(parts)
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    if draw.random() < 0.2:
        mutable = bytearray(body)
        draw.choice(MUTATIONS)(mutable, draw)
        body = bytes(mutable)
    if draw.random() < 0.05:
        headers["Content-Type"] = draw.choice(
            (
                "text/plain",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "multipart/form-data; boundary=x",
                "\xe9",
            )
        )
    if draw.random() < 0.1:
        headers["Idempotency-Key"] = draw.choice(("a", "b", "x" * 256, "\xe9"))
    return body, headers


def mutated(draw: random.Random, video: bytes) -> bytes:
    """A mutated video; mostly with a mutated signature, too."""
    data = bytearray(video)
    for mutate in draw.choices(MUTATIONS, k=draw.choice((1, 1, 2, 3))):
        if len(data) > 16:
            mutate(data, draw)
    if draw.random() > DECODED_SHARE:
        data[: draw.choice((4, 12, 200))] = draw.randbytes(draw.choice((0, 4, 12, 200)))
    return bytes(data)


def fuzz(url: str, data: Path, *, count: int, seed: int, group: str) -> Counter[str]:
    """Send `count` uploads; counts of the outcomes, with violations as "FAULT ...".

    In the group "keys" one upload in twenty has an invalid API key, which must get 401. In the group "webhooks" every
    second upload has a callback URL, to which nothing listens.
    """
    storage = Storage(data, result_ttl_s=3600)
    needs_key = group == "keys"
    frames = make_scene(frames=4, size=(48, 64)).frames
    with tempfile.TemporaryDirectory() as folder:
        seeds = [write_video(Path(folder) / name, frames, **options).read_bytes() for name, options in SEEDS.items()]
    outcomes: Counter[str] = Counter()
    jobs: set[str] = set()
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            callback = [("callback_url", CALLBACK_URL)] if group == "webhooks" and number % 2 else []
            body, headers = form(draw, mutated(draw, seeds[number % len(seeds)]), callback)
            has_valid_key = draw.random() > 0.05
            if needs_key:
                headers["Authorization"] = f"Bearer {API_KEY}" if has_valid_key else draw.choice(INVALID_KEYS)
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            response = http.post("/segment", content=body, headers=raw)
            media_type = response.headers.get("content-type", "")
            if needs_key and (response.status_code == 401) is has_valid_key:
                outcomes[f"FAULT {response.status_code} with {headers['Authorization'][:20]!r}"] += 1
            if response.status_code == 202:
                jobs.add(response.json()["id"])
            elif response.status_code >= 500 or media_type != "application/problem+json":
                outcomes[f"FAULT {response.status_code} {media_type}"] += 1
                print(
                    f"FAULT: number {number} of seed {seed}: {response.status_code} {response.text[:300]}", flush=True
                )
            outcomes[str(response.status_code)] += 1
            if number % 50 == 0:
                _wait(storage, MAX_OPEN_JOBS)
    _wait(storage, 0)
    with_callback = [job_id for job_id in jobs if storage.record(job_id).callback_url]
    for job_id in with_callback:  # both attempts fail
        wait_for(lambda job_id=job_id: job_id not in storage.pending_callbacks(), 60)  # type: ignore[misc]
        outcomes["webhook attempted"] += 1
    for job_id in jobs:
        end = storage.end(job_id)
        assert end is not None
        why = end.error.type.removeprefix("/problems/") if end.error else end.status.value
        is_fault = end.status != Status.succeeded and why in ("internal-error", "too-many-attempts", "canceled")
        outcomes[f"FAULT job {job_id} {why}" if is_fault else f"job {why}"] += 1
    return outcomes


def check_openapi(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Schemathesis: no server error, no undocumented status or content."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command = [*program, "run", f"{url}/openapi.json", "--checks", checks, "--continue-on-failure", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())


def _wait(storage: Storage, waiting: int) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while len(storage.open_jobs()) > waiting:
        assert time.monotonic() < deadline, f"{len(storage.open_jobs())} jobs did not end"
        time.sleep(0.1)


def main() -> int:
    defaults = ("10000", "0", "")
    count, seed, chosen = (*sys.argv[1:], *defaults[len(sys.argv) - 1 :])
    groups = [chosen] if chosen else list(GROUPS)
    violated = [group for group in groups if has_violations(group, count=int(count), seed=int(seed))]
    return int(bool(violated))


def has_violations(group: str, *, count: int, seed: int) -> bool:
    """Start a service with a group of settings, send uploads and requests, print the outcomes."""
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uvos-fuzz-") as folder, running(Path(folder), GROUPS[group]) as url:
        outcomes = fuzz(url, Path(folder), count=count, seed=seed, group=group)
        key_option = ["--header", f"Authorization: Bearer {API_KEY}"] if group == "keys" else []
        schema = check_openapi(url, "--max-examples", str(min(100, count)), "--seed", str(seed), *key_option)
        log_text = (Path(folder) / "log").read_text(errors="replace")
    restarts = len(re.findall(r"the child (?:died|is not|did not)|a worker exited|restarting it", log_text))
    # stderr of the decoder is logged as one line
    tracebacks = len(re.findall(r"^Traceback", log_text, re.MULTILINE))
    seconds = time.monotonic() - started_at
    print(f"{group}: {count} uploads in {seconds:.0f} s, seed {seed}:", dict(sorted(outcomes.items())))
    print(f"restarts of the child or the worker: {restarts}, tracebacks in the log: {tracebacks}")
    if tracebacks:
        print(log_text[log_text.index("\nTraceback") :][:3000])
    print(
        "against the OpenAPI:", schema.stdout[-1500:] if schema.returncode else "no server error, nothing undocumented"
    )
    return bool(restarts or tracebacks or schema.returncode or any(key.startswith("FAULT") for key in outcomes))


@contextmanager
def running(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """URL of a service with these settings that has loaded its model; its log is `folder/log`."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(command(folder, port), stdout=log, stderr=log, env=os.environ | LIMITS | environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_warm(url)
        yield url
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(60)


def _wait_until_warm(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            workers = httpx.get(f"{url}/readyz", trust_env=False).json()["workers"]
            if any(worker["models"] for worker in workers):
                return
        except (httpx.HTTPError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError("no worker is ready")


if __name__ == "__main__":
    sys.exit(main())
