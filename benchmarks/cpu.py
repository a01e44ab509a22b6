"""What attention, clustering and assignment cost on a CPU, beside the procedure of the paper's released code.

`make bench` runs all of it and writes docs/benchmarks.md with its plot. Every measurement is a process of its own,
so that one's memory is not another's; the released procedure and ours work on the same features in the same run.

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.features import generated_features, textured_frames
from benchmarks.released import released_attention, released_clustering
from worker.attention import AttentionMaps
from worker.backbone import Backbone, create_vit
from worker.clip import PatchGrid
from worker.clustering import algorithm1, distances, windowed
from worker.presets import PRESETS
from worker.weights import Preprocessing

ROOT = Path(__file__).parents[1]
GRID = PatchGrid(40, 60)
VIT_GAIN = 3.0  # of the scores of random weights: brings the leaders to what trained ones give


@dataclass(frozen=True)
class Case:
    """One measurement; `vit` runs a ViT-S/8 with random weights on generated frames, else generated features."""

    name: str
    procedure: str = "algorithm1"
    frames: int = 12
    key_frames: int = 2
    taus: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    keep_bytes: int = 2**29
    pool: int = 1
    vit: bool = False
    runs: int = 3


@dataclass(frozen=True)
class Result:
    """What came of it: seconds of each run, of which features and attention; bytes above those before; clusters."""

    seconds: list[float]
    features_s: float
    attention_s: float
    peak_bytes: int
    leaders: int
    clusters: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where benchmarks.md and the plot go")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        values = json.loads(arguments.case)
        print(json.dumps(asdict(measure(Case(**{**values, "taus": tuple(values["taus"])}), arguments.labels))))
        return
    with tempfile.TemporaryDirectory() as folder:
        Bench(Path(folder), quick=arguments.quick).write(arguments.out)


# --- one measurement, in a process of its own


def measure(case: Case, labels_path: Path) -> Result:
    """Run a case in this process and save the labels of its first τ."""
    torch.set_grad_enabled(False)
    queries, keys, features_s = _features(case)
    keys = keys[[i * case.frames // case.key_frames for i in range(case.key_frames)]].flatten(0, 1).contiguous()
    _ours(queries[:1], keys, replace(case, procedure="algorithm1"))  # what happens once a process
    run = _released if case.procedure == "released" else _ours
    before, seconds = _start_counting(), []
    for _ in range(case.runs):
        began = time.perf_counter()
        labels, attention_s, leaders, clusters = run(queries, keys, case)
        seconds.append(time.perf_counter() - began)
    peak = _memory("VmHWM") - before
    np.save(labels_path, labels.numpy())
    return Result(seconds, features_s, attention_s, peak, leaders, clusters)


def _features(case: Case) -> tuple[Tensor, Tensor, float]:
    if not case.vit:
        return *generated_features(case.frames, GRID.height, GRID.width), 0.0
    frames = textured_frames(case.frames, 8 * GRID.height, 8 * GRID.width)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    backbone = Backbone(create_vit("vit_small_patch8_224.dino"), preprocessing=preprocessing, dtype=dtype)
    backbone.project(frames[:1])
    began = time.perf_counter()
    found = backbone.project(frames)
    seconds = time.perf_counter() - began
    queries = found.queries * (VIT_GAIN / (found.queries.std() * found.keys.std()))
    return queries, found.keys, seconds


def _ours(queries: Tensor, keys: Tensor, case: Case) -> tuple[Tensor, float, int, int]:
    dtype: torch.dtype = getattr(torch, case.dtype)
    maps = AttentionMaps(queries, keys, dtype=dtype, keep_bytes=case.keep_bytes, pool=case.pool, grid=GRID)
    levels = (windowed if case.procedure == "windowed" else algorithm1)(maps, case.taus)
    labels = torch.cat([parts[0].argmin(-1).flatten() for _, _, parts in distances(maps, levels)])
    return labels, maps.seconds, int(levels[0].rounds[0].parents.max()) + 1, len(levels[0].centroids)


def _released(queries: Tensor, keys: Tensor, case: Case) -> tuple[Tensor, float, int, int]:
    began = time.perf_counter()
    attention = released_attention(queries, keys)
    seconds = time.perf_counter() - began
    centroids, labels = released_clustering(attention, case.frames, case.taus[0])
    return labels, seconds, 0, len(centroids)


def _start_counting() -> int:
    """Bytes in use now, from where the peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


# --- all of them


