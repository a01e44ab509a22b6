"""Groups of tokens after the first round of the clustering -> `rounds.json`, as run lengths."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_rounds(path: Path, groups: NDArray[np.int64]) -> None:
    """Write `RoundsDocument` of the contract: the group of each token, shape (T, h, w), frame by frame."""
    length, height, width = groups.shape
    with path.open("w", encoding="ascii") as file:
        file.write(f'{{"grid":[{height},{width}],"frames":[')
        for frame_index in range(length):
            flat = groups[frame_index].ravel()
            starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
            lengths = np.diff(starts, append=len(flat))
            runs = np.stack([flat[starts], lengths], 1).ravel().tolist()
            file.write("," * (frame_index > 0) + json.dumps(runs, separators=(",", ":")))
        file.write("]}")
