import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from uvos.errors import InvalidParameters
from worker.evaluation.datasets import DatasetName, open_dataset
from worker.evaluation.datasets.davis import DAVIS16_VAL
from worker.evaluation.datasets.youtube_vis import mask_of
from worker.evaluation.labels import VOID

DATA = Path(__file__).parents[4] / "shared" / "data"
SIZE = (12, 16)


def save(path, values, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette:
        image.putpalette([n % 256 for n in range(768)])
    image.save(path)


def frame():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3))


def labels(t=0, ids=(1, 2)):
    """Two rectangles that move right."""
    ground = np.zeros(SIZE, dtype=np.uint8)
    ground[1:5, 1 + t : 5 + t], ground[7:11, 6 + t : 9 + t] = ids
    return ground


def test_davis16_reads_its_published_layout(tmp_path):
    for t in range(3):
        for name in ("dog", "goat"):
            save(tmp_path / f"JPEGImages/480p/{name}/{t:05d}.jpg", frame())
            save(tmp_path / f"Annotations/480p/{name}/{t:05d}.png", labels(t, (255, 255)))
    lines = [f"/JPEGImages/480p/goat/{t:05d}.jpg /Annotations/480p/goat/{t:05d}.png" for t in range(3)]
    (tmp_path / "ImageSets/480p").mkdir(parents=True)
    (tmp_path / "ImageSets/480p/val.txt").write_text("\n".join(lines))
    (tmp_path / "ImageSets/dev.txt").write_text("dog\ngoat\n")
    assert [s.name for s in open_dataset(DatasetName.davis16, tmp_path)] == ["goat"]
    dog, goat = open_dataset(DatasetName.davis16, tmp_path, split="dev")
    assert [goat.name, dog.name] == ["goat", "dog"]
    assert dog.annotated == (0, 1, 2)
    assert dog.frame_name(2) == "00002"
    np.testing.assert_array_equal(dog.truth(), [labels(t, (1, 1)) for t in range(3)])


def test_davis16_knows_its_validation_split_without_a_list(tmp_path):
    for name in DAVIS16_VAL:
        save(tmp_path / f"JPEGImages/480p/{name}/00000.jpg", frame())
        save(tmp_path / f"Annotations/480p/{name}/00000.png", labels(0, (255, 255)))
    assert len(open_dataset(DatasetName.davis16, tmp_path)) == 20
    with pytest.raises(InvalidParameters, match="no list of the split 'train'"):
        open_dataset(DatasetName.davis16, tmp_path, split="train")


def test_davis17_keeps_ids_and_takes_255_as_void(tmp_path):
    truth = labels()
    truth[0] = 255
    save(tmp_path / "JPEGImages/480p/judo/00000.jpg", frame())
    save(tmp_path / "Annotations_unsupervised/480p/judo/00000.png", truth, palette=True)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("judo\n")
    (judo,) = open_dataset(DatasetName.davis17, tmp_path)
    assert set(np.unique(judo.truth())) == {VOID, 0, 1, 2}


def test_davis17_needs_the_annotations_of_the_unsupervised_task(tmp_path):
    save(tmp_path / "Annotations/480p/judo/00000.png", labels(), palette=True)
    with pytest.raises(InvalidParameters, match="packed for the unsupervised task"):
        open_dataset(DatasetName.davis17, tmp_path)


def test_segtrack_merges_the_objects_of_a_sequence(tmp_path):
    for t in range(2):
        save(tmp_path / f"JPEGImages/bmx/bmx_{t:05d}.png", frame())
        save(tmp_path / f"GroundTruth/bmx/1/bmx_{t:05d}.png", np.stack([labels(t, (255, 0))] * 3, axis=-1))
        save(tmp_path / f"GroundTruth/bmx/2/bmx_{t:05d}.png", labels(t, (0, 255)))
        save(tmp_path / f"JPEGImages/frog/{t:05d}.bmp", frame())
        save(tmp_path / f"GroundTruth/frog/{t:05d}.png", labels(t, (255, 40)))
    bmx, frog = open_dataset(DatasetName.segtrack, tmp_path)
    np.testing.assert_array_equal(bmx.truth(), [labels(t, (1, 1)) for t in range(2)])
    np.testing.assert_array_equal(frog.truth(), [labels(t, (1, 0)) for t in range(2)])


