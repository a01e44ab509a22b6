"""CPU cores that this process may use; imports nothing that starts threads.

Libraries count the cores of the machine, or of the affinity at best. In a container with a CPU quota that is too
many threads: the kernel then stops all of them for the rest of each period.
"""

import math
import os
from pathlib import Path

CGROUP_FILE, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores(cgroup_file: Path = CGROUP_FILE, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Cores of the CPU affinity, or the CPU quota of cgroup v2 rounded up where that is less; at least 1."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroup_file, cgroup_root))))


def configure_libraries() -> None:
    """Set the threads of libraries that are imported later, unless the environment sets them.

    OpenMP threads of torch wait for each other after every operation. By default they spin, which takes the cores
    from other processes: two jobs on two cores took five times as long as one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # frames are processed in parallel instead


def _quota(cgroup_file: Path, cgroup_root: Path) -> float:
    """The smallest quota of the process's cgroup and its ancestors, in cores; infinity without one."""
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return math.inf
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = cgroup_root / path
    folders = [folder, *folder.parents][: len(Path(path).parts) + 1]
    return min(map(_quota_of, folders))


def _quota_of(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:  # the root of the hierarchy, cgroup v1, or no access
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)
