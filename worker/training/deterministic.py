"""Deterministic gradients, so that an interrupted training run resumes exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, sum gradients in a fixed order: by default threads add those of an indexed tensor in any order.

    On a GPU some operations have no deterministic variant; a resumed run is equal up to rounding there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