def test_fbms_reads_sparse_colour_and_grey_ground_truth(tmp_path):
    for t in range(1, 5):
        save(tmp_path / f"Testset/camel01/camel01_{t:04d}.jpg", frame())
        save(tmp_path / f"Testset/cars1/cars1_{t:02d}.jpg", frame())
    white = np.where(labels()[..., None] == 0, 255, np.array([200, 30, 30]) * labels()[..., None] // 2)
    save(tmp_path / "Testset/camel01/GroundTruth/camel01_0003_gt.ppm", white)
    save(tmp_path / "Testset/camel01/GroundTruth/camel01_0003_PROB_gt.ppm", np.zeros_like(white))
    save(tmp_path / "Testset/camel01/GroundTruth/camel01_0003_gt.pgm", np.zeros(SIZE))
    save(tmp_path / "Testset/cars1/GroundTruth/cars1_01.pgm", labels(0, (128, 255)))
    save(tmp_path / "Testset/cars1/GroundTruth/cars1_04.pgm", labels(3, (128, 255)))
    camel, cars = open_dataset(DatasetName.fbms, tmp_path)
    assert camel.annotated == (2,)
    assert cars.annotated == (0, 3)
    np.testing.assert_array_equal(camel.truth(), [labels(0, (1, 1))])
    np.testing.assert_array_equal(cars.truth(), [labels(0, (1, 1)), labels(3, (1, 1))])


def test_fbms_knows_the_sequences_whose_background_is_grey(tmp_path):
    save(tmp_path / "Testset/marple2/marple2_001.jpg", frame())
    save(tmp_path / "Testset/marple2/GroundTruth/marple2_001.pgm", labels(0, (200, 200)) + 60 * (labels() == 0))
    (marple,) = open_dataset(DatasetName.fbms, tmp_path)
    np.testing.assert_array_equal(marple.truth(), [labels(0, (1, 1))])


def test_fbms_reads_the_converted_layout(tmp_path):
    for name in ("tennis", "bear01"):
        for t in range(1, 4):
            save(tmp_path / f"JPEGImages/{name}/{t:05d}.jpg", frame())
        save(tmp_path / f"Annotations/{name}/00002.png", labels(0, (255, 255)))
    (tennis,) = open_dataset(DatasetName.fbms, tmp_path)
    (bear,) = open_dataset(DatasetName.fbms, tmp_path, split="train")
    assert (tennis.name, bear.name) == ("tennis", "bear01")
    assert tennis.annotated == (1,)


def rle(mask, *, compressed):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, len(flat)]).tolist()}


@given(arrays.arrays(bool, (11, 37)))
def test_run_lengths_give_the_mask_that_cocoapi_encoded(mask):
    for compressed in (True, False):
        np.testing.assert_array_equal(mask_of(rle(mask, compressed=compressed)["counts"], mask.shape), mask)


def write_youtube_vis(root, videos):
    document = {"videos": [], "annotations": []}
    for place in range(videos):
        names = [f"v{place:04d}/{t:05d}.jpg" for t in range(2)]
        for name in names:
            save(root / "train/JPEGImages" / name, frame())
        document["videos"].append({"id": place + 1, "file_names": names, "height": SIZE[0], "width": SIZE[1]})
        for object_id in (2, 1):
            masks = [rle(labels(t) == object_id, compressed=object_id == 1) for t in range(2)]
            segmentations = [masks[0], None if object_id == 2 else masks[1]]
            document["annotations"].append(
                {"id": object_id + 10 * place, "video_id": place + 1, "segmentations": segmentations}
            )
    (root / "train.json").write_text(json.dumps(document))


def test_youtube_vis_reads_its_annotations(tmp_path):
    write_youtube_vis(tmp_path, 2)
    first, second = open_dataset(DatasetName.youtube_vis, tmp_path)
    assert (first.name, second.name) == ("v0000", "v0001")
    np.testing.assert_array_equal(first.truth(), [labels(0), labels(1, (1, 0))])


def test_youtube_vis_chooses_the_same_videos_every_time_or_takes_a_list(tmp_path):
    write_youtube_vis(tmp_path, 6)
    chosen = [s.name for s in open_dataset(DatasetName.youtube_vis, tmp_path, split="3")]
    assert len(chosen) == 3
    assert chosen == sorted(chosen)
    assert chosen == [s.name for s in open_dataset(DatasetName.youtube_vis, tmp_path, split="3")]
    own = [name for name in ("v0000", "v0003", "v0005") if name not in chosen[1:]]
    (tmp_path / "list.txt").write_text("\n".join(own))
    listed = open_dataset(DatasetName.youtube_vis, tmp_path, sequences=[str(tmp_path / "list.txt")])
    assert [s.name for s in listed] == own


