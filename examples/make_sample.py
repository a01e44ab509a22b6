"""Draw the sample clip: a pond from above with two koi, a lily pad and a rubber duck, under a drifting camera.

    python -m examples.make_sample [--out examples/sample.mp4] [--masks DIR]

Two seconds at 854x480, deterministic (NumPy and OpenCV, seeded). The orange koi swims under the lily pad and reappears,
the dark koi enters and leaves quickly, the pad and the duck float. `--masks` also writes the ground-truth masks as
palette PNGs, in the order pad, duck, orange koi, dark koi, for scoring a result.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from worker.outputs.png import write_png

WIDTH, HEIGHT, FRAMES, FPS = 854, 480, 48, 24
SCALE = 2  # supersampling factor, for smooth edges
SEED = 11
MARGIN = 160  # pond floor beyond the frame, for the camera to move over
LIGHT = np.array([-0.45, -0.6, 0.66])  # from the upper left, towards the viewer

Image = NDArray[np.float32]
Path2D = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Window:
    """A region of the supersampled frame, and the centres of its pixels in frame pixels."""

    rows: slice
    columns: slice
    y: Image
    x: Image

    @staticmethod
    def around(points: NDArray[np.float64], reach: float) -> "Window":
        """The region within `reach` of points (n, 2), (x, y), in frame pixels; at least one pixel."""
        limit = np.array([WIDTH * SCALE, HEIGHT * SCALE])
        low = np.clip((points.min(0) - reach) * SCALE, 0, limit - 1).astype(int)
        high = np.maximum(np.clip((points.max(0) + reach) * SCALE, 0, limit).astype(int), low + 1)
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        return Window(slice(low[1], high[1]), slice(low[0], high[0]), (y + 0.5) / SCALE, (x + 0.5) / SCALE)


@dataclass(frozen=True)
class Sprite:
    """A drawn object.

    Attributes:
        window: Region that it covers.
        color: RGB in [0, 1], shape (h, w, 3).
        alpha: Opacity in [0, 1], shape (h, w).
        depth: Height above the floor in pixels, which is also the distance of its shadow.
    """

    window: Window
    color: Image
    alpha: Image
    depth: float


def smoothstep(low: float, high: float, value: Image) -> Image:
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def inside(distance: Image, softness: float = 0.7) -> Image:
    """Coverage from a signed distance in pixels, negative inside."""
    return smoothstep(softness, -softness, distance)


def mix(a: Image | NDArray[np.float64], b: Image | NDArray[np.float64], t: Image) -> Image:
    return (a + (np.asarray(b) - a) * t[..., None]).astype(np.float32)


def rgb(text: str) -> NDArray[np.float64]:
    return np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)])


def noise(random: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3) -> Image:
    """Smooth noise around 0, standard deviation 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = cell / 2**octave
        small = random.normal(size=(int(shape[0] / size) + 3, int(shape[1] / size) + 3)).astype(np.float32)
        total += cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.mean()) / total.std()


