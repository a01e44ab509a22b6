"""The loss of `tiny`: a token's attention over the keys of two frames, uniform over its own group.

It trains what the method compares. Two tokens with the same uniform attention are at distance 0, two of different
groups far apart, whatever tau; nothing else of the features matters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.training.pseudo_labels import UNKNOWN
from worker.training.samples import GROUPS

NEVER = -1e4  # logit of a key that nobody knows the group of; exp of it is 0 in float32 and bfloat16
LARGE = 0.25  # groups weigh as their size to this power: by size ground is all, by number specks are


def group_shares(labels: Tensor, patch: int) -> Tensor:
    """How much of each patch is of each group.

    Args:
        labels: Group of each pixel, 255 unknown; shape (B, V, H, W), V views of one scene.
        patch: Pixels a side.

    Returns:
        Shape (B, V*N, GROUPS), float32; rows sum to the known share of the patch.
    """
    batch, views, height, width = labels.shape
    known = torch.where(labels == UNKNOWN, GROUPS, labels).long()
    one_hot = F.one_hot(known, GROUPS + 1)[..., :GROUPS].float()
    cells = one_hot.reshape(batch, views, height // patch, patch, width // patch, patch, GROUPS).mean((3, 5))
    return cells.reshape(batch, -1, GROUPS)


def grouping_loss(queries: Tensor, keys: Tensor, asking: Tensor, shares: Tensor, ground_is_whole: Tensor) -> Tensor:
    """Cross-entropy of attention to the uniform distribution over the token's group.

    For token i with share F[i, g] of group g, the target over key tokens j is sum_g F[i, g] F[j, g] / sum_j F[j, g]:
    uniform over its group, patches on an edge in proportion. Where the ground holds things that nobody labelled,
    its tokens are only asked to attend to ground, not to all of it alike. Each group weighs as the fourth root of
    its size.

    Args:
        queries: Of all tokens or some, shape (B, n, heads, d).
        keys: Of the tokens of all views, shape (B, V*N, heads, d).
        asking: Shares of the queries' tokens, shape (B, n, GROUPS).
        shares: Of all, as `group_shares` gives them, shape (B, V*N, GROUPS); group 0 is the ground.
        ground_is_whole: bool, shape (B,).

    Returns:
        The mean over scenes; 0 is reached by no group of more than one token.
    """
    depth = queries.shape[-1]
    logits = torch.einsum("bihd,bjhd->bhij", queries, keys).float() / depth**0.5
    logits = logits.masked_fill((shares.sum(-1) < 0.5)[:, None, None], NEVER)
    attention = torch.softmax(logits, -1).mean(1).clamp_min(1e-8)  # (B, n, V*N), as the method takes it
    sizes = shares.sum(1)  # (B, GROUPS)
    uniform = shares / sizes.clamp_min(1e-6)[:, None]
    each = -attention.log() @ uniform  # (B, n, GROUPS): cross-entropy of token i to each group
    inside = -(attention @ shares[..., :1]).clamp_min(1e-8).log()  # only to the ground as a whole
    ground = torch.where(ground_is_whole[:, None, None], each[..., :1], inside)
    each = torch.cat([ground, each[..., 1:]], -1)
    weight = torch.where(sizes > 1, sizes.clamp_min(1e-6) ** (LARGE - 1), 0)  # (B, GROUPS) for a whole token
    weights = asking * weight[:, None]
    return ((weights * each).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-6)).mean()
