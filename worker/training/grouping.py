"""The grouping loss of `tiny`: the target attention of a token is uniform over the tokens of its group.

The loss trains the attention maps that the method compares: two tokens with the same uniform attention have a
symmetric KL divergence of 0, two tokens of different groups a large one, at any tau.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.training.pseudo_labels import UNKNOWN
from worker.training.samples import GROUPS

MASKED_LOGIT = -1e4  # of keys of unknown group; its exponential is 0 in float32 and bfloat16
SIZE_POWER = 0.25  # weight of a group: its size to this power; 1 favours the background, 0 tiny objects


def group_shares(labels: Tensor, patch: int) -> Tensor:
    """Share of each group in each patch.

    Args:
        labels: Group of each pixel, 255 unknown; shape (B, V, H, W), V views of one scene.
        patch: Side of a patch in pixels.

    Returns:
        Shape (B, V*N, GROUPS), float32; rows sum to the known share of the patch.
    """
    batch, views, height, width = labels.shape
    known = torch.where(labels == UNKNOWN, GROUPS, labels).long()
    one_hot = F.one_hot(known, GROUPS + 1)[..., :GROUPS].float()
    cells = one_hot.reshape(batch, views, height // patch, patch, width // patch, patch, GROUPS).mean((3, 5))
    return cells.reshape(batch, -1, GROUPS)


def grouping_loss(
    queries: Tensor, keys: Tensor, query_shares: Tensor, shares: Tensor, is_ground_whole: Tensor
) -> Tensor:
    """Cross-entropy between attention and the uniform distribution over the token's group.

    For token i with share F[i, g] of group g, the target over key tokens j is sum_g F[i, g] F[j, g] / sum_j F[j, g]:
    uniform over its group, patches on an edge in proportion. Where the background holds unlabelled objects, the
    loss of its tokens is minus the log of their total attention to the background, in any distribution. The weight
    of a group is the fourth root of its size.

    Args:
        queries: Queries of all or some tokens, shape (B, n, heads, d).
        keys: Keys of the tokens of all views, shape (B, V*N, heads, d).
        query_shares: Group shares of the query tokens, shape (B, n, GROUPS).
        shares: Group shares of all tokens from `group_shares`, shape (B, V*N, GROUPS); group 0 is the background.
        is_ground_whole: bool, shape (B,).

    Returns:
        The mean over scenes; its minimum is the weighted mean of the groups' log sizes.
    """
    depth = queries.shape[-1]
    logits = torch.einsum("bihd,bjhd->bhij", queries, keys).float() / depth**0.5
    logits = logits.masked_fill((shares.sum(-1) < 0.5)[:, None, None], MASKED_LOGIT)
    attention = torch.softmax(logits, -1).mean(1).clamp_min(1e-8)  # (B, n, V*N), as the method takes it
    sizes = shares.sum(1)  # (B, GROUPS)
    uniform = shares / sizes.clamp_min(1e-6)[:, None]
    losses = -attention.log() @ uniform  # (B, n, GROUPS): cross-entropy of token i and each group
    to_ground = -(attention @ shares[..., :1]).clamp_min(1e-8).log()
    ground = torch.where(is_ground_whole[:, None, None], losses[..., :1], to_ground)
    losses = torch.cat([ground, losses[..., 1:]], -1)
    weight = torch.where(sizes > 1, sizes.clamp_min(1e-6) ** (SIZE_POWER - 1), 0)  # (B, GROUPS) of a whole token
    weights = query_shares * weight[:, None]
    return ((weights * losses).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-6)).mean()
