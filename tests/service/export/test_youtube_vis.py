"""YouTube-VIS results, read back by pycocotools and the published rules of the benchmark.

The rules (the evaluation page of YouTube-VIS, and its ytvos API): a list of results, each of one object, with
`video_id`, `category_id`, `score`, and `segmentations`, one for each frame in order: a COCO RLE of the frame's size or
null.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco

from service.export import youtube_vis
from tests.service.export.documents import a_document, a_level, videos

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode


def read(text: str, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Masks (T, H, W) of each result."""
    masks = []
    for result in json.loads(text):
        assert set(result) == {"video_id", "category_id", "score", "segmentations"}
        assert type(result["video_id"]) is int
        assert type(result["category_id"]) is int
        assert 0 <= result["score"] <= 1
        assert len(result["segmentations"]) == shape[0]
        mask = np.zeros(shape, bool)
        for frame, segmentation in enumerate(result["segmentations"]):
            if segmentation is not None:
                assert set(segmentation) == {"size", "counts"}
                assert segmentation["size"] == list(shape[1:])
                assert coco.area(segmentation) > 0
                mask[frame] = coco.decode(segmentation)
        masks.append(mask)
    return masks


@given(videos)
@settings(deadline=None)
def test_results_contain_the_masks_of_all_objects(label_maps):
    masks = read(youtube_vis.render(a_document(label_maps), a_level(label_maps)), label_maps.shape)
    labels = np.unique(label_maps[label_maps > 0])
    assert len(masks) == len(labels)
    for label, mask in zip(labels, masks, strict=True):
        np.testing.assert_array_equal(mask, label_maps == label)


def test_frames_without_the_object_are_null_and_scores_are_those_of_the_objects():
    label_maps = np.zeros((4, 6, 6), np.uint16)
    label_maps[[0, 2], 1:3, 1:3] = 1
    label_maps[3, 4:, 4:] = 2
    results = json.loads(youtube_vis.render(a_document(label_maps), a_level(label_maps)))
    assert [[mask is None for mask in result["segmentations"]] for result in results] == [
        [False, True, False, True],
        [True, True, True, False],
    ]
    assert [result["score"] for result in results] == [0.9, 0.8]
    level = a_level(label_maps)
    level.objects[1].object_score = 0.75
    results = json.loads(youtube_vis.render(a_document(label_maps), level))
    assert [result["score"] for result in results] == [0.9, 0.75]
