"""Soak test: memory and file descriptors must not grow after a warm-up.

`python -m tests.chaos.soak [MINUTES]` runs the service with `tiny` for 30 minutes or as given and submits clips one
after another, among them broken, cancelled and deleted ones. Every process is measured every ten seconds.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx

from tests.videos import make_scene, write_video

SAMPLE_INTERVAL_S = 10.0
WARM_UP = 1 / 6  # share of the duration
GROWTH_BYTES = 30 * 2**20  # per process, from the first to the last third after the warm-up
GROWTH_FILES = 5


def processes(pid: int) -> dict[str, int]:
    """The long-running processes of the service, name -> pid."""
    pids = {"supervisor": pid}
    for child in _children(pid):
        command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
        if b"valkey" in command or b"redis" in command:
            pids["valkey"] = child
        elif b"serve" in command:
            pids["api"] = child
        else:
            pids["worker"] = child
            for grandchild in _children(child):
                pids["child"] = grandchild
    return pids


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def measure(pid: int) -> tuple[int, int]:
    """Resident bytes and open file descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def soak(http: httpx.Client, pid: int, clips: list[bytes], seconds: float) -> dict[str, list[tuple[float, int, int]]]:
    """Submit jobs for `seconds`; the samples (time, bytes, files) of each process."""
    samples: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    began, next_sample_at, number = time.monotonic(), 0.0, 0
    while time.monotonic() - began < seconds:
        video = clips[number % len(clips)]
        job = http.post("/segment", files={"video": ("a.mp4", video)}, data={"resolution": "96x128"}).json()
        if number % 7 == 3:
            http.post(f"/jobs/{job['id']}/cancel")
        while job["status"] in ("queued", "running"):
            job = http.get(f"/jobs/{job['id']}", params={"wait": 10}).json()
        if job["status"] == "succeeded":
            http.get(job["links"]["levels"][0]["masks_zip"]).raise_for_status()
        if number % 3:
            http.delete(f"/jobs/{job['id']}")
        number += 1
        now = time.monotonic() - began
        if now > next_sample_at:
            next_sample_at = now + SAMPLE_INTERVAL_S
            for name, process in processes(pid).items():
                samples[name].append((now, *measure(process)))
    print(f"{number} jobs")
    return samples


def main() -> int:
    seconds = 60 * float((*sys.argv[1:], "30")[0])
    with tempfile.TemporaryDirectory(prefix="uvos-soak-") as folder:
        frames = [make_scene(frames=8, seed=seed).frames for seed in range(3)]
        clips = [write_video(Path(folder) / f"{index}.mp4", clip).read_bytes() for index, clip in enumerate(frames)]
        clips.append(clips[0][: len(clips[0]) // 2])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", f"{folder}/data"]
        with (Path(folder) / "log").open("wb") as log:
            service = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                _wait_until_warm(http)
                samples = soak(http, service.pid, clips, seconds)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(60)
    grown = False
    for name, process_samples in samples.items():
        settled = [sample for sample in process_samples if sample[0] > seconds * WARM_UP] or process_samples
        third = max(1, len(settled) // 3)
        memory = [max(sample[1] for sample in part) for part in (settled[:third], settled[-third:])]
        files = [max(sample[2] for sample in part) for part in (settled[:third], settled[-third:])]
        print(
            f"{name}: {memory[0] / 2**20:.0f} MB, {files[0]} files in the first third, "
            f"{memory[1] / 2**20:.0f} MB, {files[1]} files in the last"
        )
        grown |= memory[1] - memory[0] > GROWTH_BYTES or files[1] - files[0] > GROWTH_FILES
    return int(grown)


def _wait_until_warm(http: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if any(worker["models"] for worker in http.get("/readyz").json()["workers"]):
                return
        except (httpx.HTTPError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError("no worker became warm within 120 s")


if __name__ == "__main__":
    sys.exit(main())
