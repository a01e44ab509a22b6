import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from uvos.contract import Clustering, Edges
from uvos.models import MODELS
from worker.cli import app
from worker.evaluation.datasets import DatasetName
from worker.evaluation.measures import Measure
from worker.evaluation.published import FIGURES, SPEED, TABLE_1, TABLE_2, TABLE_3, paper_figure

PAGE = Path(__file__).parents[3] / "docs" / "reproduce.md"
WITHOUT_COMMAND = "## Which protocol"  # all commands above it reproduce published results


def table_rows():
    """The rows of the page's tables: their cells."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def page_table(number):
    """The rows of one of the paper's tables."""
    text = PAGE.read_text().partition(f"## Table {number}:")[2].partition("\n## ")[0].partition("\n### ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def commands(text):
    """The lines of the page's code that call our own command line, as words."""
    code = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return [shlex.split(line)[1:] for line in code.splitlines() if line.startswith("uvos-worker ")]


def parsed(words, file):
    """A command's parameters as it would be run; files that it reads are all `file`."""
    words = [
        str(file) if word in ("$CKPT", "$VIDEOS") or word.endswith("-block.safetensors") else word for word in words
    ]
    command = get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context("uvos-worker", words).params


@pytest.fixture
def file(tmp_path):
    (tmp_path / "weights").touch()
    return tmp_path / "weights"


def test_there_are_three_tables_whose_common_row_is_the_same():
    assert (len(TABLE_1), len(TABLE_2), len(TABLE_3)) == (16, 20, 3)
    common = [[f for f in table if f.model == "dino-vits8" and f.key_ratio == 1.0] for table in (TABLE_1, TABLE_2)]
    assert [(f.dataset, f.measure, f.value) for f in common[0]] == [(f.dataset, f.measure, f.value) for f in common[1]]


def test_every_figure_is_of_a_model_of_the_registry():
    assert {figure.model for figure in FIGURES} <= set(MODELS)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_page_has_every_figure_of_a_table_and_no_other(number):
    _, _, *rows = page_table(number)
    assert [row[:5] for row in rows] == [
        [f.dataset, f.measure, f.model, f"{f.key_ratio:g}", f"{f.value:.1f}"] for f in FIGURES if f.table == number
    ]
    for row in rows:
        assert re.fullmatch(r"–|\d+\.\d", row[5])


@pytest.mark.parametrize(("key_ratio", "times"), SPEED.items())
def test_the_page_has_the_speeds(key_ratio, times):
    assert [row[1] for row in table_rows() if row[0] == f"{key_ratio:g}"] == [f"{times:.1f}×"]


def test_every_figure_has_a_command_that_runs_its_row(file):
    found = set()
    for words in commands(PAGE.read_text().partition(WITHOUT_COMMAND)[0]):
        if words[0] != "evaluate":
            continue
        params = parsed(words, file)
        assert params["clustering"] == Clustering.windowed
        assert params["edges"] in (None, Edges.patch)  # None: the default of evaluate, patch
        (model,) = params["model"] or ["dino-vits8"]  # which the released checkpoint is of
        assert all(int(side) % MODELS[model].patch == 0 for side in params["resolution"].split("x"))
        found.add((params["dataset"], model, params["key_ratio"], *params["tau"]))
    assert found == {(f.dataset, f.model, f.key_ratio, f.tau) for f in FIGURES}


def test_all_commands_of_the_page_are_understood(file):
    every = commands(PAGE.read_text())
    assert {words[0] for words in every} == {"evaluate", "score", "train"}
    for words in every:
        parsed(words, file)


def test_the_paper_stands_beside_a_measure_of_the_same_model_and_key_ratio():
    def value(dataset, measure, model="dino-vits8", key_ratio=1.0):
        figure = paper_figure(dataset, measure, model=model, key_ratio=key_ratio)
        return None if figure is None else figure.value

    assert value(DatasetName.davis17, Measure.j_and_f_per_frame, key_ratio=0.1) == 42.8
    assert value(DatasetName.davis17, Measure.j_and_f_per_frame, "dinov2-vitb14") == 43.7
    assert value(DatasetName.davis17, Measure.j_and_f_per_frame, "tiny", key_ratio=0.1) == 43.9
    assert value(DatasetName.youtube_vis, Measure.miou_per_frame, key_ratio=0.2) == 50.0
    assert value(DatasetName.davis16, Measure.j_per_frame, "tiny", key_ratio=0.1) == 75.4
    assert value(DatasetName.davis17, Measure.j_and_f) is None
    assert value(DatasetName.movi, Measure.fg_ari) is None
