import json
import math

import numpy as np
import pytest
from PIL import Image

from uvos.errors import UnreadableVideo
from worker.evaluation.datasets import DatasetName, open_dataset
from worker.evaluation.evaluate import Evaluation, evaluate
from worker.evaluation.frames import frames_of
from worker.evaluation.measures import Segmentation

SIZE = (16, 24)
FRAMES = 4


def truth(t, ids=(1, 2)):
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[2:8, 2 + t : 8 + t], labels[10:14, 8 + t : 14 + t] = ids
    return labels


@pytest.fixture
def root(tmp_path):
    """Two labelled clips; the masks of the second have one object."""
    for name, ids in (("pair", (1, 2)), ("solo", (1, 0))):
        for t in range(FRAMES):
            for part, values in (("frames", 60 * truth(t)), ("masks", truth(t, ids))):
                file = tmp_path / "set" / name / part / f"{t:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(file)
    return tmp_path / "set"


class Oracle:
    """Segments as the ground truth does, from the grey levels of the frames; counts what it was asked."""

    def __init__(self, *, fails_on=None, levels=1):
        self.calls = []
        self.fails_on = fails_on
        self.levels = levels

    def __call__(self, source, annotated, on_stage):
        files = sorted(source.iterdir())
        self.calls.append(len(files))
        if len(self.calls) == self.fails_on:
            raise UnreadableVideo("the frames broke off")
        on_stage("features", 0, len(files))
        labels = np.stack([np.asarray(Image.open(files[t])) // 60 for t in annotated]).astype(np.uint16)
        one = np.minimum(labels, 1)
        fine = Segmentation(labels, labels == 1, labels, 2)
        coarse = Segmentation(one, labels > 0, one, 1)
        return [fine, coarse][: self.levels]


class Quiet:
    def __init__(self):
        self.names = []

    def sequence(self, name, done, of):
        self.names.append((name, done, of))

    def stage(self, name, done, of):
        pass


def evaluation(dataset=DatasetName.clips, *, taus=(1.0,), limit_frames=None, **params):
    return Evaluation(dataset, "all", taus, limit_frames, {"name": "oracle"}, {"key_ratio": 0.1, **params})


def run(root, segmenter, work=None, *, what=None, progress=None):
    sequences = open_dataset(DatasetName.clips, root)
    return evaluate(what or evaluation(), sequences, segmenter, work=work, progress=progress or Quiet())


def test_an_oracle_scores_one_everywhere(root):
    progress = Quiet()
    result = run(root, Oracle(), progress=progress)
    assert progress.names == [("pair", 0, 2), ("solo", 1, 2)]
    assert result["sequences"] == 2
    for name in ("J&F", "J", "F", "J&F per-frame", "FG-ARI", "mIoU", "mIoU per-frame"):
        assert result["mean"][name] == pytest.approx(1), name
        assert result["per_sequence"]["pair"][name] == pytest.approx(1)
    assert set(result["per_frame"]["solo"]) == {"00000", "00001", "00002", "00003"}
    json.dumps(result, allow_nan=False)


def test_the_mean_of_j_is_over_objects_and_of_fg_ari_over_sequences(root):
    result = run(root, Oracle(levels=2), what=evaluation(taus=(1.0, 2.0)))
    coarse = result["levels"]["2"]
    assert result["levels"]["1"]["mean"]["J"] == 1
    pair, solo = coarse["per_sequence"]["pair"], coarse["per_sequence"]["solo"]
    assert coarse["mean"]["J"] == pytest.approx((2 * pair["J"] + solo["J"]) / 3)
    assert coarse["mean"]["mIoU"] == pytest.approx((pair["mIoU"] + solo["mIoU"]) / 2)
    assert (pair["FG-ARI"], solo["FG-ARI"], coarse["mean"]["FG-ARI"]) == (0, 1, 0.5)


def test_what_was_done_before_an_interruption_is_not_done_again(root, tmp_path):
    work = tmp_path / "parts"
    with pytest.raises(UnreadableVideo, match="solo: the frames broke off"):
        run(root, Oracle(fails_on=2), work)
    assert [file.name for file in work.rglob("*.json")] == ["pair.json"]
    second = Oracle()
    result = run(root, second, work)
    assert len(second.calls) == 1
    assert result == run(root, Oracle())


def test_other_parameters_take_up_nothing(root, tmp_path):
    work = tmp_path / "parts"
    with pytest.raises(UnreadableVideo):
        run(root, Oracle(fails_on=2), work)
    for other in (evaluation(key_ratio=0.2), evaluation(limit_frames=3), evaluation(taus=(2.0,))):
        assert other.key != evaluation().key
    second = Oracle()
    run(root, second, work, what=evaluation(key_ratio=0.2))
    assert len(second.calls) == 2


def test_a_limit_takes_the_first_frames_and_their_ground_truth(root):
    segmenter = Oracle()
    result = run(root, segmenter, what=evaluation(limit_frames=2))
    assert segmenter.calls == [2, 2]
    assert list(result["per_frame"]["pair"]) == ["00000", "00001"]


def test_frames_that_lie_among_others_are_segmented_alone(tmp_path):
    """MOVi-E has masks beside its frames, and SegTrack-v2 bitmaps that the pipeline does not read."""
    for t in range(3):
        folder = tmp_path / "validation" / "v"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (t, 0, 0)).save(folder / f"{t:06d}.png")
        Image.fromarray(truth(t)).save(folder / f"{t:06d}_mask.png")
        for place in ("JPEGImages", "GroundTruth"):
            (tmp_path / "bitmaps" / place / "frog").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (t, 0, 0)).save(tmp_path / "bitmaps" / place / "frog" / f"{t}.bmp")
    (video,) = open_dataset(DatasetName.movi, tmp_path)
    (frog,) = open_dataset(DatasetName.segtrack, tmp_path / "bitmaps")
    for sequence in (video, frog):
        for limit, expected in ((None, 3), (2, 2)):
            with frames_of(sequence, limit) as source:
                files = sorted(source.iterdir())
                assert [np.asarray(Image.open(file))[0, 0, 0] for file in files] == list(range(expected))
                assert all(file.suffix == ".png" for file in files)


def test_a_measure_that_no_sequence_has_is_none(root):
    for file in (root / "pair" / "masks").iterdir():
        Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(file)
    for file in (root / "solo" / "masks").iterdir():
        Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(file)
    result = run(root, Oracle())
    assert result["mean"]["FG-ARI"] is None
    assert math.isclose(result["mean"]["clusters"], 2)
