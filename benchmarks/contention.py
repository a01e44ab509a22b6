"""Time of a job alone, and of two jobs side by side in two processes.

Each process segments a generated video with `tiny` in float32, once to warm up, then on a signal that starts all
processes at once. On two cores that all of them share, a job beside another one takes twice as long at best.

python -m benchmarks.contention [--frames 120] [--size 144x176] [--runs 3]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import ROOT, write_video
from uvos.contract import SegmentParams
from uvos.models import MODELS

TARGET = 2.3  # times the wall time of a job alone
Times = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=120, help="length of the generated video")
    parser.add_argument("--size", default="144x176", help="HxW of the generated video")
    parser.add_argument("--runs", type=int, default=3, help="of each setting; medians are printed")
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)  # of a process started by this one
    arguments = parser.parse_args()
    if arguments.video is not None:
        run_jobs(arguments.video)
        return
    height, width = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "video.mp4", arguments.frames, height, width)
        first, second = start(video), start(video)
        alone, beside = [], []
        for _ in range(arguments.runs):
            alone += measure(first)
            beside += measure(first, second)
        for process in (first, second):
            process.communicate()
    print_row("alone", alone)
    print_row("side by side", beside)
    for name, target in (("wall", f"; target: at most {TARGET}"), ("cpu", "")):
        ratio = median(beside, name) / median(alone, name)
        print(f"side by side against alone: {ratio:.2f} times the {name} time{target}")


def start(video: Path) -> subprocess.Popen[str]:
    """A process that is warm and waits for a line on standard input."""
    command = [sys.executable, "-m", "benchmarks.contention", "--video", str(video)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "warm\n":
        raise SystemExit("the process of a job could not start")
    return process


def measure(*processes: subprocess.Popen[str]) -> list[Times]:
    """Run one job in each process at the same time."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    times: list[Times] = []
    for process in processes:
        assert process.stdout is not None
        times.append(json.loads(process.stdout.readline()))
    return times


def run_jobs(video: Path) -> None:
    """Segment the video once to warm up and once for each line on standard input; prints times in seconds."""
    from worker.models.loading import load_model
    from worker.pipeline import segment
    from worker.run import SegmentationRun

    model = load_model(MODELS["tiny"], device="cpu", dtype="float32")
    params = MODELS["tiny"].complete(SegmentParams())

    def run() -> Times:
        wall, cpu = time.perf_counter(), cpu_seconds()
        with tempfile.TemporaryDirectory(dir=video.parent) as folder:
            timings = segment(SegmentationRun(source=video, params=params, model=model, out=Path(folder))).timings_s
        return timings | {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}

    run()
    print("warm", flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, user and system."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def median(times: list[Times], name: str) -> float:
    return statistics.median(row[name] for row in times)


def print_row(setting: str, times: list[Times]) -> None:
    columns = "  ".join(f"{name} {median(times, name):.1f}" for name in times[0] if name != "total")
    print(f"{setting:>12}: {columns} s")


if __name__ == "__main__":
    main()
