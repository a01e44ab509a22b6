"""Makes the pictures of docs/parameters.md from the sample clip: `python -m docs.pictures`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "service" / "page" / "sample.mp4"
IMAGES = ROOT / "docs" / "images"
FRAME = 12
SECONDS = 1
WIDTH = 427
OPACITY = 0.62
ROWS = {
    "tau": [(f"tau {tau}", ["--tau", tau]) for tau in ("0.25", "1", "4")],
    "key_ratio": [(f"key_ratio {ratio}", ["--key-ratio", ratio]) for ratio in ("0.05", "0.2", "1")],
    "edges": [(f"edges {edges}", ["--edges", edges]) for edges in ("patch", "smooth")],
}


def main() -> None:
    with av.open(str(SAMPLE)) as video:
        picture = next(frame for index, frame in enumerate(video.decode(video=0)) if index == FRAME).to_ndarray(
            format="rgb24"
        )
    for name, row in ROWS.items():
        cells = [_cell(picture, _labels(options), title) for title, options in row]
        strip = np.concatenate(cells, axis=1)
        Image.fromarray(strip).quantize(192).save(IMAGES / f"{name}.png", optimize=True)


def _labels(options: list[str]) -> NDArray[np.uint8]:
    """The label map of one frame, by the packaged model."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "worker.cli", "segment", str(SAMPLE), "--out", str(out), "--format", "png"]
        subprocess.run([*command, "--end", str(SECONDS), *options], check=True, cwd=ROOT)
        level = json.loads((out / "manifest.json").read_text())["levels"][0]["name"]
        return np.asarray(Image.open(out / "levels" / level / "masks" / f"{FRAME:05d}.png"))


def _cell(picture: NDArray[np.uint8], labels: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    colors = np.array([(255, 93, 93), (61, 139, 255), (255, 197, 61), (37, 194, 122), (176, 108, 255), (24, 197, 217)])
    over = np.where(
        labels[..., None] > 0,
        (1 - OPACITY) * picture + OPACITY * colors[(labels.astype(int) - 1) % len(colors)],
        0.75 * picture,
    ).astype(np.uint8)
    height = round(WIDTH * over.shape[0] / over.shape[1])
    image = Image.fromarray(over).resize((WIDTH, height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 12 + 9 * len(title), 24), fill=(20, 20, 28))
    draw.text((8, 5), title, fill=(255, 255, 255), font=ImageFont.load_default(14))
    return np.asarray(image)


if __name__ == "__main__":
    main()