def domed(height: Image, gloss: float = 0.35) -> tuple[Image, Image]:
    """Diffuse light and highlight of a surface given by its height in pixels."""
    dy, dx = np.gradient(height)
    normal = np.stack([-dx, -dy, np.ones_like(dx)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = LIGHT / np.linalg.norm(LIGHT)
    diffuse = np.clip(normal @ light, 0, 1)
    half = light + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    return diffuse.astype(np.float32), (gloss * np.clip(normal @ half, 0, 1) ** 40).astype(np.float32)


# --- the pond floor


def pebbles(random: np.random.Generator) -> Image:
    """A pond floor of rounded stones under water, larger than the frame by MARGIN on every side."""
    height, width = (HEIGHT + 2 * MARGIN) * SCALE, (WIDTH + 2 * MARGIN) * SCALE
    cell = 30 * SCALE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x += 5 * SCALE * noise(random, (height, width), 40 * SCALE, 2)
    y += 5 * SCALE * noise(random, (height, width), 40 * SCALE, 2)
    rows, columns = height // cell + 5, width // cell + 5
    points = random.uniform(0.12, 0.88, (rows, columns, 2)).astype(np.float32)
    tones = random.uniform(size=(rows, columns)).astype(np.float32)
    first, second, tone = (np.full((height, width), np.inf, np.float32) for _ in range(3))
    for top in range(0, height, 32):  # blocks of rows fit in the CPU cache
        band = np.s_[top : top + 32]
        row, column = (y[band] // cell + 2).astype(int), (x[band] // cell + 2).astype(int)
        row, column = np.clip(row, 1, rows - 2), np.clip(column, 1, columns - 2)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                at = points[row + i, column + j]
                down, right = (
                    (row + i - 2 + at[..., 0]) * cell - y[band],
                    (column + j - 2 + at[..., 1]) * cell - x[band],
                )
                distance = np.hypot(down, right)
                nearer = distance < first[band]
                second[band] = np.where(nearer, first[band], np.minimum(second[band], distance))
                tone[band] = np.where(nearer, tones[row + i, column + j], tone[band])
                first[band] = np.minimum(first[band], distance)
    gap = (second - first) / cell
    stone = smoothstep(0.02, 0.35, gap)
    grain = noise(random, (height, width), 5 * SCALE, 2)
    color = mix(np.broadcast_to(rgb("5f8388"), (height, width, 3)), rgb("8fa39a"), tone)
    color = mix(color, rgb("6d7f93"), smoothstep(0.55, 1.0, np.abs(tone * 7 % 2 - 1)) * 0.6)
    color *= (0.50 + 0.5 * stone + 0.035 * grain)[..., None]
    deep = noise(random, (height, width), 260 * SCALE, 2)
    return mix(color, rgb("2f6a73"), 0.38 + 0.07 * np.clip(deep, -2, 2))


class Caustics:
    """Caustics of the waves on the floor, which drift over time."""

    def __init__(self, random: np.random.Generator) -> None:
        shape = (HEIGHT * SCALE // 2, WIDTH * SCALE // 2)
        self._waves = [noise(random, (shape[0] + 120, shape[1] + 120), 46, 2) for _ in range(2)]
        self._shape = shape

    def at(self, time: float) -> Image:
        height, width = self._shape
        light = np.zeros(self._shape, np.float32)
        for wave, (dy, dx) in zip(self._waves, [(18, 30), (-26, 14)], strict=True):
            light += cv2.warpAffine(
                wave, np.array([[1, 0, -60 - dx * time], [0, 1, -60 - dy * time]], np.float32), (width, height)
            )
        net = np.exp(-((light / 0.28) ** 2))
        return cv2.resize(net, (width * 2, height * 2), interpolation=cv2.INTER_LINEAR)


# --- moving objects


def seen_from(x: float, y: float, angle: float, size: float, reach: float) -> tuple[Window, Image, Image]:
    """The window around a body, and its body coordinates: u forward along `angle`, v to the right, in body units."""
    window = Window.around(np.array([[x, y]]), reach * size)
    dx, dy = (window.x - x) / size, (window.y - y) / size
    c, s = np.cos(angle), np.sin(angle)
    return window, dx * c + dy * s, -dx * s + dy * c


def lily_pad(x: float, y: float, angle: float) -> Sprite:
    window, u, v = seen_from(x, y, angle, size=1.15, reach=92)
    radius, phi = np.hypot(u, v), np.arctan2(v, u)
    edge = 84 * (1 + 0.018 * np.sin(5 * phi + 1) + 0.012 * np.sin(9 * phi))
    notch = 0.30 * np.clip(1 - radius / 400, 0, 1)
    leaf = np.maximum(radius - edge, (notch - np.abs(phi)) * np.maximum(radius, 1))
    alpha = inside(leaf)
    veins = np.cos(phi * 11) ** 40 * smoothstep(4, 20, radius)
    color = mix(np.broadcast_to(rgb("63a82a"), (*u.shape, 3)), rgb("a2cf3e"), smoothstep(10, 84, radius))
    color = mix(color, rgb("d3ec86"), (0.55 * veins * smoothstep(90, 30, radius)).astype(np.float32))
    color = mix(color, rgb("e2efa0"), smoothstep(-5, -1.5, leaf) * 0.7)
    light, shine = domed((6 * np.sqrt(np.clip(1 - (radius / 92) ** 2, 0, 1)) * SCALE).astype(np.float32))
    color = color * (0.6 + 0.62 * light)[..., None] + 0.4 * shine[..., None]

    # Flower: three stacked rings of petals, each with a shadow on the ring below.
    fu, fv = u + 22, v - 6
    for ring, (count, length, width, tone) in enumerate(
        [(9, 46, 12, "e86f9d"), (8, 36, 10.5, "f492b6"), (6, 24, 8.5, "fbc3d6")]
    ):
        for petal in range(count):
            turn = 2 * np.pi * petal / count + 0.4 * ring
            pu, pv = fu * np.cos(turn) + fv * np.sin(turn), -fu * np.sin(turn) + fv * np.cos(turn)
            along = np.clip(pu / length, 0, 1)
            half = width * np.sin(np.pi * along**0.75) ** 0.8 + 1e-3
            shape = np.maximum(np.abs(pv) - half, np.maximum(-pu, pu - length))
            color *= (1 - 0.22 * smoothstep(5, -2, shape) * (1 - inside(shape)))[..., None]
            tint = mix(np.broadcast_to(rgb(tone), (*u.shape, 3)), rgb("ffffff"), 0.5 * smoothstep(0.5, 1.0, along))
            tint *= (0.82 + 0.18 * np.clip(1 - np.abs(pv) / half, 0, 1))[..., None]
            cover = inside(shape)
            color = mix(color, tint, cover)
            alpha = np.maximum(alpha, cover)
    heart = np.hypot(fu, fv)
    color = mix(color, rgb("ffd84a"), inside(heart - 8))
    color = mix(color, rgb("e79a1c"), inside(np.abs(heart - 5) - 1.2) * 0.6)
    return Sprite(window, color, alpha, depth=12)


def duck(x: float, y: float, angle: float) -> Sprite:
    window, u, v = seen_from(x, y, angle, size=1.3, reach=86)
    yellow, shade = rgb("ffd21f"), rgb("f2a50c")
    # Body: an egg with a raised tail; the head is a ball on its front.
    long = np.where(u > 0, 46, 58)
    body = (np.hypot(u / long, v / 38) - 1) * 38
    tail = (np.hypot((u + 56) / 18, v / (12 + 0.2 * (u + 56))) - 1) * 12
    hull = np.minimum(body, tail)
    height = 34 * np.sqrt(np.clip(1 - (u / long) ** 2 - (v / 38) ** 2, 0, 1))
    light, shine = domed((height * SCALE * 0.8).astype(np.float32), gloss=0.6)
    color = mix(np.broadcast_to(shade, (*u.shape, 3)), yellow, smoothstep(0.25, 0.9, light))
    for side in (-1, 1):
        wing = (np.hypot((u + 14) / 32, (v - side * 24) / 15) - 1) * 15
        color *= (1 - 0.20 * smoothstep(4, 0, np.abs(wing)))[..., None]
        color = mix(color, rgb("ffe060"), inside(wing) * 0.45)
    alpha = inside(hull)

    hu, hv = u - 34, v
    head = np.hypot(hu, hv) - 25
    beak = np.maximum((np.hypot((hu - 24) / 19, hv / 12) - 1) * 12, -(hu - 14))
    color *= (1 - 0.30 * smoothstep(9, -2, head) * (1 - inside(head)))[..., None]
    bill = mix(np.broadcast_to(rgb("f4621d"), (*u.shape, 3)), rgb("ff9340"), smoothstep(9, 0, np.abs(hv)))
    color, alpha = mix(color, bill, inside(beak)), np.maximum(alpha, inside(beak))
    ball = 25 * np.sqrt(np.clip(1 - (hu**2 + hv**2) / 625, 0, 1))
    head_light, head_shine = domed((ball * SCALE * 0.9).astype(np.float32), gloss=0.7)
    crown = mix(np.broadcast_to(shade, (*u.shape, 3)), yellow, smoothstep(0.2, 0.85, head_light))
    for side in (-1, 1):
        eye = np.hypot(hu - 11, hv - side * 14.5) - 4.2
        crown = mix(crown, rgb("1b1b22"), inside(eye))
        crown = mix(crown, rgb("ffffff"), inside(np.hypot(hu - 12.5, hv - side * 14.5 + 1.5) - 1.3))
    crown = crown + head_shine[..., None]
    color = mix((color + (shine * (1 - inside(head)))[..., None]).astype(np.float32), crown, inside(head))
    return Sprite(window, color, np.maximum(alpha, inside(head)), depth=16)


@dataclass(frozen=True)
class Coat:
    """Colours of a koi: body, patches, fins."""

    base: str
    patch: str
    fin: str
    seed: int
    amount: float


def koi(path: Path2D, head: float, beat: float, length: float, coat: Coat) -> Sprite:
    """A fish whose spine follows a path and swings increasingly towards the tail.

    Args:
        path: Frame pixels (x, y) after so many pixels swum.
        head: How far the head is along the path.
        beat: Phase of the tail's swing.
        length: From head to tail fin, pixels.
        coat: Its colours.
    """
    s = np.linspace(0, 1.12, 300)
    spine = np.array([path(head - each * length) for each in s])
    along = np.gradient(spine, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    swing = length * (0.012 + 0.085 * np.clip(s - 0.2, 0, 2) ** 1.5) * np.sin(beat - 5.2 * s)
    spine = spine + across * swing[:, None]

    # Nearest point of the spine for each pixel near the fish: `t` from head to tail, `d` to the right.
    window = Window.around(spine, 0.34 * length)
    x, y = window.x, window.y
    nearest = cKDTree(spine).query(np.stack([x, y], -1))[1]
    step = np.gradient(spine, axis=0)
    step = (step / np.linalg.norm(step, axis=1, keepdims=True)).astype(np.float32)[nearest]
    dx, dy = x - spine[nearest, 0].astype(np.float32), y - spine[nearest, 1].astype(np.float32)
    t = (s[nearest] + (dx * step[..., 0] + dy * step[..., 1]) / length).astype(np.float32)
    d = dy * step[..., 0] - dx * step[..., 1]

    stout = 0.135 * length
    half = stout * np.interp(
        t,
        [-0.05, 0, 0.03, 0.08, 0.16, 0.3, 0.45, 0.6, 0.75, 0.86, 1.2],
        [0, 0, 0.42, 0.66, 0.88, 1, 0.95, 0.76, 0.48, 0.26, 0.16],
    )
    body = np.abs(d) - half
    body = np.where(t < 0.03, np.maximum(body, (0.002 - t) * length), body)
    body = np.where(t > 0.9, np.maximum(body, (t - 0.9) * length), body)

    random = np.random.default_rng(coat.seed)
    skin = noise(random, (160, 480), 95, 2)
    marks = cv2.remap(
        skin, (t * 400 + 20).astype(np.float32), (80 + d / stout * 45).astype(np.float32), cv2.INTER_LINEAR
    )
    patch = smoothstep(-0.12, 0.12, (marks + coat.amount).astype(np.float32))
    hide = mix(np.broadcast_to(rgb(coat.base), (*x.shape, 3)), rgb(coat.patch), patch)
    scales = np.sin(t * length * 0.9 + 1.5 * np.cos(d * 0.9)) * np.sin(d * 0.9)
    hide *= (1 + 0.05 * scales * smoothstep(0.2, 0.3, t))[..., None]
    round_ = np.sqrt(np.clip(1 - (d / np.maximum(half, 1)) ** 2, 0, 1)) * half
    light, shine = domed((round_ * SCALE * 0.55).astype(np.float32), gloss=0.25)
    hide = hide * (0.42 + 0.72 * light)[..., None] + shine[..., None]
    hide *= (1 - 0.16 * np.exp(-((d / 2.2) ** 2)) * smoothstep(0.3, 0.5, t) * smoothstep(0.85, 0.6, t))[..., None]
    for side in (-1, 1):
        eye = np.hypot((t - 0.075) * length, d - side * 0.60 * stout) - 0.016 * length
        hide = mix(hide, rgb("14141a"), inside(eye.astype(np.float32)))

    fins = np.full(x.shape, np.inf, np.float32)
    spread = 0.20 * length * np.clip((t - 0.84) / 0.28, 0, 1) ** 0.8
    fork = 1.11 - 0.09 * np.clip(1 - np.abs(d) / np.maximum(spread, 1), 0, 1)
    fins = np.minimum(fins, np.maximum(np.abs(d) - spread, (t - fork) * length))
    for side in (-1, 1):
        for root, size, lean in ((0.27, 0.17, 0.95), (0.58, 0.10, 0.75)):
            a, b = (t - root) * length, side * d - half * 0.75
            c, e = np.cos(lean), np.sin(lean)
            p, q = a * c + b * e, -a * e + b * c
            fins = np.minimum(
                fins, (np.hypot((p - size * length / 2) / (size / 2), q / (size / 4.6)) - length) * size / 4.6
            )
    fins = np.where(t <= 0, np.inf, fins)
    ribs = 0.86 + 0.14 * np.sin(d * 0.8 + t * 60)
    fin = np.broadcast_to(rgb(coat.fin), (*x.shape, 3)) * ribs[..., None]
    cover = inside(body.astype(np.float32))
    alpha = np.maximum(cover, 0.8 * inside(fins.astype(np.float32), 1.2))
    return Sprite(window, mix(fin.astype(np.float32), hide, cover), alpha, depth=5)


# --- the scene


def curve(points: list[tuple[float, float]]) -> Path2D:
    """A smooth path through points, parametrised by arc length; extrapolated as straight lines."""
    fine = np.linspace(0, 1, 400)
    knots = np.linspace(0, 1, len(points))
    degree = len(points) - 1
    x, y = (np.polyval(np.polyfit(knots, [p[i] for p in points], degree), fine) for i in (0, 1))
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])

    def at(distance: float) -> tuple[float, float]:
        if distance < 0:
            return x[0] + distance * (x[1] - x[0]) / length[1], y[0] + distance * (y[1] - y[0]) / length[1]
        if distance > length[-1]:
            over = (distance - length[-1]) / (length[-1] - length[-2])
            return x[-1] + over * (x[-1] - x[-2]), y[-1] + over * (y[-1] - y[-2])
        return float(np.interp(distance, length, x)), float(np.interp(distance, length, y))

    return at


def shifted(path: Path2D, camera: tuple[float, float]) -> Path2D:
    """A path on the floor, in camera coordinates."""

    def at(distance: float) -> tuple[float, float]:
        x, y = path(distance)
        return x - camera[0], y - camera[1]

    return at


def render(wanted: Sequence[int] = range(FRAMES)) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Frames (n, H, W, 3), RGB, and their masks (n, H, W): 1 pad, 2 duck, 3 orange koi, 4 dark koi."""
    random = np.random.default_rng(SEED)
    ground, caustics = pebbles(random), Caustics(random)
    orange = Coat("fff4e6", "f2541b", "ffd9b8", seed=5, amount=1.0)
    dark = Coat("262a3a", "a5382c", "5b6280", seed=21, amount=-0.8)
    first = curve([(60, 330), (300, 352), (520, 285), (700, 150), (900, 90)])
    second = curve([(960, 360), (760, 420), (560, 428), (380, 400), (130, 430)])
    frames = np.empty((len(wanted), HEIGHT, WIDTH, 3), np.uint8)
    masks = np.zeros((len(wanted), HEIGHT, WIDTH), np.uint16)
    for index, t in enumerate(wanted):
        time = t / FRAMES
        camera = 78 * (time + 0.04 * np.sin(2 * np.pi * time)), 20 * np.sin(np.pi * time * 0.9)

        # From the bottom up; each object casts its shadow on those below.
        sprites = [
            (4, koi(shifted(second, camera), 120 + 560 * time, 2 * np.pi * 2.6 * time + 1, 250, dark)),
            (3, koi(shifted(first, camera), 190 + 610 * time, 2 * np.pi * 2.2 * time, 275, orange)),
            (1, lily_pad(500 - 8 * time - camera[0], 262 + 5 * time - camera[1], 2.2 + 0.16 * time)),
            (2, duck(205 + 62 * time - camera[0], 118 + 26 * time - camera[1], 0.25 + 0.35 * np.sin(4.2 * time))),
        ]
        left, top = (MARGIN + camera[0]) * SCALE, (MARGIN + camera[1]) * SCALE
        canvas = cv2.warpAffine(
            ground,
            np.array([[1, 0, -left], [0, 1, -top]], np.float32),
            (WIDTH * SCALE, HEIGHT * SCALE),
            flags=cv2.INTER_LINEAR,
        )
        net = caustics.at(time)
        canvas *= (1.12 + 0.24 * net)[..., None]
        label = np.zeros(canvas.shape[:2], np.uint16)
        for number, sprite in sprites:
            part = sprite.window.rows, sprite.window.columns
            shift = sprite.depth * SCALE
            shadow = np.zeros_like(net)
            shadow[part] = sprite.alpha
            shadow = cv2.GaussianBlur(shadow, (0, 0), 0.55 * shift)
            shadow = cv2.warpAffine(
                shadow, np.array([[1, 0, 0.8 * shift], [0, 1, 1.1 * shift]], np.float32), shadow.shape[::-1]
            )
            canvas *= (1 - 0.5 * shadow)[..., None]
            color = sprite.color
            if number in (3, 4):  # under water
                color = mix(color * (1 + 0.1 * net[part])[..., None], rgb("2f6a73"), np.full_like(sprite.alpha, 0.1))
            canvas[part] = mix(canvas[part], color, sprite.alpha)
            label[part][sprite.alpha > 0.5] = number
        small = cv2.resize(np.clip(canvas, 0, 1), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        frames[index] = np.round(255 * small)
        # A pixel belongs to the object that covers most of it.
        shares = [
            cv2.resize((label == each).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            for each in range(5)
        ]
        masks[index] = np.argmax(shares, axis=0)
    return frames, masks


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "veryslow", "crf": "24"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the sample clip.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("sample.mp4"))
    parser.add_argument("--masks", type=Path, help="a folder for the exact masks")
    arguments = parser.parse_args()
    frames, masks = render()
    write_video(arguments.out, frames)
    if arguments.masks:
        arguments.masks.mkdir(parents=True, exist_ok=True)
        for index, mask in enumerate(masks):
            write_png(arguments.masks / f"{index:05d}.png", mask)


if __name__ == "__main__":
    main()
