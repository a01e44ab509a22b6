"""Draw the strip of README.md, the pictures of docs/parameters.md, and those of docs/models/tiny.md.

The first two show the sample clip, the last one DAVIS-16.

`python -m docs.pictures [DAVIS16]`: with the folder of DAVIS-16, also the masks of three sequences. The frames may not
be redistributed, so those pictures show masks only.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.rendering.overlay import blend, strip
from uvos.palette import palette

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "service" / "page" / "sample.mp4"
IMAGES = ROOT / "docs" / "images"
FRAME = 12
SECONDS = 1
WIDTH = 427
REAL = ("car-turn", "flamingo", "mallard-water")
REAL_FRAMES = (0, 12, 24, 36)
STRIP_MODEL, STRIP_FPS = "dinov2-vits14", 12
STRIP_FRAMES = (0, 2, 4, 6, 8, 9)  # until the koi touches the leaf, where its id ends
ROWS = {
    "tau": [(f"tau {tau}", ["--tau", tau]) for tau in ("0.25", "1", "4")],
    "key_ratio": [(f"key_ratio {ratio}", ["--key-ratio", ratio]) for ratio in ("0.05", "0.2", "1")],
    "edges": [(f"edges {edges}", ["--edges", edges]) for edges in ("patch", "smooth", "fine")],
}


def main() -> None:
    with av.open(str(SAMPLE)) as video:
        picture = next(frame for index, frame in enumerate(video.decode(video=0)) if index == FRAME).to_ndarray(
            format="rgb24"
        )
    for name, row in ROWS.items():
        cells = [_cell(blend(picture, _labels(options)), title) for title, options in row]
        strip = np.concatenate(cells, axis=1)
        Image.fromarray(strip).quantize(192).save(IMAGES / f"{name}.png", optimize=True)
    _draw_strip()
    if sys.argv[1:]:
        rows = [_real(Path(sys.argv[1]) / "JPEGImages" / "480p" / sequence) for sequence in REAL]
        Image.fromarray(np.concatenate(rows)).quantize(64).save(
            ROOT / "docs" / "models" / "tiny-real.png", optimize=True
        )


def _draw_strip() -> None:
    """Frames of the sample above the same frames with coloured objects."""
    label_maps = _segmented(SAMPLE, ["--fps", str(STRIP_FPS)], STRIP_FRAMES, model=STRIP_MODEL)
    with av.open(str(SAMPLE)) as video:
        step = round(float(video.streams.video[0].average_rate or STRIP_FPS) / STRIP_FPS)
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)][::step]
    picture = strip([frames[index] for index in STRIP_FRAMES], label_maps)
    picture.quantize(192).save(IMAGES / "strip.png", optimize=True)


def _labels(options: list[str]) -> NDArray[np.uint16]:
    """Label map of one frame of the sample, with the packaged model."""
    return _segmented(SAMPLE, ["--end", str(SECONDS), *options], [FRAME])[0]


def _real(sequence: Path) -> NDArray[np.uint8]:
    """Masks of selected frames of a sequence, side by side."""
    label_maps = _segmented(sequence, [], REAL_FRAMES)
    titles = [f"{sequence.name}, frame {frame}" for frame in REAL_FRAMES]
    cells = [_cell(palette()[labels], title) for labels, title in zip(label_maps, titles, strict=True)]
    return np.concatenate(cells, axis=1)


def _segmented(
    source: Path, options: list[str], frames: Sequence[int], model: str = "tiny"
) -> list[NDArray[np.uint16]]:
    """Label maps of selected frames."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "worker.cli", "segment", str(source), "--model", model, "--out", str(out)]
        subprocess.run([*command, *options], check=True, cwd=ROOT)
        masks = out / "levels" / json.loads((out / "manifest.json").read_text())["levels"][0]["name"] / "masks"
        return [np.asarray(Image.open(masks / f"{frame:05d}.png"), np.uint16) for frame in frames]


def _cell(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """A picture scaled to `WIDTH`, with a title."""
    height = round(WIDTH * picture.shape[0] / picture.shape[1])
    image = Image.fromarray(picture).resize((WIDTH, height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 12 + 9 * len(title), 24), fill=(20, 20, 28))
    draw.text((8, 5), title, fill=(255, 255, 255), font=ImageFont.load_default(14))
    return np.asarray(image)


if __name__ == "__main__":
    main()
