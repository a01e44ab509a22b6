"""The model part on a GPU: correctness, speed, share of the device's limits, and the released code for comparison.

A script for a machine without the project installed: it needs torch, timm and numpy, and the folders worker/ and
benchmarks/. Without a GPU it runs a small case on the CPU, to check that it runs, and reports that.

python benchmarks/gpu.py [--frames 100] [--height 320] [--width 480] [--key-ratio 0.1] [--tau 1.0] [--out FILE]
"""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.features import generated_features, textured_frames
from benchmarks.released import released_attention, released_clustering
from worker.method.algorithm1 import algorithm1
from worker.method.assignment import kl_to_centroids
from worker.method.attention import AttentionMaps, key_frames
from worker.method.windowed import windowed
from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing
from worker.numerics.choose import choose_backend
from worker.numerics.tile_pool import TilePool
from worker.numerics.torch_backend import TorchBackend

MODEL = "vit_small_patch8_224.dino"  # with random weights, which cost the same
SCORE_GAIN = 3.0  # with it, random weights give as many leaders as trained ones
GIGA, TERA = 1e9, 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--key-ratio", type=float, default=0.1)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the tables into this file")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        asked.frames, asked.height, asked.width, asked.repeats = 8, 160, 240, 1
    lines = [
        f"# {_name(device)}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, `python benchmarks/gpu.py --frames {asked.frames} "
        f"--height {asked.height} --width {asked.width} --key-ratio {asked.key_ratio} --tau {asked.tau}`",
        "",
    ]
    if device.type == "cpu":
        lines += ["**No GPU here**: a small run on the CPU, to check that the script runs.", ""]
    elif type(choose_backend(device)) is TorchBackend:
        lines += ["Triton could not be used (see the warning): torch's own operations ran instead.", ""]
    for section in (agreement(device), model_part(device, asked)):
        lines += [*section, ""]
    print("\n".join(lines))
    if asked.out:
        asked.out.write_text("\n".join(lines).rstrip() + "\n")


def make_maps(queries: Tensor, keys: Tensor, dtype: torch.dtype = torch.float32) -> AttentionMaps:
    """Attention maps on the keys' device."""
    backend = choose_backend(keys.device)
    return AttentionMaps(queries, keys, backend=backend, pool=TilePool(backend.threads), dtype=dtype)


# --- Correctness


def agreement(device: torch.device) -> list[str]:
    """The device against the CPU on small generated features."""
    queries, keys = generated_features(6, 20, 30)
    keys = keys[[0, 3]].flatten(0, 1)
    cpu = make_maps(queries, keys)
    lines = [
        "## Against the CPU in float32",
        "",
        "| | largest error of a row | clusters, CPU | clusters, device | same label |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, procedure, dtype in (
        ("`algorithm1`, float32", algorithm1, torch.float32),
        ("`algorithm1`, bfloat16", algorithm1, torch.bfloat16),
        ("`windowed`, float32", windowed, torch.float32),
    ):
        maps = make_maps(queries, keys.to(device), dtype)
        error = (maps.rows(0, 6).cpu() - cpu.rows(0, 6)).abs().sum(1).max()
        expected, level = procedure(cpu, [1.0])[0], procedure(maps, [1.0])[0]
        a = torch.cat([kl.argmin(-1).flatten() for _, _, (kl,) in kl_to_centroids(cpu, [expected])])
        b = torch.cat([kl.argmin(-1).flatten().cpu() for _, _, (kl,) in kl_to_centroids(maps, [level])])
        lines.append(
            f"| {name} | {error:.1e} | {len(expected.centroids)} | {len(level.centroids)} "
            f"| {100 * _same(a, b):.2f} % of tokens |"
        )
    return lines


def _same(a: Tensor, b: Tensor) -> float:
    """Share of tokens that agree when each label of b is replaced by the label of a that it overlaps most."""
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1).index_put_((a, b), torch.ones(len(a)), accumulate=True)
    return float((table.argmax(0)[b] == a).float().mean())


# --- Speed, and share of the device's limits


