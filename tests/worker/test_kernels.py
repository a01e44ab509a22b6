import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from worker import kernels


@pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")
def test_kernels_compute_in_the_interpreter_what_torch_computes():
    # A process of its own: Triton decides at its first import whether it interprets.
    tests = Path(__file__).parent / "interpreted_kernels.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_where_kernels_fail_torch_computes_and_a_warning_says_so(monkeypatch, caplog):
    def fail(_device):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "_try", fail)
    assert not kernels.available.__wrapped__(torch.device("cuda"))
    assert "no compiler" in caplog.text


def test_a_cpu_has_no_use_for_them():
    assert not kernels.available(torch.device("cpu"))
