"""Gradients that come out the same each time, so that a training that was interrupted resumes exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a CPU, add gradients in a fixed order: by default threads add those of an indexed tensor as they come.

    On a GPU some of the operations have no such order; there a resumed training is equal up to rounding.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