@dataclass
class Stopstopwatch:
    """Seconds of stages; the device's queue is empty at both ends of each."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        _wait(self.device)
        start = time.perf_counter()
        yield
        _wait(self.device)
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Run:
    """One run of the model part."""

    seconds: dict[str, float]
    leaders: int
    clusters: int
    queries: Tensor
    keys: Tensor

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def model_part(device: torch.device, asked: argparse.Namespace) -> list[str]:
    """From decoded frames on the device to labels, several times; reports the median run."""
    frames = textured_frames(asked.frames, asked.height, asked.width)
    frames = frames.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else frames
    dtype = torch.bfloat16
    torch.manual_seed(0)
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    backbone = Backbone(create_vit(MODEL), preprocessing=preprocessing, dtype=dtype).to(device)
    key_frame_indices = key_frames(asked.frames, asked.key_ratio)
    gain = _gain(backbone, frames[:2])
    run(
        backbone, frames[: 2 * len(key_frame_indices)], list(range(len(key_frame_indices))), asked.tau, gain
    )  # compiles, chooses algorithms
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = [run(backbone, frames, key_frame_indices, asked.tau, gain) for _ in range(asked.repeats)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    runs.sort(key=lambda run: run.total)
    median = runs[len(runs) // 2]
    tokens, key_tokens = len(frames) * backbone.grid((asked.height, asked.width)).tokens, len(median.keys)
    del frames
    work = needed(backbone, asked, median, tokens, key_tokens)
    floor, limits = floor_seconds(device, work)
    lines = [
        "## The model part: frames in memory to labels",
        "",
        f"{asked.frames} frames of {asked.height}x{asked.width}, ViT-S/8 in bfloat16, "
        f"{len(key_frame_indices)} key frames ({key_tokens} key tokens), τ {asked.tau:g}: {median.leaders} leaders, "
        f"{median.clusters} clusters. Median of {len(runs)} runs.",
        "",
        "| stage | seconds | frames/s | floor | share of the floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage, seconds in median.seconds.items():
        lines.append(
            f"| {stage} | {seconds:.3f} | {asked.frames / seconds:.0f} | {floor[stage]:.3f} "
            f"| {100 * floor[stage] / seconds:.0f} % |"
        )
    whole = sum(floor.values())
    lines += [
        f"| **all** | **{median.total:.3f}** | **{asked.frames / median.total:.0f}** | {whole:.3f} "
        f"| {100 * whole / median.total:.0f} % |",
        "",
        f"Peak memory {peak / GIGA:.1f} GB." if peak else "Peak memory is only counted on a GPU.",
        "",
        f"The floor of a stage is the time of its products, exponentials and traffic at this device's own rates, "
        f"measured in the same run: {limits}.",
        "",
    ]
    del runs
    return lines + against_released(device, asked, median)


def run(backbone: Backbone, frames: Tensor, key_frame_indices: list[int], tau: float, gain: float) -> Run:
    """Features, clustering with its attention, assignment with its attention."""
    stopwatch = Stopstopwatch(backbone.device)
    size = (frames.shape[1], frames.shape[2])
    with stopwatch.stage("features"):
        projections = backbone.project(frames, size=size)
        queries = (projections.queries * gain).to(torch.bfloat16)
        keys = projections.keys[key_frame_indices].flatten(0, 1)
    maps = make_maps(queries, keys, torch.bfloat16)
    with stopwatch.stage("attention and clustering"):
        level = algorithm1(maps, [tau])[0]
    with stopwatch.stage("attention and assignment"):
        torch.cat([parts[0].argmin(-1).flatten() for _, _, parts in kl_to_centroids(maps, [level])]).cpu()
    leaders = int(level.rounds[0].parents.max()) + 1
    return Run(stopwatch.seconds, leaders, len(level.centroids), queries, keys)


def _gain(backbone: Backbone, frames: Tensor) -> float:
    projections = backbone.project(frames)
    return SCORE_GAIN / float(projections.queries.std() * projections.keys.std())


@dataclass(frozen=True)
class Work:
    """The least work of a stage: operations of products, exponentials, bytes that cross memory."""

    products: float
    exponentials: float = 0
    traffic: float = 0


def needed(backbone: Backbone, asked: argparse.Namespace, run: Run, tokens: int, key_tokens: int) -> dict[str, Work]:
    """The work of each stage."""
    grid, dim, layers = backbone.grid((asked.height, asked.width)).tokens, backbone.dim, len(backbone.vit.blocks) - 1
    features = asked.frames * layers * (24 * grid * dim**2 + 4 * grid**2 * dim)
    scores = tokens * key_tokens
    attention = 2 * scores * backbone.heads * backbone.head_dim
    exponentials = scores * backbone.heads
    traffic = 2 * 2 * scores  # rows written and read once, in two bytes
    return {
        "features": Work(features),
        "attention and clustering": Work(attention + 4 * scores * run.leaders, exponentials, traffic),
        "attention and assignment": Work(attention + 4 * scores * run.clusters, exponentials, traffic),
    }


def floor_seconds(device: torch.device, work: dict[str, Work]) -> tuple[dict[str, float], str]:
    """The least seconds of each stage at the rates of this device, and those rates in words."""
    side, count = (8192, 2**28) if device.type == "cuda" else (1024, 2**22)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    matrix = 2 * side**3 / _seconds(device, lambda: a @ a)
    numbers = torch.randn(count, device=device)
    other = torch.empty_like(numbers)
    bandwidth = 8 * count / _seconds(device, lambda: other.copy_(numbers))
    few = numbers[: 2**20].clone()  # stays in the caches, so that only the exponentials take time
    exponentials = _exponentials(device, few)
    floor = {
        stage: least.products / matrix + least.exponentials / exponentials + least.traffic / bandwidth
        for stage, least in work.items()
    }
    words = (
        f"{_rate(matrix)}FLOP/s of bfloat16 products, {_rate(bandwidth)}B/s copying, "
        f"{_rate(exponentials)} exponentials/s"
    )
    return floor, words


def _exponentials(device: torch.device, few: Tensor) -> float:
    """Exponentials per second; on a GPU the specified rate, 16 per clock and multiprocessor."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return 16.0 * properties.multi_processor_count * getattr(properties, "clock_rate", 1_755_000) * 1e3
    return len(few) / _seconds(device, few.exp)


