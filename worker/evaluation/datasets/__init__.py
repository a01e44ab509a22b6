"""The data sets of published evaluations by name; the reader of each returns `LabelledSequence`s."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.clips import read_clips
from worker.evaluation.datasets.davis import read_davis16, read_davis17
from worker.evaluation.datasets.fbms import read_fbms
from worker.evaluation.datasets.movi import read_movi
from worker.evaluation.datasets.segtrack import read_segtrack
from worker.evaluation.datasets.sequence import LabelledSequence, names_in
from worker.evaluation.datasets.youtube_vis import read_youtube_vis


class DatasetName(StrEnum):
    davis16 = "davis16"
    davis17 = "davis17"
    segtrack = "segtrack-v2"
    fbms = "fbms59"
    youtube_vis = "ytvis19"
    movi = "movi-e"
    clips = "clips"


@dataclass(frozen=True)
class Dataset:
    """A data set and its reader.

    Attributes:
        title: Its name as published.
        split: The split that published figures are on.
        one_object: All objects of a sequence count as one.
        read: Reads the sequences of a split from a folder.
        read_by_name: Reads sequences by their names, of any split; None where `read` finds all of them anyway.
    """

    title: str
    split: str
    one_object: bool
    read: Callable[[Path, str], list[LabelledSequence]]
    read_by_name: Callable[[Path, str, Sequence[str]], list[LabelledSequence]] | None = None


DATASETS = {
    DatasetName.davis16: Dataset("DAVIS-16", "val", one_object=True, read=read_davis16, read_by_name=read_davis16),
    DatasetName.davis17: Dataset(
        "DAVIS-17 unsupervised", "val", one_object=False, read=read_davis17, read_by_name=read_davis17
    ),
    DatasetName.segtrack: Dataset("SegTrack-v2", "all", one_object=True, read=read_segtrack),
    DatasetName.fbms: Dataset("FBMS-59", "test", one_object=True, read=read_fbms),
    DatasetName.youtube_vis: Dataset("YouTube-VIS 2019", "300", one_object=False, read=read_youtube_vis),
    DatasetName.movi: Dataset("MOVi-E", "validation", one_object=False, read=read_movi),
    DatasetName.clips: Dataset("labelled clips", "all", one_object=False, read=read_clips),
}


def open_dataset(
    name: DatasetName, root: Path, *, split: str | None = None, sequences: Sequence[str] = ()
) -> list[LabelledSequence]:
    """The sequences of a data set.

    Args:
        name: The data set.
        root: Its folder.
        split: Default: the split of published results.
        sequences: Names of sequences, or the path of one file that lists them. Only their folders are needed; other
            sequences of the split may be missing.

    Raises:
        InvalidParameters: A folder, a file or a named sequence is missing.
    """
    dataset = DATASETS[name]
    wanted = _listed(sequences)
    if wanted and split is None and name is DatasetName.youtube_vis:
        split = "train"  # a given list replaces the seeded choice
    split = dataset.split if split is None else split
    if wanted and dataset.read_by_name is not None:
        return dataset.read_by_name(root, split, wanted)
    found = dataset.read(root, split)
    unknown = sorted(set(wanted) - {sequence.name for sequence in found})
    if unknown:
        raise InvalidParameters(f"{dataset.title} has no sequence {', '.join(unknown)} in {root}")
    return [sequence for sequence in found if not wanted or sequence.name in set(wanted)]


def _listed(sequences: Sequence[str]) -> list[str]:
    if len(sequences) == 1 and Path(sequences[0]).is_file():
        return names_in(Path(sequences[0]))
    return list(sequences)
