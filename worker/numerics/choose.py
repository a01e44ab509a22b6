"""The one place where a backend is chosen for a device."""

import importlib
import logging
import warnings
from functools import cache
from typing import Any

import torch

from worker.numerics.backend import Backend
from worker.numerics.torch_backend import TorchBackend

logger = logging.getLogger(__name__)


def choose_backend(device: torch.device) -> Backend:
    """The fastest backend that works on the device, for one job.

    Numba on a CPU and Triton on a CUDA device; where they cannot compile, or Triton's kernels fail a trial against
    torch, torch's own operations give the same result more slowly, and a warning is logged once. The first call on a
    machine compiles for some seconds.
    """
    module = _load("numba_backend") if device.type == "cpu" else None
    if module is not None:
        backend: Backend = module.NumbaBackend(device)
    elif device.type == "cuda" and _triton_works(device):
        backend = _load("triton_backend").TritonBackend(device)
    else:
        backend = TorchBackend(device)
    return backend


@cache
def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"worker.numerics.{name}")
    except Exception as error:  # no such library, no writable place for its files, or any error of a compiler
        logger.warning("%s is not available, torch's own operations are used and are slower: %s", name, error)
        return None


@cache
def _triton_works(device: torch.device) -> bool:
    module = _load("triton_backend")
    if module is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compiler advice does not concern users
            module.TritonBackend(device).check()
    except Exception as error:  # no C compiler, or any error of Triton's own
        logger.warning("Triton's kernels cannot be used, torch's own operations are several times slower: %s", error)
        return False
    return True
