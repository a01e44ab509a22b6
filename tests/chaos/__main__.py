"""Run all scenarios at full length, or those named: `python -m tests.chaos [NAME ...]`."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.chaos import scenarios
from tests.chaos.fleet import REPOSITORY, Fleet
from tests.chaos.stub_child import stub_video
from tests.chaos.stub_worker import CHILD
from tests.videos import make_scene, write_video

SMALL_DISK = "110m"
DISK = "UVOS_TEST_DISK"

DEFAULT_LEASE = {"UVOS_LEASE_S": "6", "UVOS_RECOVERY_INTERVAL_S": "2"}
FULL: dict[str, tuple[Callable[[Fleet], scenarios.Report], dict[str, str]]] = {
    "storm": (partial(scenarios.storm, jobs=1000, kill_every_s=2, queue_kills=5, job_s=0.4), {}),
    "power_loss": (partial(scenarios.power_loss, times=50), {}),
    "kill_at_each_step": (scenarios.kill_at_each_step, DEFAULT_LEASE),
    "stalls": (partial(scenarios.stalls, count=20), {}),
    "queue_down_1": (partial(scenarios.queue_down, seconds=1), {}),
    "queue_down_8": (partial(scenarios.queue_down, seconds=8), {}),
    "queue_down_30": (partial(scenarios.queue_down, seconds=30), {}),
    "flushed": (partial(scenarios.flushed, jobs=50), {}),
    "poisoned": (scenarios.poisoned, {}),
    "poison_file": (scenarios.poison_file, {}),
    "frozen_queue": (scenarios.frozen_queue, {}),
    "same_key": (scenarios.same_key, {}),
    "cancelling": (partial(scenarios.cancelling, times=4), DEFAULT_LEASE),
    "deleting": (scenarios.deleting, {}),
    "stopping": (scenarios.stopping, {}),
    "full_disk": (scenarios.full_disk, {}),
    "full_disk_at_the_end": (partial(scenarios.full_disk_at_the_end, video=stub_video(0.1)), {}),
    "full_disk_at_a_real_end": (
        lambda fleet: scenarios.full_disk_at_the_end(fleet, video=_real_video(fleet)),
        {CHILD: "worker.jobs.child_process"},
    ),
}


def main() -> int:
    chosen = sys.argv[1:] or list(FULL)
    failed = 0
    for name in chosen:
        if name.startswith("full_disk") and DISK not in os.environ:
            failed += _on_a_small_disk(name)
            continue
        scenario, settings = FULL[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="uvos-chaos-", dir=os.environ.get(DISK)) as folder:
            try:
                with Fleet(Path(folder), settings=settings) as fleet:
                    report = scenario(fleet)
            except AssertionError as error:
                failed += 1
                print(f"FAILED {name}: {error}", flush=True)
                continue
        summary = ", ".join(f"{key}: {value}" for key, value in report.items())
        print(f"ok {name} ({time.monotonic() - start:.0f} s): {summary}", flush=True)
    return 1 if failed else 0


def _real_video(fleet: Fleet) -> bytes:
    return write_video(fleet.folder / "clip.mp4", make_scene(frames=4).frames).read_bytes()


def _on_a_small_disk(name: str) -> int:
    """Run a scenario in its own mount namespace, where a small tmpfs can be mounted without root."""
    with tempfile.TemporaryDirectory(prefix="uvos-disk-") as disk:
        script = f"mount -t tmpfs -o size={SMALL_DISK} tmpfs {disk} && exec {sys.executable} -m tests.chaos {name}"
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
        return subprocess.run(command, cwd=REPOSITORY, env=os.environ | {DISK: disk}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
