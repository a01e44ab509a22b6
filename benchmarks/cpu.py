"""Time and memory of attention, clustering and assignment on a CPU, against plain PyTorch on the same features.

Like is compared with like: `algorithm1` with a dense PyTorch implementation of Algorithm 1 (`benchmarks/dense.py`), and
`windowed` with a transcription of the released code (`benchmarks/released.py`). `make bench` runs everything and writes
docs/benchmarks.md with its plot. Every measurement is a separate process, so that memory is measured separately.

python -m benchmarks.cpu [--quick] [--out docs]
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.agreement import adjusted_rand_index, mean_j, same_label
from benchmarks.dense import dense_algorithm1
from benchmarks.features import generated_features
from benchmarks.released import released_attention, released_clustering
from uvos.contract import Stage
from worker.method.algorithm1 import algorithm1
from worker.method.assignment import kl_to_centroids
from worker.method.attention import AttentionMaps
from worker.method.windowed import windowed
from worker.numerics.choose import choose_backend
from worker.numerics.tile_pool import TilePool
from worker.pipeline import KEPT_BYTES
from worker.stopwatch import Stopwatch

ROOT = Path(__file__).parents[1]
GRID, QUICK_GRID = (40, 60), (16, 24)
DENSE, RELEASED = "dense PyTorch Algorithm 1", "released code (windowed)"
LONG_S = 12.0  # total time of a case after which it is not repeated, as noise is small in proportion


@dataclass(frozen=True)
class Case:
    """One measurement of attention, clustering and assignment; features are generated, or those of a random ViT."""

    name: str
    procedure: str = "algorithm1"
    frames: int = 12
    key_frames: int = 2
    grid: tuple[int, int] = GRID
    taus: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    keep_bytes: int = 2**29
    vit: bool = False
    runs: int = 3


@dataclass(frozen=True)
class Result:
    """Seconds of each run, those of attention in the last one, peak memory above that in use before, counts."""

    seconds: list[float]
    attention_s: float
    peak_bytes: int
    leaders: int
    clusters: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of benchmarks.md and the plot")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", help=argparse.SUPPRESS)
    parser.add_argument("--encode", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        values = json.loads(arguments.case)
        lists = {name: tuple(values[name]) for name in ("grid", "taus")}  # JSON has no tuples
        print(json.dumps(asdict(measure(Case(**{**values, **lists}), arguments.folder))))
    elif arguments.whole:
        frames, key_ratio, size = json.loads(arguments.whole)
        from benchmarks.whole import segment_video  # imported late, here and below: timm takes seconds to import

        print(json.dumps(segment_video(frames, key_ratio, tuple(size))))
    elif arguments.encode:
        from benchmarks.whole import encode_masks

        print(json.dumps(encode_masks(arguments.encode)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            Bench(Path(folder), quick=arguments.quick).write(arguments.out)


# --- One measurement, in a separate process


def measure(case: Case, folder: Path) -> Result:
    """Run a case in this process and save the labels of its first τ as labels.npy."""
    torch.set_grad_enabled(False)
    queries, keys = _features(case, folder)
    keys = keys[[i * case.frames // case.key_frames for i in range(case.key_frames)]].flatten(0, 1).contiguous()
    _ours(queries[:1], keys, replace(case, procedure="algorithm1"))  # one-time costs of a process
    run = {"released": _released, "dense": _dense}.get(case.procedure, _ours)
    before = _reset_peak()
    seconds: list[float] = []
    while len(seconds) < case.runs and sum(seconds) < LONG_S:
        start = time.perf_counter()
        labels, attention_s, leaders, clusters = run(queries, keys, case)
        seconds.append(time.perf_counter() - start)
    peak = _memory("VmHWM") - before
    np.save(folder / "labels.npy", labels.numpy())
    return Result(seconds, attention_s, peak, leaders, clusters)


def _features(case: Case, folder: Path) -> tuple[Tensor, Tensor]:
    if not case.vit:
        return generated_features(case.frames, *case.grid)
    path = folder / f"vit-{case.frames}.pt"
    if not path.exists():
        from benchmarks.whole import vit_features

        torch.save(vit_features(case.frames, _pixels(case.grid)), path)
    queries, keys = torch.load(path)
    return queries, keys


def _ours(queries: Tensor, keys: Tensor, case: Case) -> tuple[Tensor, float, int, int]:
    dtype: torch.dtype = getattr(torch, case.dtype)
    backend = choose_backend(keys.device)
    pool = TilePool(backend.threads)
    stopwatch = Stopwatch()
    maps = AttentionMaps(
        queries,
        keys,
        backend=backend,
        pool=pool,
        dtype=dtype,
        keep_bytes=case.keep_bytes,
        timer=lambda: stopwatch.tile(Stage.attention, pool.threads),
    )
    levels = (windowed if case.procedure == "windowed" else algorithm1)(maps, case.taus)
    labels = torch.cat([parts[0].argmin(-1).flatten() for _, _, parts in kl_to_centroids(maps, levels)])
    return (
        labels,
        stopwatch.report()[Stage.attention],
        int(levels[0].rounds[0].parents.max()) + 1,
        len(levels[0].centroids),
    )


def _released(queries: Tensor, keys: Tensor, case: Case) -> tuple[Tensor, float, int, int]:
    attention, seconds = _full_attention(queries, keys)
    centroids, labels = released_clustering(attention, case.frames, case.taus[0])
    return labels, seconds, 0, len(centroids)


def _dense(queries: Tensor, keys: Tensor, case: Case) -> tuple[Tensor, float, int, int]:
    attention, seconds = _full_attention(queries, keys)
    centroids, labels = dense_algorithm1(attention, case.taus[0])
    return labels, seconds, 0, len(centroids)


def _full_attention(queries: Tensor, keys: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    attention = released_attention(queries, keys)
    return attention, time.perf_counter() - start


def _reset_peak() -> int:
    """Start counting peak memory anew; the bytes in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


