import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


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
def test_interpreted_kernels_agree_with_torch():
    # In a separate process, as Triton decides at its first import whether it interprets.
    tests = Path(__file__).parent / "interpreted_triton.py"
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), interpret=True)
    assert done.returncode == 0, done.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from worker.numerics import triton_backend, triton_kernels

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

for dtype, precision, tiles in (("*bf16", "ieee", triton_backend.TILES), ("*fp32", "tf32x3", triton_backend.TILES[:1])):
    for rows, columns, warps in tiles:
        known = dict(HEADS=6, DEPTH=48, PADDED=64, ROWS=rows, COLUMNS=columns, PRECISION=precision, WIDEN=False)
        types = dict(q=dtype, k=dtype, scale="fp32", out="*fp32", n="i32", m="i32")
        compile(triton_kernels.softmax_denominators, dict(types), dict(known), warps)
        compile(triton_kernels.mean_softmax, types | dict(denominators="*fp32"), known | dict(ROUND=True), warps)
rows = dict(p="*fp32", rounded="*bf16", remainder="*bf16", logs="*bf16", negentropy="*fp32", log_norm="*fp32", m="i32")
compile(triton_kernels.fill_factors, rows, dict(EPSILON=1e-12, COLUMNS=triton_backend.ROW_STEP), 4)
pairs = dict(p="*fp32", row="*i64", q="*fp32", other="*i64", out="*fp32", m="i32")
compile(triton_kernels.pair_kl, pairs, dict(EPSILON=1e-12, COLUMNS=triton_backend.ROW_STEP), 4)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")
def test_kernels_compile_for_a_large_gpu_within_its_shared_memory():
    done = run_python("-W", "ignore", "-c", COMPILE, interpret=False)
    assert done.returncode == 0, done.stderr
