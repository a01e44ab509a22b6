"""The paper's figures for its own method, as data: Ding et al., "Betrayed by Attention" (arXiv:2311.17893), appendix.

All are with the trained spatio-temporal block at 320×480; DINO ViT-S/8 where Table 2 does not say otherwise.
"""

from dataclasses import dataclass

from worker.evaluation.datasets import DatasetName
from worker.evaluation.measures import Measure

MULTI_TAU, SINGLE_TAU = 1.0, 1.6


@dataclass(frozen=True)
class Figure:
    """One figure of a table.

    Attributes:
        table: 1 (key frames), 2 (backbones) or 3 (single object).
        value: In percent.
        model: A name of the registry.
        measure: What comes closest to it here. Of FG-ARI and mIoU the paper does not say whether over videos or frames.
    """

    table: int
    dataset: DatasetName
    measure: Measure
    value: float
    model: str
    key_ratio: float
    tau: float


def _multi(table: int, model: str, key_ratio: float, figures: tuple[float, float, float, float]) -> list[Figure]:
    """A row over YTVIS-19 FG-ARI and mIoU, DAVIS-17 J&F and FG-ARI."""
    columns = (
        (DatasetName.youtube_vis, Measure.fg_ari),
        (DatasetName.youtube_vis, Measure.miou),
        (DatasetName.davis17, Measure.j_and_f_per_frame),
        (DatasetName.davis17, Measure.fg_ari),
    )
    return [
        Figure(table, dataset, measure, value, model, key_ratio, MULTI_TAU)
        for (dataset, measure), value in zip(columns, figures, strict=True)
    ]


TABLE_1 = (
    *_multi(1, "dino-vits8", 0.1, (43.5, 49.7, 42.8, 40.0)),
    *_multi(1, "dino-vits8", 0.2, (44.1, 50.0, 43.4, 40.2)),
    *_multi(1, "dino-vits8", 0.5, (44.3, 50.2, 43.8, 40.1)),
    *_multi(1, "dino-vits8", 1.0, (44.3, 50.1, 43.9, 40.1)),
)
TABLE_2 = (
    *_multi(2, "dino-vits16", 1.0, (42.5, 47.2, 41.7, 38.3)),
    *_multi(2, "dino-vits8", 1.0, (44.3, 50.1, 43.9, 40.1)),
    *_multi(2, "dino-vitb8", 1.0, (43.5, 50.2, 42.8, 40.7)),
    *_multi(2, "dinov2-vits14", 1.0, (44.1, 49.7, 43.1, 40.5)),
    *_multi(2, "dinov2-vitb14", 1.0, (44.5, 50.1, 43.7, 41.6)),
)
TABLE_3 = tuple(
    Figure(3, dataset, Measure.j_per_frame, value, "dino-vits8", 1.0, SINGLE_TAU)
    for dataset, value in ((DatasetName.davis16, 75.4), (DatasetName.segtrack, 74.8), (DatasetName.fbms, 73.3))
)
FIGURES = (*TABLE_1, *TABLE_2, *TABLE_3)
SPEED = {0.1: 2.3, 0.2: 2.0, 0.5: 1.4, 1.0: 1.0}
"""Table 1: how many times as fast as with all frames as keys, by key ratio."""

_SAME = {Measure.fg_ari_per_frame: Measure.fg_ari, Measure.miou_per_frame: Measure.miou}


def paper_figure(dataset: DatasetName, measure: Measure, *, model: str, key_ratio: float) -> Figure | None:
    """The paper's figure to set beside one measured here, or None.

    The row of the same model and key ratio; of a model that the paper does not have, that of S/8 with all frames
    as keys.
    """
    rows = [f for f in FIGURES if f.dataset is dataset and f.measure is _SAME.get(measure, measure)]
    exact = [f for f in rows if f.model == model and abs(f.key_ratio - key_ratio) < 1e-9]
    reference = [f for f in rows if f.model == "dino-vits8" and f.key_ratio == 1.0]
    same_model = [f for f in rows if f.model == model]
    found = exact or same_model[-1:] or reference
    return found[0] if found else None
