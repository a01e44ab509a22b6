import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.threads import usable_cores

CORES = len(os.sched_getaffinity(0))
LIBRARY_THREADS = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import worker
import cv2, torch
from worker.outputs.drawing import DRAWING_THREADS
print(torch.get_num_threads(), cv2.getNumThreads(), DRAWING_THREADS, os.environ["OMP_WAIT_POLICY"])
"""


def cgroup(folder: Path, path: str, quotas: dict[str, str]) -> dict[str, Path]:
    """Files as in /proc and /sys/fs/cgroup of a process in the cgroup `path`."""
    (folder / "cgroup").write_text(f"1:cpu:/elsewhere\n0::{path}\n")
    for name, quota in quotas.items():
        (folder / "root" / name).mkdir(parents=True, exist_ok=True)
        (folder / "root" / name / "cpu.max").write_text(f"{quota} 100000\n")
    return {"cgroup_file": folder / "cgroup", "cgroup_root": folder / "root"}


@pytest.mark.parametrize(
    ("path", "quotas", "cores"),
    [
        ("/", {}, CORES),
        ("/", {"": "max"}, CORES),
        ("/", {"": "100000"}, 1),
        ("/", {"": "20000"}, 1),
        ("/", {"": "110000"}, min(2, CORES)),
        ("/", {"": "100000000"}, CORES),
        ("/pod/container", {"": "max", "pod": "100000", "pod/container": "max"}, 1),
        ("/pod/container", {"pod": "max", "pod/container": "50000", "other": "10000"}, 1),
        ("/pod", {"pod": "max", "other": "100000"}, CORES),
        ("/../hidden", {"": "max"}, CORES),
    ],
)
def test_the_cpu_quota_of_a_cgroup_and_its_ancestors_limits_the_cores(tmp_path, path, quotas, cores):
    assert usable_cores(**cgroup(tmp_path, path, quotas)) == cores


def test_without_cgroups_the_affinity_counts(tmp_path):
    assert usable_cores(tmp_path / "absent", tmp_path) == CORES


@pytest.mark.skipif(CORES < 2, reason="needs two cores to take one away")
def test_libraries_start_no_more_threads_than_the_affinity_has_cores():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENCV_"))}
    command = [sys.executable, "-c", LIBRARY_THREADS]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "1", "1", "passive"]


def test_the_environment_has_priority():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "active"}
    program = "import os, worker, torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "active"]
