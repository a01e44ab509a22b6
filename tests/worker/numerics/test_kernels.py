import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from worker.numerics import kernels


def run_python(*arguments, interpret):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TRITON_INTERPRET": str(int(interpret))},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")
def test_kernels_compute_in_the_interpreter_what_torch_computes():
    # A process of its own: Triton decides at its first import whether it interprets.
    tests = Path(__file__).parent / "interpreted_kernels.py"
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), interpret=True)
    assert done.returncode == 0, done.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from worker.numerics import kernels
from worker.numerics import triton_kernels

def compile(kernel, types, known, warps):
    types |= dict.fromkeys(known, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in known.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in types if name not in known | {"scale": 0}},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert compiled.metadata.shared <= 227 * 1024, compiled.metadata.shared

for dtype, precision, tiles in (("*bf16", "ieee", kernels.TILES), ("*fp32", "tf32x3", kernels.TILES[:1])):
    for rows, columns, warps in tiles:
        known = dict(HEADS=6, DEPTH=48, PADDED=64, ROWS=rows, COLUMNS=columns, PRECISION=precision, WIDEN=False)
        types = dict(q=dtype, k=dtype, scale="fp32", out="*fp32", n="i32", m="i32")
        compile(triton_kernels.softmax_denominators, dict(types), dict(known), warps)
        compile(triton_kernels.mean_softmax, types | dict(denominators="*fp32"), known | dict(ROUND=True), warps)
rows = dict(p="*fp32", rounded="*bf16", rest="*bf16", logs="*bf16", own="*fp32", spread="*fp32", m="i32")
compile(triton_kernels.factors, rows, dict(EPSILON=1e-12, COLUMNS=kernels.WIDE), 4)
pairs = dict(p="*fp32", row="*i64", q="*fp32", other="*i64", out="*fp32", m="i32")
compile(triton_kernels.pair_divergences, pairs, dict(EPSILON=1e-12, COLUMNS=kernels.WIDE), 4)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")
def test_kernels_compile_for_a_large_gpu_and_fit_it():
    done = run_python("-W", "ignore", "-c", COMPILE, interpret=False)
    assert done.returncode == 0, done.stderr


def test_where_kernels_fail_torch_computes_and_a_warning_says_so(monkeypatch, caplog):
    def fail(_device):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "_try", fail)
    assert not kernels.available.__wrapped__(torch.device("cuda"))
    assert "no compiler" in caplog.text


def test_a_cpu_has_no_use_for_them():
    assert not kernels.available(torch.device("cpu"))
