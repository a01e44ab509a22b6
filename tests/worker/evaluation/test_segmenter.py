import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker import cli
from worker.evaluation import baselines

DEV = Path(__file__).parents[4] / "shared" / "data" / "davis16-dev"
SIZE = (64, 96)
FRAMES = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DAVIS-16 in small: a red square on blue ground."""
    folder = tmp_path_factory.mktemp("davis")
    for t in range(FRAMES):
        truth = np.zeros(SIZE, dtype=np.uint8)
        truth[16:48, 8 * t : 32 + 8 * t] = 255
        picture = np.where(truth[..., None] > 0, [200, 30, 30], [20, 40, 160]).astype(np.uint8)
        for place, values, ending in (("JPEGImages", picture, "jpg"), ("Annotations", truth, "png")):
            file = folder / place / "480p" / "square" / f"{t:05d}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "dev.txt").write_text("square\n")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["uvos-worker", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_a_data_set_is_segmented_and_scored_in_one_command(command, root, tmp_path):
    file = tmp_path / "out" / "result.json"
    code, out, err = command(
        *("evaluate", "davis16", root, "--split", "dev", "--model", "colour-position", "--resolution", "64x96"),
        *("--tau", "0.5", "--tau", "2", "--limit-frames", "4", "--json", file),
    )
    assert code == 0, err
    assert "75.4" in out
    assert "do not compare" in " ".join(out.split())
    result = json.loads(file.read_text())
    assert result["levels"]["2"]["mean"]["best-cluster J"] > 0.9
    assert set(result["levels"]) == {"0.5", "2"}
    assert set(result["per_frame"]["square"]) == {"00000", "00001", "00002", "00003"}
    assert not file.with_name("result.json.parts").exists()


def test_several_models_and_affinities_give_a_row_each(command, root, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "result.json"
    code, out, err = command(
        *("evaluate", "davis16", root, "--split", "dev", "--model", "tiny", "--model", "colour-position"),
        *("--affinity", "qk", "--affinity", "keys", "--resolution", "64x96", "--limit-frames", "2", "--json", file),
    )
    assert code == 0, err
    expected = [(model, affinity) for model in ("tiny", "colour-position") for affinity in ("qk", "keys")]
    results = json.loads(file.read_text())["evaluations"]
    assert [(result["model"]["name"], result["params"]["affinity"]) for result in results] == expected
    rows = [line.strip("│ \n").split("│") for line in out.splitlines() if line.startswith("│")]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == expected
    assert [float(row[3]) for row in rows] == [
        pytest.approx(100 * result["mean"]["best-cluster J"], abs=0.051) for result in results
    ]
    assert not file.with_name("result.json.parts").exists()


@pytest.mark.parametrize("edges", ["patch", "smooth"])
def test_answers_without_ground_truth_are_those_that_the_pipeline_gives(command, root, tmp_path, edges):
    """The evaluation decides on the main object afterwards; `segment --mode single` draws the same."""
    size = ("--resolution", "64x96", "--edges", edges, "--tau", "0.2")
    code, _, err = command(
        *("evaluate", "davis16", root, "--split", "dev", "--model", "tiny", *size, "--motion", "off"),
        *("--json", tmp_path / "result.json"),
    )
    assert code == 0, err
    frames = root / "JPEGImages" / "480p" / "square"
    for mode, background, measure in (("single", "auto", "single J"), ("multi", "auto", "foreground J")):
        code, _, err = command(
            *("segment", frames, "--out", tmp_path / mode, "--model", "tiny", *size, "--motion", "off"),
            *("--mode", mode, "--background", background),
        )
        assert code == 0, err
        masks = tmp_path / "predictions" / mode / "square"
        masks.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mode / "levels" / "0.2" / "masks").rename(masks)
        code, _, err = command(
            *("score", masks.parent, root / "Annotations" / "480p", "--metric", "J", "--protocol", "foreground"),
            *("--json", tmp_path / f"{mode}.json"),
        )
        assert code == 0, err
        expected = json.loads((tmp_path / f"{mode}.json").read_text())["mean"]["J"]
        assert json.loads((tmp_path / "result.json").read_text())["mean"][measure] == pytest.approx(expected)


@pytest.mark.data
@pytest.mark.skipif(not DEV.is_dir(), reason="no ../shared/data")
def test_the_main_object_is_found_on_real_videos(command, tmp_path):
    """Chosen without ground truth, and far from the degenerate answers: everything, nothing, a speck."""
    file = tmp_path / "result.json"
    code, _, err = command(
        *("evaluate", "davis16", DEV, "--split", "dev", "--sequences", "car-turn,dance-jump", "--limit-frames", "6"),
        *("--model", "colour-position", "--motion", "on", "--resolution", "120x216", "--tau", "1.6", "--json", file),
    )
    assert code == 0, err
    mean = json.loads(file.read_text())["mean"]
    assert mean["single J"] > 0.9 * mean["best-cluster J"] > 0.36  # everything: 0.06


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("davis16", "nowhere"), "there is no folder"),
        (("davis16", ".", "--split", "dev", "--sequences", "jump"), "has no sequence jump"),
        (("davis16", ".", "--split", "dev", "--model", "huge"), "unknown model"),
        (("davis16", ".", "--split", "dev", "--affinity", "values"), "--affinity must be one of qk, keys"),
        (("davis16", ".", "--split", "dev", "--key-ratio", "2"), "--key-ratio"),
        (("davis16", ".", "--split", "dev", "--tau", "-1"), "--tau"),
        (("davis16", ".", "--split", "dev", "--dtype", "float8"), "--dtype"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command, root, words, sentence):
    name, place, *rest = words
    code, _, err = command("evaluate", name, root / place, *rest)
    assert code == 1
    assert err.startswith("error:")
    assert sentence in err.replace("\n", " ")
    assert "Traceback" not in err


def test_random_weights_are_the_same_every_time():
    first, second = baselines.random_model(device="cpu"), baselines.random_model(device="cpu")
    weights = [model.backbone.vit.patch_embed.proj.weight for model in (first, second)]
    assert (weights[0] == weights[1]).all()


def test_baselines_accept_no_weights(tmp_path, command, root):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    code, _, err = command("evaluate", "davis16", root, "--split", "dev", "--model", "random", "--weights", file)
    assert (code, "random has no weights" in err.replace("\n", " ")) == (1, True)