# --- All measurements


class Bench:
    """Measures every case and writes the page."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        self._began = time.perf_counter()
        self._loads = [os.getloadavg()[0]]
        self._grid = QUICK_GRID if quick else GRID
        self._tokens = self._grid[0] * self._grid[1]
        self._results: dict[Case, tuple[Result, NDArray[np.int64]]] = {}
        self._goals: list[tuple[str, str, str]] = []

    def write(self, out: Path) -> None:
        """Run everything, print the tables and write benchmarks.md and benchmarks.png into `out`."""
        sections = [
            self.core(),
            self.scaling(out / "benchmarks.png"),
            self.vit(),
            self.whole(),
            self.encoding(),
            self.approximations(),
        ]
        minutes = (time.perf_counter() - self._began) / 60
        head = [
            "# Benchmarks",
            "",
            f"Written by `{'python -m benchmarks.cpu --quick' if self._quick else 'make bench'}` in {minutes:.1f} "
            f"minutes: {datetime.now(UTC):%Y-%m-%d}, {_cpu()}, {torch.get_num_threads()} threads, torch "
            f"{torch.__version__}, commit {_commit()}. Other processes' load while it ran: {_others(self._loads)}. "
            f"Medians of up to five runs, none begun after {LONG_S:.0f} s of a row's runs; each row is a process of "
            "its own. What a GPU does: [gpu.md](gpu.md).",
            "",
            "| goal | asked | measured |",
            "| --- | --- | --- |",
            *(f"| {what} | {asked} | {measured} |" for what, asked, measured in self._goals),
            "",
        ]
        page = "\n".join([*head, *(line for section in sections for line in [*section, ""])]).rstrip() + "\n"
        (out / "benchmarks.md").write_text(page)
        print(page)

    def run(self, case: Case) -> Result:
        """Measure a case in a separate process; a case that was measured under another name is not repeated."""
        case = replace(case, grid=self._grid)
        key = _unnamed(case)
        if key not in self._results:
            start = time.perf_counter()
            wanted = replace(case, runs=1) if self._quick else case
            result = Result(**self._call("--case", json.dumps(asdict(wanted)), "--folder", str(self._folder)))
            self._results[key] = result, np.load(self._folder / "labels.npy")
            self._log(f"{case.name}, {case.frames} frames, {result.median_s:.2f} s", start)
        return self._results[key][0]

    def labels(self, case: Case) -> NDArray[np.int64]:
        """The labels of a case's first τ."""
        self.run(case)
        return self._results[_unnamed(replace(case, grid=self._grid))][1]

    def _call(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "benchmarks.cpu", *arguments]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {process.stderr}")
        self._loads.append(os.getloadavg()[0])
        return json.loads(process.stdout.splitlines()[-1])

    def _log(self, message: str, start: float) -> None:
        now = time.perf_counter()
        print(
            f"{now - self._began:5.0f} s: {message} ({now - start:.0f} s with process start)",
            file=sys.stderr,
            flush=True,
        )

    def core(self) -> list[str]:
        """Seconds and memory on generated features, each procedure against plain PyTorch."""
        frames = 3 if self._quick else 12
        dense, released = Case(DENSE, "dense", frames, runs=1), Case(RELEASED, "released", frames, runs=1)
        ours = Case("`algorithm1`", frames=frames, runs=5)
        window = Case("`windowed`", "windowed", frames)
        variants = [
            replace(ours, name="`algorithm1`, no rows kept", keep_bytes=0, runs=3),
            replace(ours, name="`algorithm1`, τ 1, 0.5, 1.6 at once", taus=(1.0, 0.5, 1.6), runs=3),
        ]
        lines = [
            "## Attention, clustering and assignment",
            "",
            f"{frames} frames, grid {self._grid[0]}x{self._grid[1]}, 2 key frames ({2 * self._tokens} key tokens), "
            "8 heads of 48, generated features, τ 1. Memory is the peak above that in use before.",
            "",
            *self._comparison({dense: [ours, *variants], released: [window]}),
        ]
        self._goals_of_comparison("generated features", dense, ours, released, window)
        for baseline, case in ((dense, ours), (released, window)):
            ratio = self.run(baseline).peak_bytes / self.run(case).peak_bytes
            self._goals.append((f"{case.name}, peak memory", f"≤ 1/4 of that of the {baseline.name}", f"1/{ratio:.1f}"))
        self._goals.append(("leaders of the generated features", "50 to 500", str(self.run(ours).leaders)))
        return lines

    def _comparison(self, cases: dict[Case, list[Case]]) -> list[str]:
        """A table of cases, each against its baseline."""
        lines = [
            "| | against | seconds | faster | attention | memory MB | less | leaders | clusters | same label |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for baseline, others in cases.items():
            slow = self.run(baseline)
            for case in [baseline, *others]:
                result = self.run(case)
                same = same_label(self.labels(baseline), self.labels(case))
                lines.append(
                    f"| {case.name} | {'' if case is baseline else baseline.name} | {result.median_s:.2f} "
                    f"| {slow.median_s / result.median_s:.1f}× | {result.attention_s:.2f} "
                    f"| {result.peak_bytes / 1e6:.0f} | {slow.peak_bytes / result.peak_bytes:.1f}× "
                    f"| {result.leaders or ''} | {result.clusters} | {100 * same:.2f} % |"
                )
        return lines

    def _goals_of_comparison(self, tokens: str, dense: Case, ours: Case, released: Case, window: Case) -> None:
        comparisons = ((ours, dense, None), (ours, released, 25), (window, released, 8))
        for case, baseline, factor in comparisons:
            slow, fast = self.run(baseline).median_s, self.run(case).median_s
            ratio = slow / fast
            target = f"at least {factor}×" if factor else "none set"
            missed = " (missed)" if factor and ratio < factor else ""
            what = f"{case.name} against the {baseline.name}, {tokens}"
            self._goals.append((what, target, f"{ratio:.1f}×{missed} ({slow:.1f} s, {fast:.2f} s)"))

    def scaling(self, picture: Path) -> list[str]:
        """Seconds against frames, at two key frames."""
        counts = (3, 6) if self._quick else (12, 24, 48, 96)
        few = (3, 6) if self._quick else (3, 12)  # frames of the baselines, whose memory and time allow no more
        keep = {"keep_bytes": KEPT_BYTES}
        measured = {
            DENSE: [(n, self.run(Case(DENSE, "dense", n, runs=1))) for n in few],
            RELEASED: [(n, self.run(Case(RELEASED, "released", n, runs=1))) for n in few],
            "`algorithm1`": [(n, self.run(Case("`algorithm1`", frames=n, **keep))) for n in counts],
            "`windowed`": [(n, self.run(Case("`windowed`", "windowed", n, **keep))) for n in counts[:3]],
        }
        points = {name: [(n, result.median_s) for n, result in results] for name, results in measured.items()}
        _plot(points, picture)
        lines = [
            "## Time against frames",
            "",
            f"![Seconds against frames]({picture.name})",
            "",
            "Two key frames at every length, rows kept as the worker keeps them. The exponent is that of the power of "
            "the frame count that fits best. These features drift: longer clips have more leaders, with which all "
            "later frames are compared. Attention alone shows the cost of a frame.",
            "",
            "| | seconds at frames | exponent | attention alone | exponent | leaders |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, results in measured.items():
            attention = [(n, result.attention_s) for n, result in results]
            leaders = ", ".join(f"{n}: {result.leaders}" for n, result in results if result.leaders)
            cells = [f"{_listed(series)} | {_exponent(series):.2f}" for series in (points[name], attention)]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} | {leaders} |")
        for name in ("`algorithm1`", "`windowed`"):
            series = points[name]
            what = f"{name}, exponent of the frames, {series[0][0]} to {series[-1][0]}"
            self._goals.append((what, "≤ 1.1", f"{_exponent(series):.2f}"))
        return lines

    def vit(self) -> list[str]:
        """The same comparison on tokens of a ViT."""
        frames = 3 if self._quick else 20
        keys = max(1, round(0.1 * frames))
        dense, released = (
            Case(name, procedure, frames, keys, vit=True, runs=1)
            for name, procedure in ((DENSE, "dense"), (RELEASED, "released"))
        )
        ours = Case("`algorithm1`", frames=frames, key_frames=keys, vit=True)
        window = replace(ours, name="`windowed`", procedure="windowed")
        size = "x".join(map(str, _pixels(self._grid)))
        features = f"tokens of ViT-S/8, {frames} frames of {size}, key_ratio 0.1"
        self._goals_of_comparison(features, dense, ours, released, window)
        return [
            "## The same on tokens of a ViT",
            "",
            f"{features[0].upper()}{features[1:]}: random weights and generated frames, scores scaled so that "
            "there are as many leaders as with trained weights.",
            "",
            *self._comparison({dense: [ours], released: [window]}),
        ]

    def whole(self) -> list[str]:
        """The pipeline from a file to masks, and the share of all stages but the backbone."""
        runs = [(3, 0.1), (3, 1.0), (4, 0.1)] if self._quick else [(10, 0.1), (10, 1.0), (48, 0.1)]
        size = _pixels(self._grid)
        lines = [
            "## The whole pipeline",
            "",
            f"`worker.pipeline.segment` from a video file of 480x720 to PNG and RLE, `dino-vits8` at "
            f"{size[0]}x{size[1]} with random weights, scores scaled as above; products in bfloat16 where the CPU has "
            "them. Seconds by stage.",
            "",
            "| frames | key_ratio | decode | features | attention | clustering, assignment | masks | total "
            "| all but features | leaders | clusters |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        totals = []
        for frames, key_ratio in runs:
            start = time.perf_counter()
            seconds, leaders, clusters = self._call("--whole", json.dumps([frames, key_ratio, size]))
            self._log(f"whole pipeline, {frames} frames, key_ratio {key_ratio}", start)
            total = seconds["total"]
            rest = 1 - seconds["features"] / total
            totals.append(total)
            stages = " | ".join(
                f"{seconds[stage]:.1f}" for stage in ("decode", "features", "attention", "clustering", "masks", "total")
            )
            lines.append(f"| {frames} | {key_ratio} | {stages} | {100 * rest:.0f} % | {leaders} | {clusters} |")
        self._goals += [
            (f"all but the backbone, {runs[2][0]} frames, key_ratio 0.1", "≤ 35 % of the time", f"{100 * rest:.0f} %"),
            (
                f"the whole pipeline, {runs[0][0]} frames, key_ratio 0.1 against 1.0",
                "the paper: 2.3×",
                f"{totals[1] / totals[0]:.1f}×",
            ),
        ]
        return lines

    def encoding(self) -> list[str]:
        """Masks encoded per second."""
        start = time.perf_counter()
        rates = self._call("--encode", "10" if self._quick else "100")
        self._log("encoding", start)
        self._goals.append(
            ("masks encoded at 480x854, RLE and palette PNG", "≥ 200 per second", f"{rates['RLE and palette PNG']:.0f}")
        )
        return [
            "## Encoding",
            "",
            "Label maps of 480x854 with 8 objects; two threads, pycocotools in one thread.",
            "",
            "| | masks per second |",
            "| --- | --- |",
            *(f"| {name} | {rate:.0f} |" for name, rate in rates.items()),
        ]

    def approximations(self) -> list[str]:
        """Gain and effect of fewer key frames and of bfloat16 maps."""
        frames = 3 if self._quick else 12
        exact = Case("exact", frames=frames, key_frames=3, runs=2)
        cases = [
            exact,
            replace(exact, name="limit of 2 key frames", key_frames=2),
            replace(exact, name="bfloat16 maps", dtype="bfloat16"),
        ]
        lines = [
            "## Approximations",
            "",
            f"The worker uses neither on a CPU by itself. {frames} frames, {exact.key_frames} key frames "
            f"({exact.key_frames * self._tokens} key tokens), generated features, τ 1. The adjusted Rand index and J "
            "measure agreement with the exact result: J is the Jaccard index with the matched cluster, a mean over the "
            "exact result's clusters.",
            "",
            "| | key frames | seconds | faster | adjusted Rand index | J | clusters |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for case in cases:
            result = self.run(case)
            labels = self.labels(exact), self.labels(case)
            lines.append(
                f"| {case.name} | {case.key_frames} | {result.median_s:.2f} "
                f"| {self.run(exact).median_s / result.median_s:.1f}× | {adjusted_rand_index(*labels):.4f} "
                f"| {mean_j(*labels):.3f} | {result.clusters} |"
            )
        return lines


def _pixels(grid: tuple[int, int]) -> tuple[int, int]:
    return 8 * grid[0], 8 * grid[1]


def _unnamed(case: Case) -> Case:
    """The case without its name and number of runs, which do not change its result."""
    return replace(case, name="", runs=0)


def _listed(points: list[tuple[int, float]]) -> str:
    return ", ".join(f"{n}: {s:.1f}" for n, s in points)


def _exponent(points: list[tuple[int, float]]) -> float:
    logs = [(math.log(n), math.log(s)) for n, s in points]
    frames, seconds = np.array(logs).T
    return float(np.polyfit(frames, seconds, 1)[0])


def _plot(measured: dict[str, list[tuple[int, float]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in measured.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name.strip("`"))
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="seconds", title="Attention, clustering, assignment")
    ticks = sorted({n for points in measured.values() for n, _ in points})
    axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=130)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    units = ", AMX bfloat16" if "amx_bf16" in flags else ", no AMX"
    return f"{len(names)} cores of {names[0] if names else platform.processor()}{units}"


def _commit() -> str:
    process = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return process.stdout.strip() or "unknown"


def _others(loads: list[float]) -> str:
    """The load average without that of the benchmark itself."""
    low, high = (max(0.0, load - torch.get_num_threads()) for load in (min(loads), max(loads)))
    return f"{low:.1f} to {high:.1f} processes"


if __name__ == "__main__":
    main()
