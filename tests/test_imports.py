"""Import rules as data, checked against every import of every module. docs/architecture.md summarizes them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "timm", "av", "cv2", "scipy"}
WEB = {"fastapi", "starlette", "uvicorn"}

# Modules by longest matching name -> what they may never import (ours by dotted name, others by package).
NEVER: dict[str, set[str]] = {
    "service": {"worker", *HEAVY},
    "service.rendering": {"worker", *HEAVY - {"av"}, *WEB},
    "uvos": {"service", "worker", *HEAVY, *WEB, "rq", "redis"},
    "service.settings": {"worker", "service", *HEAVY, *WEB, "rq", "redis"},
    "service.storage": {"worker", *HEAVY, *WEB, "rq", "redis"},
    "service.jobs.queue": {"worker", *HEAVY, *WEB},
    "service.jobs.index": {"worker", *HEAVY, *WEB},
    "service.jobs.metrics": {"worker", *HEAVY, *WEB},
    "worker": {*WEB},
}
# What of ours a module may import; a name ending in "." means everything below it.
ONLY: dict[str, set[str]] = {
    "uvos.contract": set(),
    "uvos.errors": {"uvos.contract"},
    "uvos.models": {"uvos.contract", "uvos.errors"},
    "uvos.weights": {"uvos.models"},
    "uvos.options": {"uvos.contract", "uvos.errors"},
    "uvos.progress": set(),
    "uvos.palette": set(),
    "uvos.edits": {"uvos.contract", "uvos.errors", "uvos.rle"},
    "uvos.params": set(),
    "uvos.transport": {"uvos.contract"},
    "uvos.levels": {"uvos.contract", "uvos.rle", "uvos.transport"},
    "uvos.client": {"uvos.contract", "uvos.edits", "uvos.levels", "uvos.params", "uvos.transport"},
    "uvos.async_client": {"uvos.contract", "uvos.edits", "uvos.levels", "uvos.params", "uvos.transport"},
    "uvos": {"uvos."},
    "service.settings": {"uvos.weights"},
    "service.storage": {"uvos.contract", "uvos.edits", "uvos.errors", "service.storage."},
    "service.export": {"uvos.", "service.export."},
    "service.jobs.queue": {"uvos.contract", "service.jobs.scripts"},
    "service.jobs.index": {"uvos.contract", "uvos.errors", "service.storage."},
    "service.rendering": {"uvos.", "service.rendering.", "service.supervisor"},
    "service.jobs.renders": {
        "uvos.",
        "service.jobs.results",
        "service.rendering.request",
    },
    "service.jobs": {"uvos.", "service.jobs.", "service.storage.", "service.settings", "service.logs", "service.trace"},
    "service.jobs.metrics": {"uvos.contract", "service.jobs.queue"},
    "service.logs": set(),
    "service.trace": set(),
    "worker.video.clip": set(),
    "worker.numerics.spool": set(),
    "worker.models.weights": {"worker.video.clip"},
    "worker.models.int8": {"worker.numerics.numba_ops"},
    "worker.models.backbone": {"worker.video.clip", "worker.models.weights", "worker.numerics.tile_pool"},
    "worker.numerics.tile_pool": set(),
    "worker.numerics.triton_kernels": set(),
    "worker.numerics.numba_ops": set(),
    "worker.numerics": {"worker.numerics."},
    "worker.method.attention": {"worker.numerics."},
    "worker.method.merge_rules": {"worker.numerics."},
    "worker.method.leaders": {"worker.numerics.", "worker.method.attention", "worker.method.merge_rules"},
    "worker.method.algorithm1": {
        "worker.numerics.",
        "worker.method.attention",
        "worker.method.leaders",
        "worker.method.merge_rules",
    },
    "worker.method.assignment": {
        "worker.numerics.",
        "worker.method.attention",
        "worker.method.algorithm1",
        "worker.video.clip",
    },
    "worker.method.windowed": {
        "worker.numerics.",
        "worker.method.attention",
        "worker.method.leaders",
        "worker.method.merge_rules",
        "worker.method.algorithm1",
    },
    "worker.threads": set(),
    "worker.method.motion": {"worker.threads", "worker.video.clip"},
    "worker.video.sandbox": set(),
    "worker.video.request": set(),
    "worker.video.messages": {"worker.video.request"},
    "worker.video.sources": {"worker.video.messages"},
    "worker.video.decoder": {
        "worker.video.sandbox",
        "worker.video.sources",
        "worker.video.messages",
        "worker.video.request",
    },
    "worker.video.decoder_process": {"worker.video.messages", "uvos.errors"},
    "worker.video.inputs": {"worker.video.sources", "uvos.errors"},
    "worker.video.decode": {"worker.threads", "worker.video.", "uvos.errors"},
    "worker.method.cluster_stats": set(),
    "worker.method.foreground": {"worker.method.cluster_stats"},
    "worker.method.masks": {"worker.method.cluster_stats", "worker.method.foreground", "uvos.contract"},
    "worker.method.object_scores": {"worker.method.motion"},
    "worker.method.instances": {"worker.method.motion", "worker.video.clip"},
    "worker.method.object_tokens": {"worker.method.instances", "worker.method.masks"},
    "worker.method.edges": {"worker.method.masks", "worker.video.clip", "uvos.contract"},
    "worker.outputs": {"worker.outputs.", "service.rendering.video", "uvos.contract", "uvos.palette", "uvos.rle"},
    "worker.outputs.source": {
        "service.rendering.overlay",
        "service.rendering.video",
        "worker.run",
        "worker.video.",
        "uvos.contract",
    },
    "worker.outputs.drawing": {
        "worker.outputs.",
        "service.rendering.overlay",
        "service.rendering.video",
        "worker.method.assignment",
        "worker.method.edges",
        "worker.method.features",
        "worker.method.instances",
        "worker.method.masks",
        "worker.method.object_tokens",
        "worker.run",
        "worker.threads",
        "worker.video.clip",
        "worker.video.decode",
        "uvos.contract",
    },
    "worker.outputs.manifest": {
        "worker.outputs.",
        "uvos.palette",
        "worker.method.features",
        "worker.run",
        "worker.video.decode",
        "uvos.contract",
    },
    "worker.stopwatch": {"uvos.contract"},
    "worker.run": {"worker.models.loading", "worker.video.decode", "worker.video.request", "uvos.contract"},
    "worker.method.features": {
        "worker.method.affinity",
        "worker.method.motion",
        "worker.method.object_scores",
        "worker.models.",
        "worker.numerics.spool",
        "worker.stopwatch",
        "worker.video.decode",
        "uvos.contract",
    },
    "worker.models.loading": {
        "worker.models.backbone",
        "worker.models.fetching",
        "worker.models.int8",
        "worker.models.weights",
        "worker.video.clip",
        "uvos.contract",
        "uvos.errors",
        "uvos.models",
        "uvos.weights",
    },
    "worker.models.fetching": {
        "worker.models.backbone",
        "worker.models.dinov2_onnx",
        "worker.models.weights",
        "uvos.errors",
        "uvos.models",
        "uvos.weights",
    },
    "worker.models.dinov2_onnx": {"worker.models.weights"},
    "worker.method.affinity": {"uvos.contract"},
    "worker.jobs.messages": {"uvos.contract"},
    "worker.jobs.child": {"worker.jobs.messages", "service.settings"},
    "worker.jobs.child_process": {
        "worker.jobs.tasks",
        "worker.jobs.child",
        "worker.jobs.messages",
        "service.logs",
        "service.settings",
        "uvos.errors",
    },
    "worker.jobs.execution": {
        "worker.jobs.child",
        "worker.jobs.messages",
        "service.jobs.index",
        "service.jobs.metrics",
        "service.jobs.queue",
        "service.logs",
        "service.settings",
        "service.storage.",
        "uvos.contract",
        "uvos.errors",
    },
    "worker.jobs.heartbeat": {"service.jobs.queue", "uvos.contract"},
    "worker.jobs.recovery": {
        "service.jobs.index",
        "service.jobs.metrics",
        "service.jobs.queue",
        "service.settings",
        "service.storage.",
    },
    "worker.jobs.worker": {
        "worker.jobs.child",
        "worker.jobs.execution",
        "worker.jobs.heartbeat",
        "worker.jobs.messages",
        "worker.jobs.recovery",
        "service.jobs.metrics",
        "service.jobs.queue",
        "service.jobs.workers",
        "service.settings",
        "service.storage.",
        "uvos.contract",
        "uvos.errors",
    },
}
BARE_MACHINE = {
    "worker.video.clip",
    "worker.numerics.spool",
    "worker.models.weights",
    "worker.models.backbone",
    "worker.numerics.backend",
    "worker.numerics.blocks",
    "worker.numerics.choose",
    "worker.numerics.kl",
    "worker.numerics.kl_bounds",
    "worker.numerics.tile_pool",
    "worker.numerics.torch_backend",
    "worker.numerics.triton_backend",
    "worker.numerics.triton_kernels",
    "worker.method.attention",
    "worker.method.merge_rules",
    "worker.method.leaders",
    "worker.method.algorithm1",
    "worker.method.assignment",
    "worker.method.windowed",
}
BARE_PACKAGES = {"torch", "triton", "timm", "numpy", "safetensors"}  # Triton comes with torch for CUDA


def modules() -> list[str]:
    paths = [path for package in ("uvos", "service", "worker") for path in (ROOT / package).rglob("*.py")]
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__init__.py"
    )


def imports(module: str) -> set[str]:
    """Every module that is named in an import anywhere in this one, but for those under TYPE_CHECKING."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).exists()} or {node.module}
    return found


