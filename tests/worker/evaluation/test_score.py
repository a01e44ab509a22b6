import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from uvos.errors import InvalidParameters
from worker.evaluation import commands
from worker.evaluation.labels import VOID
from worker.evaluation.protocols import Frames, Metric, Protocol
from worker.evaluation.score import annotated_objects, score, score_sequence

DATA = Path(__file__).parents[4] / "shared" / "data" / "metrics"
J_AND_F = [Metric.j, Metric.f, Metric.j_and_f]


def write_sequence(folder, label_maps, *, mode="P"):
    folder.mkdir(parents=True)
    for frame, labels in enumerate(label_maps):
        image = Image.fromarray(labels.astype(np.uint8))
        if mode == "P":
            image.putpalette([n % 256 for n in range(768)])
        image.save(folder / f"{frame:05d}.png")


def two_squares(frames=4):
    """Two squares that move apart, ids 1 and 2."""
    labels = np.zeros((frames, 40, 60), dtype=np.uint8)
    for t, frame in enumerate(labels):
        frame[8:20, 10 - t : 24 - t], frame[22:34, 30 + t : 46 + t] = 1, 2
    return labels


@pytest.fixture
def folders(tmp_path):
    truth = two_squares()
    write_sequence(tmp_path / "truth" / "squares", truth)
    write_sequence(tmp_path / "right" / "squares", np.array([0, 7, 4])[truth])
    swapped = truth.copy()
    swapped[2:][truth[2:] > 0] = 3 - truth[2:][truth[2:] > 0]
    write_sequence(tmp_path / "swapped" / "squares", swapped)
    return tmp_path


def test_the_truth_under_other_names_scores_one_everywhere(folders):
    wanted = list(Metric)
    for protocol in (Protocol.per_sequence, Protocol.per_frame):
        result = score(folders / "right", folders / "truth", wanted, protocol)
        assert result["mean"] == pytest.approx({str(metric): 1 for metric in wanted})
        assert set(result["per_frame"]["squares"]) == {"00000", "00001", "00002", "00003"}
        assert result["per_frame"]["squares"]["00002"] == pytest.approx({str(metric): 1 for metric in wanted})


def test_ids_that_swap_are_told_by_the_official_protocol_and_not_per_frame(folders):
    official = score(folders / "swapped", folders / "truth", J_AND_F, Protocol.per_sequence)
    published = score(folders / "swapped", folders / "truth", J_AND_F, Protocol.per_frame)
    assert official["mean"]["J"] < 0.6
    assert published["mean"]["J"] == 1


def test_foreground_forgets_ids(folders):
    result = score(folders / "swapped", folders / "truth", J_AND_F, Protocol.foreground)
    assert result["mean"] == {"J": 1, "F": 1, "J&F": 1}


def test_foreground_takes_255_as_the_object_and_others_as_void_beside_ids(tmp_path):
    truth = two_squares()
    write_sequence(tmp_path / "binary" / "squares", np.where(truth > 0, 255, 0), mode="L")
    write_sequence(tmp_path / "void" / "squares", np.where(truth == 2, 255, truth))
    write_sequence(tmp_path / "both" / "squares", (truth > 0).astype(np.uint8))
    write_sequence(tmp_path / "one" / "squares", (truth == 1).astype(np.uint8))
    assert score(tmp_path / "both", tmp_path / "binary", J_AND_F, Protocol.foreground)["mean"]["J"] == 1
    assert score(tmp_path / "both", tmp_path / "binary", J_AND_F, Protocol.per_sequence)["mean"]["J"] == 1
    assert score(tmp_path / "both", tmp_path / "void", J_AND_F, Protocol.foreground)["mean"]["J"] == 1
    for masks in ("both", "one"):
        assert score(tmp_path / masks, tmp_path / "void", J_AND_F, Protocol.per_sequence)["mean"]["J"] == 1


def test_inner_frames_leave_out_the_first_and_the_last(folders, tmp_path):
    wrong_ends = two_squares()
    wrong_ends[0], wrong_ends[-1] = 0, 0
    write_sequence(tmp_path / "ends" / "squares", wrong_ends)
    everything = score(tmp_path / "ends", folders / "truth", J_AND_F, Protocol.foreground)
    inner = score(tmp_path / "ends", folders / "truth", J_AND_F, Protocol.foreground, frames=Frames.inner)
    assert everything["mean"]["J"] == 0.5
    assert inner["mean"]["J"] == 1
    assert list(inner["per_frame"]["squares"]) == ["00001", "00002"]


def test_the_official_protocol_takes_the_20_largest_proposals():
    truth = np.zeros((2, 60, 60), dtype=np.int16)
    truth[:, :2, :2] = 1
    prediction = np.zeros((2, 60, 60), dtype=np.uint16)
    prediction[:, :2, :2] = 1
    prediction[:, 10:, :] = np.repeat(np.arange(2, 27), 2)[:, None]
    few = score_sequence(prediction, truth, wanted=[Metric.j], protocol=Protocol.per_sequence)
    many = score_sequence(prediction, truth, wanted=[Metric.j], protocol=Protocol.per_frame)
    assert few.total[Metric.j] == 0
    assert many.total[Metric.j] == 1


def test_the_objects_judged_are_those_of_the_first_frame():
    truth = two_squares()
    truth[1:, 0, :5] = 9
    np.testing.assert_array_equal(annotated_objects(truth), [1, 2])
    truth[0][truth[0] == 1] = 0
    np.testing.assert_array_equal(annotated_objects(truth), [1, 2])
    truth[0] = 0
    np.testing.assert_array_equal(annotated_objects(truth), [1, 2, 9])


