"""Who may import whom: the table of docs/architecture.md, held by reading every import of every module."""

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
    "service.contract": {"worker", "service", *HEAVY, *WEB, "rq", "redis"},
    "service.errors": {"worker", *HEAVY, *WEB, "rq", "redis"},
    "service.models": {"worker", *HEAVY, *WEB, "rq", "redis"},
    "service.settings": {"worker", "service", *HEAVY, *WEB, "rq", "redis"},
    "service.storage": {"worker", *HEAVY, *WEB, "rq", "redis"},
    "service.broker": {"worker", *HEAVY, *WEB},
    "worker": {*WEB},
}
# What of ours a module may import; a name ending in "." means everything below it.
ONLY: dict[str, set[str]] = {
    "service.contract": set(),
    "service.errors": {"service.contract"},
    "service.models": {"service.contract", "service.errors"},
    "service.settings": set(),
    "service.storage": {"service.contract", "service.errors"},
    "service.broker": {"service.contract"},
    "worker.clip": set(),
    "worker.spool": set(),
    "worker.weights": {"worker.clip"},
    "worker.backbone": {"worker.clip", "worker.weights"},
    "worker.crew": set(),
    "worker.triton_kernels": set(),
    "worker.kernels": {"worker.triton_kernels"},
    "worker.numba_loops": set(),
    "worker.loops": {"worker.numba_loops"},
    "worker.divergence": {"worker.kernels", "worker.loops"},
    "worker.attention": {"worker.clip", "worker.crew", "worker.kernels", "worker.loops", "worker.spool"},
    "worker.window": {"worker.attention", "worker.divergence"},
    "worker.clustering": {
        "worker.clip",
        "worker.attention",
        "worker.crew",
        "worker.divergence",
        "worker.kernels",
        "worker.loops",
        "worker.window",
    },
    "worker.presets": set(),
    "worker.motion": {"worker.clip"},
    "worker.sandbox": set(),
    "worker.sources": set(),
    "worker.decoder": {"worker.sandbox", "worker.sources"},
    "worker.decoder_process": {"worker.decoder", "service.errors"},
    "worker.decode": {
        "worker.clip",
        "worker.sources",
        "worker.decoder",
        "worker.decoder_process",
        "service.contract",
        "service.errors",
    },
    "worker.masks": {"worker.clip", "service.contract", "service.errors"},
    "worker.formats": {"worker.clip", "worker.formats.", "service.contract", "service.errors"},
    "worker.loading": {
        "worker.backbone",
        "worker.weights",
        "worker.clip",
        "service.contract",
        "service.errors",
        "service.models",
    },
    "worker.queue": {
        "worker.child",
        "service.broker",
        "service.contract",
        "service.errors",
        "service.settings",
        "service.storage",
    },
    "worker.child": {"worker.tasks", "service.settings", "service.contract"},
}
BARE_MACHINE = {
    "worker.clip",
    "worker.spool",
    "worker.weights",
    "worker.backbone",
    "worker.crew",
    "worker.kernels",
    "worker.triton_kernels",
    "worker.loops",
    "worker.divergence",
    "worker.attention",
    "worker.window",
    "worker.clustering",
}
BARE_PACKAGES = {"torch", "triton", "timm", "numpy", "safetensors"}  # Triton comes with torch for CUDA


def modules() -> list[str]:
    paths = [path for package in ("service", "worker") for path in (ROOT / package).rglob("*.py")]
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
    ours = {name for name in found if name.split(".")[0] in ("service", "worker")}
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


def test_the_api_process_loads_no_torch_and_no_av() -> None:
    code = "import sys, service.cli, service.app; print(*(set(sys.modules) & {'torch', 'timm', 'av', 'cv2'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_parent_of_the_worker_loads_no_torch() -> None:
    code = "import sys, worker.cli, worker.queue; print(*(set(sys.modules) & {'torch', 'timm', 'av', 'cv2'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