def rule(table: dict[str, set[str]], module: str) -> set[str] | None:
    """The entry with the longest name that the module lies at or below."""
    matching = [name for name in table if module == name or module.startswith(name + ".")]
    return table[max(matching, key=len)] if matching else None


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_place_allows(module: str) -> None:
    found = imports(module)
    ours = {name for name in found if name.split(".")[0] in ("uvos", "service", "worker")}
    forbidden = rule(NEVER, module) or set()
    wrong = {name for name in found if any(name == one or name.startswith(one + ".") for one in forbidden)}
    allowed = rule(ONLY, module)
    if allowed is not None:
        wrong -= ours  # the narrower table decides about ours
        wrong |= {
            name
            for name in ours
            if name not in allowed and not any(one.endswith(".") and name.startswith(one) for one in allowed)
        }
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", sorted(BARE_MACHINE))
def test_the_method_runs_on_a_bare_gpu_machine(module: str) -> None:
    packages = {name.split(".")[0] for name in imports(module)} - {"worker"} - sys.stdlib_module_names
    assert packages <= BARE_PACKAGES


def test_the_client_loads_no_torch_no_web_framework_and_no_queue() -> None:
    heavy = HEAVY | WEB | {"redis", "rq", "typer", "service", "worker"}
    code = f"import sys; from uvos import AsyncClient, Client; print(*(set(sys.modules) & {heavy}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_api_process_loads_no_torch_and_no_av() -> None:
    code = "import sys, service.cli, service.app; print(*(set(sys.modules) & {'torch', 'timm', 'av', 'cv2'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_parent_of_the_worker_loads_no_torch() -> None:
    code = "import sys, worker.cli, worker.jobs.worker; print(*(set(sys.modules) & {'torch', 'timm', 'av', 'cv2'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