def test_proposals_are_matched_by_the_wanted_ones_of_j_and_f():
    """One proposal has the object's outline and little of its area, the other most of the area and no outline."""
    truth = np.zeros((1, 80, 80), dtype=np.int16)
    truth[0, 10:70, 10:70] = 1
    prediction = np.zeros((1, 80, 80), dtype=np.uint16)
    prediction[0, 10:70, 10:70] = 1
    prediction[0, 12:68, 12:68] = 2

    def scored(*wanted):
        return score_sequence(prediction, truth, wanted=wanted, protocol=Protocol.per_sequence).total

    assert scored(Metric.j)[Metric.j] == pytest.approx(56**2 / 60**2)
    assert set(scored(Metric.j)) == {Metric.j}
    assert scored(Metric.f)[Metric.f] > 0.6
    assert scored(Metric.j, Metric.f)[Metric.f] < 0.1


def test_the_mean_of_j_is_over_objects_and_of_fg_ari_over_sequences(tmp_path):
    truth = two_squares()
    write_sequence(tmp_path / "truth" / "a", truth)
    write_sequence(tmp_path / "truth" / "b", (truth == 1).astype(np.uint8))
    write_sequence(tmp_path / "masks" / "a", truth)
    write_sequence(tmp_path / "masks" / "b", np.zeros_like(truth))
    result = score(tmp_path / "masks", tmp_path / "truth", [Metric.j, Metric.miou], Protocol.per_sequence)
    assert result["mean"]["J"] == pytest.approx(2 / 3)
    assert result["mean"]["mIoU"] == pytest.approx(1 / 2)


def test_a_frame_without_foreground_has_no_fg_ari(tmp_path):
    truth = two_squares()
    truth[1] = 0
    write_sequence(tmp_path / "truth" / "a", truth)
    write_sequence(tmp_path / "masks" / "a", truth)
    result = score(tmp_path / "masks", tmp_path / "truth", [Metric.fg_ari], Protocol.per_frame)
    assert result["per_frame"]["a"]["00001"]["FG-ARI"] is None
    assert result["mean"]["FG-ARI"] == 1
    json.dumps(result, allow_nan=False)


def test_void_pixels_do_not_count():
    truth = two_squares().astype(np.int16)
    prediction = truth.astype(np.uint16)
    prediction[:, 36:, :] = 1
    truth[:, 36:, :] = VOID
    for protocol in Protocol:
        result = score_sequence(prediction, truth, wanted=J_AND_F, protocol=protocol)
        assert result.total == dict.fromkeys(J_AND_F, 1)


@pytest.mark.parametrize(
    ("arrange", "sentence"),
    [
        (lambda root: root / "nowhere", "there is no folder"),
        (lambda root: root / "empty", "has no folder with PNG files"),
        (lambda root: root / "text", "cannot be read as an image"),
        (lambda root: root / "colours", "colours instead of ids"),
        (lambda root: root / "large", "pixels"),
        (lambda root: root / "longer", "no prediction"),
    ],
)
def test_what_is_wrong_with_the_folders_is_said_in_a_sentence(folders, arrange, sentence):
    (folders / "empty").mkdir()
    (folders / "text" / "squares").mkdir(parents=True)
    (folders / "text" / "squares" / "00000.png").write_text("not a picture")
    (folders / "colours" / "squares").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(folders / "colours" / "squares" / "00000.png")
    write_sequence(folders / "large" / "squares", np.ones((4, 41, 60)))
    write_sequence(folders / "longer" / "squares", two_squares(5))
    with pytest.raises(InvalidParameters, match=sentence):
        score(folders / "right", arrange(folders), [Metric.j], Protocol.per_sequence)


def test_metrics_of_several_objects_do_not_fit_one(folders):
    with pytest.raises(InvalidParameters, match="several objects"):
        score(folders / "right", folders / "truth", [Metric.fg_ari], Protocol.foreground)


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(commands.score)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_a_table_and_writes_every_value(command, folders):
    file = folders / "out" / "scores.json"
    result = command(
        *(folders / "right", folders / "truth", "--metric", "J", "--metric", "F"),
        *("--metric", "FG-ARI", "--protocol", "per-frame", "--json", file),
    )
    assert result.exit_code == 0, result.output
    assert "squares" in result.output
    assert "100.0" in result.output
    assert "300 proposals" in result.output
    written = json.loads(file.read_text())
    assert written["per_frame"]["squares"]["00003"] == {"J": 1, "F": 1, "FG-ARI": 1}
    assert written["per_sequence"] == {"squares": {"J": 1, "F": 1, "FG-ARI": 1}}
    assert written["mean"] == {"J": 1, "F": 1, "FG-ARI": 1}


def test_the_command_fails_in_one_sentence(command, folders):
    result = command(folders / "right", folders / "nowhere")
    assert result.exit_code == 1
    assert isinstance(result.exception, InvalidParameters)  # which the command line prints as one sentence
    assert "there is no folder" in str(result.exception)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_folders_of_published_masks_score_as_the_official_code_says():
    result = score(DATA / "osvos", DATA / "ground-truth", [Metric.j], Protocol.foreground)
    with (DATA / "official_per_frame.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["method"] == "osvos"]
    for row in rows:
        value = result["per_frame"][row["sequence"]][row["frame"]]["J"]
        assert value == pytest.approx(float(row["J"]), abs=1e-6)
