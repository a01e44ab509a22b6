"""The names of what is measured and how: metrics, protocols, and which frames count."""

from enum import StrEnum


class Metric(StrEnum):
    j = "J"
    """Region similarity: intersection over union."""
    f = "F"
    """Boundary measure."""
    j_and_f = "J&F"
    """The mean of J and F."""
    fg_ari = "FG-ARI"
    """Adjusted Rand index over foreground pixels."""
    miou = "mIoU"
    """Mean intersection over union of objects with their proposals in the best matching."""


class Protocol(StrEnum):
    """How proposals meet objects."""

    per_sequence = "per-sequence"
    """DAVIS-17 unsupervised, official: the 20 largest proposals, one matching for the whole sequence."""
    per_frame = "per-frame"
    """As published with the method: up to 300 proposals, a matching of its own for each frame."""
    foreground = "foreground"
    """One object: any id above 0, in both."""


class Frames(StrEnum):
    """Which annotated frames count."""

    all = "all"
    """All: DAVIS-17 unsupervised, and single-object figures as published."""
    inner = "inner"
    """Without the first and the last: the benchmark of DAVIS-16, and semi-supervised DAVIS-17."""