class Bench:
    """Measures every case and writes the page."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        self._began = time.perf_counter()
        self._loads = [os.getloadavg()[0]]
        self._labels: dict[Case, NDArray[np.int64]] = {}

    def write(self, out: Path) -> None:
        """Run everything, print the tables and write benchmarks.md and benchmarks.png into `out`."""
        sections = [self.core(), self.scaling(out / "benchmarks.png"), self.approximations(), self.vit()]
        minutes = (time.perf_counter() - self._began) / 60
        head = [
            "# Benchmarks",
            "",
            f"Written by `make bench` in {minutes:.1f} minutes: {datetime.now(UTC):%Y-%m-%d}, {_cpu()}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, commit {_commit()}. Other processes' load "
            f"while it ran: {_others(self._loads)}. Medians; each row is a process of its own.",
            "",
        ]
        page = "\n".join([*head, *(line for section in sections for line in [*section, ""])]).rstrip() + "\n"
        (out / "benchmarks.md").write_text(page)
        print(page)

    def run(self, case: Case) -> Result:
        """Measure a case in a process of its own."""
        wanted = replace(case, runs=1) if self._quick else case
        labels = self._folder / f"{len(self._labels)}.npy"
        command = [
            sys.executable,
            "-m",
            "benchmarks.cpu",
            "--case",
            json.dumps(asdict(wanted)),
            "--labels",
            str(labels),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case.name}: {done.stderr}")
        result = Result(**json.loads(done.stdout.splitlines()[-1]))
        self._labels[case] = np.load(labels)
        self._loads.append(os.getloadavg()[0])
        print(f"{case.name}, {case.frames} frames: {result.median_s:.2f} s", file=sys.stderr, flush=True)
        return result

    def core(self) -> list[str]:
        """The figures that matter most: seconds and memory beside the released procedure."""
        frames = 3 if self._quick else 12
        ours = Case("`algorithm1`", frames=frames, runs=5)
        cases = [
            Case("released procedure", "released", frames, runs=1),
            ours,
            replace(ours, name="`algorithm1`, no rows kept", keep_bytes=0, runs=3),
            replace(ours, name="`algorithm1`, bfloat16 maps", dtype="bfloat16", runs=3),
            replace(ours, name="`algorithm1`, τ 1, 0.5, 1.6 at once", taus=(1.0, 0.5, 1.6), runs=3),
            Case("`windowed`", "windowed", frames),
        ]
        results = [self.run(case) for case in cases]
        released = results[0]
        lines = [
            "## Attention, clustering and assignment",
            "",
            f"{frames} frames, grid {GRID.height}x{GRID.width}, 2 key frames ({2 * GRID.tokens} key tokens), 8 heads "
            "of 48, generated features, τ 1. The released procedure is a transcription (`benchmarks/released.py`). "
            "Memory is the peak above what was in use before.",
            "",
            "| | seconds | faster | of which attention | memory MB | less | leaders | clusters |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for case, found in zip(cases, results, strict=True):
            lines.append(
                f"| {case.name} | {found.median_s:.2f} | {released.median_s / found.median_s:.1f}× "
                f"| {found.attention_s:.2f} | {found.peak_bytes / 1e6:.0f} "
                f"| {released.peak_bytes / found.peak_bytes:.1f}× | {found.leaders or ''} | {found.clusters} |"
            )
        same = np.mean(_matched(self._labels[cases[0]], self._labels[cases[-1]]))
        rounded = adjusted_rand_index(self._labels[ours], self._labels[cases[3]])
        return [
            *lines,
            "",
            f"`windowed` gives the released procedure's label to {100 * same:.2f} % of the tokens. bfloat16 maps agree "
            f"with float32 ones to an adjusted Rand index of {rounded:.4f}.",
        ]

    def scaling(self, picture: Path) -> list[str]:
        """Seconds against frames, at two key frames."""
        counts = (12, 24, 48, 96)
        if self._quick:
            counts = (3, 6)
        measured = {
            "released": [(n, self.run(Case("released procedure", "released", n, runs=1)).median_s) for n in (3, 6, 12)],
            "`algorithm1`": [(n, self.run(Case("`algorithm1`", frames=n)).median_s) for n in counts],
            "`windowed`": [(n, self.run(Case("`windowed`", "windowed", n, runs=1)).median_s) for n in counts],
        }
        _plot(measured, picture)
        lines = [
            "## Time against frames",
            "",
            f"![Seconds against frames]({picture.name})",
            "",
            "Two key frames whatever the length; the exponent is that of the power of the frame count that fits best.",
            "",
            "| | seconds at frames | exponent |",
            "| --- | --- | --- |",
        ]
        for name, points in measured.items():
            seconds = ", ".join(f"{n}: {s:.1f}" for n, s in points)
            lines.append(f"| {name} | {seconds} | {_exponent(points):.2f} |")
        return lines

    def approximations(self) -> list[str]:
        """What the named approximations gain and what they change."""
        frames = 4 if self._quick else 20
        exact = Case("exact", frames=frames, key_frames=max(1, frames // 4))
        budgets = {name: max(1, min(exact.key_frames, p.max_key_tokens // GRID.tokens)) for name, p in PRESETS.items()}
        cases = [
            exact,
            replace(exact, name="keys pooled 2x2", pool=2),
            replace(exact, name="keys pooled 4x4", pool=4),
            replace(exact, name="2 key frames", key_frames=2),
            *(replace(exact, name=f"`{n}`", pool=p.pool, key_frames=budgets[n]) for n, p in PRESETS.items()),
        ]
        results = [self.run(case) for case in cases]
        lines = [
            "## Approximations",
            "",
            f"Off by default. {frames} frames, {exact.key_frames} key frames ({exact.key_frames * GRID.tokens} key "
            "tokens), otherwise as above. The adjusted Rand index says how far labels agree with the exact result's. "
            "Presets (`worker/presets.py`) join a pooling with a limit of key tokens.",
            "",
            "| | key frames | pooled | seconds | faster | adjusted Rand index | clusters |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for case, found in zip(cases, results, strict=True):
            index = adjusted_rand_index(self._labels[exact], self._labels[case])
            pooled = f"{case.pool}x{case.pool}" if case.pool > 1 else "no"
            lines.append(
                f"| {case.name} | {case.key_frames} | {pooled} | {found.median_s:.2f} "
                f"| {results[0].median_s / found.median_s:.1f}× | {index:.4f} | {found.clusters} |"
            )
        return lines

    def vit(self) -> list[str]:
        """Beside a ViT: how much of the whole the rest takes."""
        frames = (3, 3, 3) if self._quick else (20, 20, 48)
        cases = [
            Case("key ratio 0.1", frames=frames[0], key_frames=max(1, round(0.1 * frames[0])), vit=True, runs=1),
            Case("key ratio 1.0", frames=frames[1], key_frames=min(frames[1], 16), vit=True, runs=1),
            Case("key ratio 0.1", frames=frames[2], key_frames=max(1, round(0.1 * frames[2])), vit=True, runs=1),
        ]
        lines = [
            "## With a backbone",
            "",
            "ViT-S/8 with random weights at 320x480 on generated frames (scores scaled so that leaders are as many as "
            "trained weights give); features in bfloat16 where the CPU multiplies it fast. Key ratio 1.0 stops at "
            "16 key frames, as the service does by default (40,000 key tokens).",
            "",
            "| frames | key frames | features s | attention s | clustering and assignment s | all but features "
            "| leaders | clusters |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for case in cases:
            found = self.run(case)
            rest = found.median_s - found.attention_s
            share = found.median_s / (found.median_s + found.features_s)
            lines.append(
                f"| {case.frames} | {case.key_frames} | {found.features_s:.1f} | {found.attention_s:.1f} | {rest:.1f} "
                f"| {100 * share:.0f} % | {found.leaders} | {found.clusters} |"
            )
        return lines


def adjusted_rand_index(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """How far two labellings agree: 1 for the same, about 0 for chance (Hubert and Arabie, 1985)."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, in_a, in_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = in_a * in_b / pairs(np.array([float(len(a))]))
    most = (in_a + in_b) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def _matched(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where two labellings agree, after each label of b is read as the label of a it shares most tokens with."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    found: NDArray[np.bool_] = table.argmax(0)[b] == a
    return found


def _exponent(points: list[tuple[int, float]]) -> float:
    logs = [(math.log(n), math.log(s)) for n, s in points]
    frames, seconds = np.array(logs).T
    return float(np.polyfit(frames, seconds, 1)[0])


def _plot(measured: dict[str, list[tuple[int, float]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in measured.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name.strip("`"))
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="seconds", title="Attention, clustering, assignment")
    ticks = sorted({n for points in measured.values() for n, _ in points})
    axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=130)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    units = ", AMX bfloat16" if "amx_bf16" in flags else ""
    return f"{len(names)} cores of {names[0] if names else platform.processor()}{units}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _others(loads: list[float]) -> str:
    """The load average, less what the benchmark itself brings."""
    low, high = (max(0.0, load - torch.get_num_threads()) for load in (min(loads), max(loads)))
    return f"{low:.1f} to {high:.1f} processes"


if __name__ == "__main__":
    main()
