"""What a CPU does to rows in one go, where torch's operations would each go over them: compiled by Numba.

On a GPU for which there are no kernels, and where Numba cannot compile, torch's operations do the same, only slower.
"""

import importlib
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@cache
def _compiled() -> Any:
    """The module of compiled loops; None where there can be none."""
    try:
        return importlib.import_module("worker.numerics.numba_ops")  # compiles: only where it is used
    except Exception as error:  # no Numba, no place for its files, or whatever a compiler may say
        logger.warning("torch's own operations take the place of compiled loops and are slower: %s", error)
        return None


def prepare() -> None:
    """Compile now what would be compiled at its first use."""
    _compiled()


def _for(rows: Tensor) -> Any:
    return _compiled() if rows.device.type == "cpu" else None


def add_softmax(scores: Tensor, mean: Tensor, share: float, *, shift: bool, fresh: bool) -> None:
    """mean += share * softmax(scores).

    Args:
        scores: (n, m) float32, contiguous; overwritten.
        mean: Likewise.
        share: A factor.
        shift: False where exp(scores) and its sum are known to be finite, and each is above zero.
        fresh: Whether `mean` holds nothing yet.
    """
    if loops := _for(scores):
        loops.add_softmax(scores.numpy(), mean.numpy(), share, shift, fresh)
        return
    weights = torch.softmax(scores, -1)
    if fresh:
        torch.mul(weights, share, out=mean)
    else:
        mean.add_(weights, alpha=share)


def logs_and_own(p: Tensor, log: Tensor, own: Tensor, *, epsilon: float) -> None:
    """log(p·m), clamped, into `log`, and sum p·log(p·m) into `own`.

    Args:
        p: (n, m) float32, contiguous.
        log: Likewise.
        own: (n,) float32.
        epsilon: The least p that a logarithm is taken of.
    """
    if loops := _for(p):
        loops.logs_and_own(p.numpy(), log.numpy(), own.numpy(), epsilon)
        return
    torch.clamp(p, min=epsilon, out=log).mul_(p.shape[1]).log_()
    torch.sum(p * log, -1, out=own)


def factors(p: Tensor, rounded: Tensor, log: Tensor, own: Tensor, spread: Tensor, *, epsilon: float) -> None:
    """p and log(p·m) in bfloat16, and sum p·log and sqrt(sum p·log²) of them as they are rounded.

    Args:
        p: (n, m) float32, contiguous.
        rounded: (n, m) bfloat16, contiguous.
        log: Likewise.
        own: (n,) float32.
        spread: Likewise.
        epsilon: The least p that a logarithm is taken of.
    """
    if loops := _for(p):
        bits = rounded.view(torch.int16).numpy(), log.view(torch.int16).numpy()
        loops.factors(p.numpy(), *bits, own.numpy(), spread.numpy(), epsilon)
        return
    rounded.copy_(p)
    log.copy_(p.clamp(min=epsilon).mul_(p.shape[1]).log_())
    terms = rounded.float() * log
    torch.sum(terms, -1, out=own)
    torch.sum(terms.mul_(log), -1, out=spread).sqrt_()


def pair_divergences(p: Tensor, row: Tensor, q: Tensor, other: Tensor, out: Tensor, *, epsilon: float) -> None:
    """J of the pairs (p[row], q[other]) into `out`.

    Args:
        p: (n, m) float32, contiguous.
        row: (pairs,) int64.
        q: (l, m) float32, contiguous.
        other: (pairs,) int64.
        out: (pairs,) float32.
        epsilon: The least p that a logarithm is taken of.
    """
    if loops := _for(p):
        loops.pair_divergences(p.numpy(), row.numpy(), q.numpy(), other.numpy(), out.numpy(), epsilon)
        return
    p, q = p.index_select(0, row), q.index_select(0, other)  # much quicker than p[row]
    difference = p - q
    torch.sum(p.clamp_(min=epsilon).div_(q.clamp_(min=epsilon)).log_().mul_(difference), -1, out=out)
