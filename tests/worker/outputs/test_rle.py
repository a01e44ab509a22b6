"""Run lengths equal those of pycocotools byte for byte, and restore the label map."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco

from uvos.contract import RleDocument
from worker.outputs.rle import RleWriter, Runs, RunsSpool

label_maps = st.integers(1, 5).flatmap(
    lambda labels: npst.arrays(
        np.uint16, npst.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, labels)
    )
)


def pycocotools_counts(mask) -> str:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()


def scene(height: int, width: int, objects: int, seed: int = 0) -> np.ndarray:
    """Overlapping discs of many sizes."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint16)
    y, x = np.mgrid[:height, :width]
    for label in range(1, objects + 1):
        centre, radius = rng.random(2) * (height, width), rng.uniform(1, 1 + height / 4)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = label
    return labels


def assert_equal_to_pycocotools(labels):
    counts = Runs.of(labels).counts()
    assert sorted(counts) == sorted(set(labels.ravel().tolist()) - {0})
    for label, text in counts.items():
        assert text == pycocotools_counts(labels == label)


@given(label_maps)
@settings(max_examples=300, deadline=None)
def test_counts_equal_those_of_pycocotools(labels):
    assert_equal_to_pycocotools(labels)


@pytest.mark.parametrize("size", [(480, 854), (1080, 1920), (1, 1), (1, 70_000), (70_000, 1)])
def test_counts_equal_those_of_pycocotools_at_video_sizes(size):
    assert_equal_to_pycocotools(scene(*size, objects=12))
    assert_equal_to_pycocotools(np.full(size, 3, np.uint16))  # one object in the whole frame: no zeros after it


def test_counts_hold_differences_of_both_signs_over_several_characters():
    columns = np.zeros((3000, 12), np.uint16)
    for column, length in enumerate([1, 2999, 1, 15, 16, 17, 31, 32, 511, 512, 513, 2000]):
        columns[:length, column] = 1
    assert_equal_to_pycocotools(columns)


@given(label_maps)
@settings(deadline=None)
def test_runs_restore_the_label_map(labels):
    runs = Runs.of(labels)
    np.testing.assert_array_equal(runs.label_map(), labels)
    np.testing.assert_array_equal(runs.areas(6), np.bincount(labels.ravel(), minlength=6))


@given(label_maps, npst.arrays(np.uint16, 6, elements=st.integers(0, 3)))
@settings(deadline=None)
def test_renumbered_runs_equal_the_runs_of_the_renumbered_map(labels, new_label):
    renumbered = Runs.of(labels).renumbered(new_label)
    expected = Runs.of(new_label[labels])
    np.testing.assert_array_equal(renumbered.labels, expected.labels)
    np.testing.assert_array_equal(renumbered.starts, expected.starts)


@given(st.lists(label_maps, min_size=1, max_size=5))
@settings(deadline=None)
def test_a_spool_returns_the_runs_of_each_frame(tmp_path_factory, frames):
    folder = tmp_path_factory.mktemp("runs")
    with RunsSpool(folder, frames[0].shape) as spool:
        for labels in frames:
            spool.append(replace(Runs.of(labels), size=frames[0].shape))
        for index in reversed(range(len(frames))):
            expected = Runs.of(frames[index])
            runs = spool.read(index)
            np.testing.assert_array_equal(runs.labels, expected.labels)
            np.testing.assert_array_equal(runs.starts, expected.starts)
    assert list(folder.iterdir()) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode, NumPy 2
def test_rle_json_conforms_to_the_contract(tmp_path):
    frames = [scene(40, 60, 5, seed) for seed in range(3)] + [np.zeros((40, 60), np.uint16)]
    times = [0.0, 0.04, 0.5, 1 / 3]
    with RleWriter(tmp_path / "rle.json", (40, 60)) as writer:
        for time, labels in zip(times, frames, strict=True):
            writer.write(time, Runs.of(labels).counts())

    document = RleDocument.model_validate_json((tmp_path / "rle.json").read_bytes())
    assert document.size == (40, 60)
    assert [(frame.index, frame.time) for frame in document.frames] == list(enumerate(times))
    for frame, labels in zip(document.frames, frames, strict=True):
        restored = np.zeros_like(labels)
        for item in frame.objects:
            restored[coco.decode({"size": list(item.rle.size), "counts": item.rle.counts}) > 0] = item.id
        np.testing.assert_array_equal(restored, labels)


def test_rle_json_of_no_frames_is_valid(tmp_path):
    with RleWriter(tmp_path / "rle.json", (4, 6)):
        pass
    assert RleDocument.model_validate_json((tmp_path / "rle.json").read_bytes()).frames == []


def test_rle_json_of_a_failed_run_is_invalid(tmp_path):
    def fail() -> None:
        with RleWriter(tmp_path / "rle.json", (4, 6)) as writer:
            writer.write(0.0, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(ValueError, match="EOF"):
        RleDocument.model_validate_json((tmp_path / "rle.json").read_bytes())