@pytest.mark.parametrize("form", ["jpg and mask", "kubric", "a mask an id"])
def test_movi_reads_what_common_exports_write(tmp_path, form):
    place = tmp_path / "validation" / "00000000"
    for t in range(2):
        if form == "jpg and mask":
            save(place / f"{t:06d}.jpg", frame())
            save(place / f"{t:06d}_mask.png", labels(t))
        elif form == "kubric":
            save(place / f"rgba_{t:05d}.png", np.concatenate([frame(), np.full((*SIZE, 1), 255)], axis=-1))
            save(place / f"segmentation_{t:05d}.png", labels(t), palette=True)
            save(place / f"depth_{t:05d}.png", labels(t))
        else:
            save(place / f"{t:08d}_image.png", frame())
            for object_id in range(3):
                save(place / f"{t:08d}_mask_{object_id:02d}.png", 255 * (labels(t) == object_id))
    (video,) = open_dataset(DatasetName.movi, tmp_path)
    assert len(video.source) == 2
    np.testing.assert_array_equal(video.truth(), [labels(t) for t in range(2)])


def test_clips_are_videos_or_folders_with_masks_beside_them(tmp_path):
    (tmp_path / "walk_orig.mp4").write_bytes(b"a video")
    for t in (0, 2):
        save(tmp_path / f"walk/{t:05d}.png", labels(t), palette=True)
        save(tmp_path / f"run/frames/{t:03d}.jpg", frame())
        save(tmp_path / f"run/masks/{t:03d}.png", labels(t))
    run, walk = open_dataset(DatasetName.clips, tmp_path)
    assert walk.source == tmp_path / "walk_orig.mp4"
    assert walk.annotated == (0, 2)
    assert (walk.frame_name(2), run.frame_name(1)) == ("00002", "002")
    assert run.annotated == (0, 1)
    np.testing.assert_array_equal(walk.truth(), run.truth())


def test_a_sequence_can_be_limited_to_its_first_frames(tmp_path):
    for t in range(4):
        save(tmp_path / f"run/frames/{t:03d}.jpg", frame())
        save(tmp_path / f"run/masks/{t:03d}.png", labels(t))
    (run,) = open_dataset(DatasetName.clips, tmp_path)
    assert run.limited(2).annotated == (0, 1)
    assert len(run.limited(2).source) == 2
    assert len(run.limited(9).source) == 4


@pytest.mark.parametrize("name", DatasetName)
def test_an_empty_folder_is_refused_in_a_sentence(tmp_path, name):
    with pytest.raises(InvalidParameters):
        open_dataset(name, tmp_path)


def test_an_unknown_sequence_is_refused_by_name(tmp_path):
    save(tmp_path / "run/frames/000.jpg", frame())
    save(tmp_path / "run/masks/000.png", labels())
    with pytest.raises(InvalidParameters, match="no sequence jump"):
        open_dataset(DatasetName.clips, tmp_path, sequences=["run", "jump"])


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_the_development_sequences_are_read():
    sequences = open_dataset(DatasetName.davis16, DATA / "davis16-dev", split="dev")
    assert len(sequences) == 8
    assert {len(s.annotated) for s in sequences} == {35, 40}
    truth = sequences[0].limited(2).truth()
    assert truth.shape == (2, 480, 854)
    assert set(np.unique(truth)) == {0, 1}
    (girls,) = open_dataset(DatasetName.clips, DATA / "davis17-multi")
    assert len(girls.annotated) == 80


def test_named_sequences_need_no_other_sequence_of_the_split(tmp_path):
    """Neither the other folders nor the list of the split exist."""
    for t in range(2):
        for place, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            file = tmp_path / place / "480p" / "camel" / f"{t:05d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(file)
    (camel,) = open_dataset(DatasetName.davis16, tmp_path, sequences=["camel"])
    assert (camel.name, len(camel.annotated)) == ("camel", 2)
    with pytest.raises(InvalidParameters, match="there is no folder"):
        open_dataset(DatasetName.davis16, tmp_path)
    with pytest.raises(InvalidParameters, match="no sequence dog"):
        open_dataset(DatasetName.davis16, tmp_path, sequences=["camel", "dog"])
