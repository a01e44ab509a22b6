"""Draw loss curves as a PNG."""

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = (480, 800)  # (H, W) in pixels
MARGIN = 60
COLOURS = ((180, 90, 20), (30, 120, 220), (60, 160, 60))  # BGR


def draw_curves(losses: Path, picture: Path) -> None:
    """Plot the columns of a loss.csv over its steps: thin lines the values, thick lines their running mean.

    Args:
        losses: Columns step, one loss or more, seconds.
        picture: The PNG to write.

    Raises:
        ValueError: There are fewer than two steps.
    """
    with losses.open(newline="") as file:
        head, *rows = list(csv.reader(file))
    values = np.array(rows, float)
    if len(values) < 2:
        raise ValueError(f"{losses} holds {len(values)} steps; a curve needs at least 2")
    steps, curves = values[:, 0], values[:, 1:-1]
    low, high = float(curves.min()), float(np.quantile(curves, 0.995)) + 1e-9
    canvas = np.full((*SIZE, 3), 255, np.uint8)
    across = MARGIN + (SIZE[1] - 2 * MARGIN) * (steps - steps[0]) / (steps[-1] - steps[0])

    def down(y: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(SIZE[0] - MARGIN - (SIZE[0] - 2 * MARGIN) * (np.minimum(y, high) - low) / (high - low))

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        level = round(float(down(value)))
        cv2.line(canvas, (MARGIN, level), (SIZE[1] - MARGIN, level), (225, 225, 225), 1)
        _write(canvas, f"{value:.3g}", (6, level + 4))
        step = f"{steps[0] + share * (steps[-1] - steps[0]):.0f}"
        place = (round(MARGIN + share * (SIZE[1] - 2 * MARGIN)) - 4 * len(step), SIZE[0] - MARGIN + 24)
        _write(canvas, step, place)
    for number, name in enumerate(head[1:-1]):
        colour = COLOURS[number % len(COLOURS)]
        pale = tuple(int(255 - 0.35 * (255 - channel)) for channel in colour)
        width = max(1, len(steps) // 40)
        padded = np.pad(curves[:, number], (width // 2, width - 1 - width // 2), "edge")
        mean = np.convolve(padded, np.ones(width) / width, "valid")
        for curve, shade, thickness in ((curves[:, number], pale, 1), (mean, colour, 2)):
            points = np.stack([across, down(curve)], 1).round().astype(np.int32)
            cv2.polylines(canvas, [points], False, shade, thickness, cv2.LINE_AA)
        place = (MARGIN + 8 + 160 * number, 30)
        cv2.putText(canvas, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)
    cv2.imwrite(str(picture), canvas)


def _write(canvas: NDArray[np.uint8], text: str, place: tuple[int, int]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)
