"""Edits of objects, compared with the same edits of label maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pydantic import ValidationError

from tests.service.export.documents import a_document, a_level, videos
from uvos import rle
from uvos.contract import RleMask
from uvos.edits import (
    Delete,
    EditState,
    Hide,
    Merge,
    ObjectPatch,
    Only,
    Operation,
    Rename,
    Reset,
    Show,
    applied,
    edited_objects,
    operated,
)
from uvos.errors import InvalidEdit


def a_video() -> np.ndarray:
    """Objects 1, 2 and 3; object 2 is absent from the last frame."""
    label_maps = np.zeros((3, 8, 10), np.uint16)
    label_maps[:, :4, :5] = 1
    label_maps[:2, :4, 5:] = 2
    label_maps[:, 5:7, 3:6] = 3
    return label_maps


def after(label_maps: np.ndarray, *operations: Operation) -> tuple[EditState, np.ndarray]:
    """The state after operations, and the label maps that it shows."""
    state = operated(EditState(), operations, a_level(label_maps))
    document, _ = applied(state, a_document(label_maps), a_level(label_maps))
    return state, np.stack([rle.label_map(frame, document.size) for frame in document.frames])


def test_merged_objects_are_one_with_the_id_and_colour_of_the_first():
    label_maps = a_video()
    state, shown = after(label_maps, Merge(ids=[2, 1]))
    np.testing.assert_array_equal(shown, np.where(label_maps == 1, 2, label_maps))
    merged, other = edited_objects(state, a_document(label_maps), a_level(label_maps))
    assert (merged.id, merged.members, other.id) == (2, [1, 2], 3)
    assert (merged.frames, merged.first_frame, merged.last_frame) == (3, 0, 2)
    assert merged.area == pytest.approx((shown == 2).mean())


def test_merging_twice_joins_all_members():
    state, shown = after(a_video(), Merge(ids=[1, 2]), Merge(ids=[1, 3], into=3))
    np.testing.assert_array_equal(shown > 0, shown == 3)
    assert state.members(3) == {1, 2, 3}


def test_hidden_and_deleted_objects_are_not_shown():
    label_maps = a_video()
    state, shown = after(label_maps, Hide(ids=[1]), Delete(ids=[2]))
    np.testing.assert_array_equal(shown, np.where(label_maps == 3, 3, 0))
    listed = edited_objects(state, a_document(label_maps), a_level(label_maps))
    assert [(item.id, item.hidden) for item in listed] == [(1, True), (3, False)]
    np.testing.assert_array_equal(after(label_maps, Hide(ids=[1, 2]), Show(ids=[1, 2]))[1], label_maps)


def test_only_hides_all_others_and_shows_these():
    label_maps = a_video()
    _, shown = after(label_maps, Hide(ids=[2]), Only(ids=[2]))
    np.testing.assert_array_equal(shown, np.where(label_maps == 2, 2, 0))


def test_reset_returns_to_the_original():
    state, _ = after(a_video(), Merge(ids=[1, 2]), Rename(id=1, name="koi"), Hide(ids=[3]), Reset())
    assert state == EditState()


def test_names_are_in_the_document_until_they_are_removed():
    label_maps = a_video()
    state, _ = after(label_maps, Rename(id=1, name="  koi "), Rename(id=2, name="leaf"), Rename(id=2, name=None))
    assert applied(state, a_document(label_maps), a_level(label_maps))[0].names == {1: "koi"}


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ([Hide(ids=[9])], "there is no object 9: the objects of this level are 1, 2, 3"),
        ([Merge(ids=[1, 2]), Show(ids=[2])], "object 2 was merged into object 1: the objects of this level are 1, 3"),
        ([Delete(ids=[3]), Rename(id=3, name="x")], "object 3 was deleted, and undo or reset restores it"),
        ([Merge(ids=[1, 1])], "merge needs at least 2 different objects, got 1"),
        ([Merge(ids=[1, 2], into=3)], "into must be one of the merged objects 1, 2, got 3"),
    ],
)
def test_an_edit_of_an_object_that_does_not_exist_is_explained(operations, message):
    with pytest.raises(InvalidEdit, match=message):
        after(a_video(), *operations)


@pytest.mark.parametrize(
    "body",
    [
        {"operations": []},
        {"operations": [{"op": "explode", "ids": [1]}]},
        {"operations": [{"op": "undo"}, {"op": "hide", "ids": [1]}]},
        {"operations": [{"op": "rename", "id": 1, "name": "a\nb"}]},
        {"operations": [{"op": "hide", "ids": []}]},
    ],
)
def test_an_invalid_patch_is_rejected(body):
    with pytest.raises(ValidationError):
        ObjectPatch.model_validate(body)


@given(videos, st.permutations([1, 2, 3]))
@settings(deadline=None)
def test_a_merge_equals_the_union_of_pycocotools(label_maps, order):
    masks = [
        RleMask(size=label_maps.shape[1:], counts=item.rle.counts)
        for label in order
        for item in a_document(label_maps[:1]).frames[0].objects
        if item.id == label
    ]
    if masks:
        expected = coco.merge([mask.model_dump() for mask in masks])["counts"].decode()
        assert rle.union(masks).counts == expected
        assert rle.area(rle.union(masks)) == (label_maps[0] > 0).sum()