def _rate(per_second: float) -> str:
    return f"{per_second / TERA:.2f} T" if per_second > TERA else f"{per_second / GIGA:.1f} G"


def _seconds(device: torch.device, work: Callable[[], object], repeats: int = 10) -> float:
    work()
    times = []
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


# --- Comparison with the released code


def against_released(device: torch.device, asked: argparse.Namespace, ours: Run) -> list[str]:
    """The released code on the same queries and keys, everything on the same device.

    Where the whole matrix does not fit, both run on half as many frames.
    """
    frames = len(ours.queries)
    while frames >= 1:
        queries, keys = ours.queries[:frames].float(), ours.keys[: max(1, len(ours.keys) * frames // len(ours.queries))]
        keys = keys[: max(1, len(keys) // queries.shape[1]) * queries.shape[1]]
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            _wait(device)
            start = time.perf_counter()
            centroids, _ = released_clustering(released_attention(queries, keys), frames, asked.tau)
            _wait(device)
            released = time.perf_counter() - start
            break
        except torch.OutOfMemoryError:
            frames //= 2
    else:
        return ["The released code does not fit on this device."]
    peak = torch.cuda.max_memory_allocated() / GIGA if device.type == "cuda" else 0.0
    clusters = len(centroids)
    del centroids
    rows = []
    for name, procedure, dtype in (
        ("`algorithm1`, bfloat16", algorithm1, torch.bfloat16),
        ("`algorithm1`, float32", algorithm1, torch.float32),
        ("`windowed`, float32", windowed, torch.float32),
    ):
        maps = make_maps(queries, keys, dtype)
        stopwatch = Stopstopwatch(device)
        with stopwatch.stage("all"):
            level = procedure(maps, [asked.tau], budget_bytes=2**35)[0]
            for _, _, parts in kl_to_centroids(maps, [level]):
                parts[0].argmin(-1)
        seconds = stopwatch.seconds["all"]
        rows.append(f"| {name} | {seconds:.3f} | {released / seconds:.0f}× | {len(level.centroids)} |")
    return [
        "## Comparison with the released code",
        "",
        f"Attention, clustering and assignment of {frames} frames, {len(keys)} key tokens, everything on this device. "
        f"The released code (windowed) is a transcription (`benchmarks/released.py`), peak memory {peak:.1f} GB.",
        "",
        "| | seconds | faster | clusters |",
        "| --- | --- | --- | --- |",
        f"| released code (windowed) | {released:.3f} | 1× | {clusters} |",
        *rows,
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


if __name__ == "__main__":
    main()
