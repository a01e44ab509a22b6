"""Objects of one kind -> instances: foreground that is apart in space is followed through time as separate objects.

An addition to the paper, whose clusters hold everything that looks alike: several people are one cluster. In each frame
the foreground of a group of clusters falls into connected components, which are linked through time by optical flow to
tubes. A tube that meets another keeps its pixels by flow; a tube that leaves another is followed back into the past.
Tubes that are almost always in contact are parts of one object. Choices and measurements: docs/method.md.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from worker.method.motion import PATCH_PX, grey_frame
from worker.video.clip import PatchGrid

PATCH_AREA = PATCH_PX**2
OPENING_PX = 3  # components that are connected only by a bridge narrower than twice this are separate
MIN_OVERLAP = 0.3  # share of the smaller of tube and component from which the tube is part of the component
MIN_SPLIT = 6  # patches: a smaller component that leaves a tube stays part of it
MIN_AREA = 2  # patches: mean area below which a tube belongs to the nearest other one
MIN_FRAMES = 5  # life below which a tube belongs to the nearest other one
MIN_CONTACT = 0.9  # share of the frames with both tubes in which they touch: parts of one object
GAP_COST = 0.5  # patches: a frame of absence counts as this distance when a returning object is recognised

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Instances:
    """The instances of a video.

    Attributes:
        pixels: Instance of each pixel of the foreground patches, from 0, else -1; `PATCH_PX` pixels a side of a patch;
            shape (T, h * PATCH_PX, w * PATCH_PX).
        count: Number of instances.
    """

    pixels: NDArray[np.int32]
    count: int

    def shares(self, frame_index: int) -> NDArray[np.float32]:
        """Share of the pixels of each patch that belong to each instance, shape (N, count); zeros for background."""
        pixels = self.pixels[frame_index]
        rows, columns = (side // PATCH_PX for side in pixels.shape)
        patches = np.arange(rows * columns).reshape(rows, columns).repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)
        inside = pixels >= 0
        cells = patches[inside] * self.count + pixels[inside]
        counts = np.bincount(cells, minlength=rows * columns * self.count)
        return (counts.reshape(rows * columns, self.count) / PATCH_AREA).astype(np.float32)


@dataclass
class _Tube:
    """A component followed through time: its group, the frame it first appears in, and the tube it split from."""

    group: int
    birth: int
    parent: int


class Flow:
    """Dense optical flow between neighbouring frames at `PATCH_PX` pixels a side of a patch, computed on demand."""

    def __init__(self, frames: NDArray[np.uint8], grid: PatchGrid) -> None:
        self._frames, self._grid = frames, grid
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(0)
        self._position = np.mgrid[: grid.height * PATCH_PX, : grid.width * PATCH_PX].astype(np.float32)[::-1]

    def moved(self, labels: Labels, to: int, source: int) -> Labels:
        """Labels of the frame `source` where its pixels are in the frame `to`."""
        first, second = (grey_frame(self._frames[index], self._grid) for index in (to, source))
        x, y = self._position + np.moveaxis(self._flow.calc(first, second, None), -1, 0)
        moved = cv2.remap(labels.astype(np.float32), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved, np.int32)


def track_instances(
    groups: NDArray[np.integer],
    score: NDArray[np.floating],
    frames: NDArray[np.uint8],
    *,
    work: Path | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Instances:
    """Split groups of clusters into instances.

    Args:
        groups: Group of each foreground token, -1 for background, shape (T, h, w).
        score: Object score of each token, above 1 in the foreground, shape (T, h, w); interpolated, it separates
            components more finely than tokens do.
        frames: RGB, shape (T, H, W, 3).
        work: Folder for a temporary file with the pixels of all frames; None: the system's.
        on_frame: Called after each frame of each pass; an exception it raises cancels the computation.

    Returns:
        The instances; every foreground token belongs to one.
    """
    length, height, width = groups.shape
    shape = (length, height * PATCH_PX, width * PATCH_PX)
    with tempfile.TemporaryFile(dir=work) as file:  # deleted once the array is no longer used
        pixels: NDArray[np.int32] = np.memmap(file, np.int32, "w+", shape=shape)
    flow = Flow(frames, PatchGrid(height, width))
    tracker = _Tracker(flow)
    for t in range(length):
        pixels[t] = tracker.link(t, _group_pixels(groups[t], score[t]), pixels[t - 1] if t else None)
        on_frame()
    for t in range(length - 2, -1, -1):
        _follow_back(t, pixels, tracker.tubes, flow)
        on_frame()
    ids, count = _join(pixels, groups, tracker.tubes)
    for frame in pixels:
        frame[:] = ids[frame]
    return Instances(pixels, count)


class _Tracker:
    """Links the components of each frame to the tubes of the previous one."""

    def __init__(self, flow: Flow) -> None:
        self.tubes: list[_Tube] = []
        self._flow = flow

    def link(self, t: int, groups: Labels, previous: Labels | None) -> Labels:
        """The tube of each pixel of frame t, -1 for background and new specks.

        Args:
            t: Index of the frame.
            groups: Group of each pixel, -1 for background.
            previous: The tubes of the pixels of the previous frame.
        """
        labels = np.full(groups.shape, -1, np.int32)
        components = {int(group): _components(groups == group) for group in np.unique(groups[groups >= 0])}
        if previous is None:
            previous = labels
        present, sizes = np.unique(previous[previous >= 0], return_counts=True)
        size_of = dict(zip(present.tolist(), sizes.tolist(), strict=True))
        if len(present) + sum(count for count, _ in components.values()) > 2:
            previous = self._flow.moved(previous, t, t - 1) if t else previous
        for group, (count, component) in components.items():
            member = np.array([tube.group == group for tube in self.tubes] + [False])  # the last stands for -1
            self._link_group(t, group, (count, component), np.where(member[previous], previous, -1), size_of, labels)
        return labels

    def _link_group(
        self,
        t: int,
        group: int,
        components: tuple[int, Labels],
        previous: Labels,
        size_of: dict[int, int],
        labels: Labels,
    ) -> None:
        """Set the labels of the components of one group; `previous` has only tubes of the group."""
        count, component = components
        parts: dict[int, list[tuple[int, int]]] = {}  # of a tube: sizes of its parts and their components
        for index in range(1, count + 1):
            inside = component == index
            size = int(inside.sum())
            tubes = self._overlapping(previous[inside], size, size_of)
            if len(tubes) == 0:
                if size >= MIN_AREA * PATCH_AREA:
                    labels[inside] = self._new(group, t)
                continue
            known = inside & np.isin(previous, tubes)
            labels[inside] = tubes[0] if len(tubes) == 1 else _filled(previous, known)[inside]
            for tube, part in zip(*np.unique(labels[inside], return_counts=True), strict=True):
                parts.setdefault(int(tube), []).append((int(part), index))
        for tube, pieces in parts.items():
            for part, index in sorted(pieces)[:-1]:  # the largest keeps the tube
                if part >= MIN_SPLIT * PATCH_AREA:
                    labels[(component == index) & (labels == tube)] = self._new(group, t, tube)

    @staticmethod
    def _overlapping(previous: Labels, size: int, size_of: dict[int, int]) -> list[int]:
        """The tubes with a sufficient share of a component whose previous labels are given."""
        tubes, overlaps = np.unique(previous[previous >= 0], return_counts=True)
        pairs = zip(tubes.tolist(), overlaps.tolist(), strict=True)
        return [tube for tube, overlap in pairs if overlap >= MIN_OVERLAP * min(size, size_of[tube])]

    def _new(self, group: int, birth: int, parent: int = -1) -> int:
        self.tubes.append(_Tube(group, birth, parent))
        return len(self.tubes) - 1


def _follow_back(t: int, pixels: Labels, tubes: list[_Tube], flow: Flow) -> None:
    """Divide in frame t the tubes from which others split in frame t + 1, by the flow from there."""
    families: dict[int, list[int]] = {}
    for index, tube in enumerate(tubes):
        if tube.birth == t + 1:
            ancestor = tube.parent
            while ancestor >= 0 and tubes[ancestor].birth > t:
                ancestor = tubes[ancestor].parent
            if ancestor >= 0:
                families.setdefault(ancestor, []).append(index)
    if not families:
        return
    moved, labels = flow.moved(pixels[t + 1], t, t + 1), pixels[t]
    for ancestor, children in families.items():
        inside = labels == ancestor
        known = inside & np.isin(moved, [ancestor, *children])
        if known.any():
            divided = np.where(inside, _filled(moved, known), -1)
            for child in children:
                if (divided == child).sum() >= PATCH_AREA:
                    labels[divided == child] = child
                    tubes[child].birth = t


@dataclass
class _Span:
    """The frames with an object, and its centre in the first and the last of them, in patches."""

    group: int
    first: int
    last: int
    start: NDArray[np.float64]
    end: NDArray[np.float64]


def _join(pixels: Labels, groups: NDArray[np.integer], tubes: Sequence[_Tube]) -> tuple[Labels, int]:
    """Make every foreground patch part of a lasting tube, in place; the instance of each tube, and their number."""
    lasting, group_count = _lasting_tubes(pixels, len(tubes)), int(groups.max(initial=-1)) + 1
    latest = np.array([*_first_of_groups(lasting, tubes, group_count), -1])  # of each group; -1 of background
    together: Counter[tuple[int, int]] = Counter()
    touching: Counter[tuple[int, int]] = Counter()
    for t, frame in enumerate(pixels):
        tokens = groups[t].repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)
        known = np.isin(frame, lasting)
        filled = _filled(frame, known) if known.any() else latest[tokens]
        labels = np.where(frame >= 0, filled, -1)
        present = np.unique(labels[labels >= 0]).tolist()
        if lasting:
            latest[[tubes[tube].group for tube in present]] = present
        together.update((a, b) for a in present for b in present if a < b)
        touching.update(_touching(labels))
        frame[:] = np.where(tokens >= 0, filled, -1)
    parts = [pair for pair, count in touching.items() if count >= MIN_CONTACT * together[pair]]
    objects = _connected(len(tubes) + group_count, parts)
    return _numbered(objects, _returning(_spans(pixels, objects, tubes)))


def _lasting_tubes(pixels: Labels, count: int) -> list[int]:
    """The tubes that last long enough to be objects, ascending; all tubes if none does."""
    frames, area = np.zeros((2, count), np.intp)
    for frame in pixels:
        in_frame = np.bincount(frame[frame >= 0], minlength=count)
        frames += in_frame > 0
        area += in_frame
    is_lasting = (frames >= min(MIN_FRAMES, len(pixels))) & (area >= MIN_AREA * PATCH_AREA * frames) & (frames > 0)
    lasting: list[int] = np.flatnonzero(is_lasting if is_lasting.any() else frames > 0).tolist()
    return lasting


def _first_of_groups(lasting: list[int], tubes: Sequence[_Tube], groups: int) -> list[int]:
    """The first lasting tube of each group, else the first of all; without any, a number of its own."""
    if not lasting:
        return [len(tubes) + group for group in range(groups)]
    return [next((tube for tube in lasting if tubes[tube].group == group), lasting[0]) for group in range(groups)]


def _spans(pixels: Labels, objects: Labels, tubes: Sequence[_Tube]) -> dict[int, _Span]:
    """The span of each object."""
    spans: dict[int, _Span] = {}
    for t, frame in enumerate(pixels):
        for tube in np.unique(frame[frame >= 0]).tolist():
            centre = np.argwhere(frame == tube).mean(0) / PATCH_PX
            group = tubes[tube].group if tube < len(tubes) else tube - len(tubes)
            span = spans.setdefault(int(objects[tube]), _Span(group, t, t, centre, centre))
            span.last, span.end = t, centre
    return spans


def _returning(spans: dict[int, _Span]) -> dict[int, int]:
    """For each object the earlier one that it continues, else itself: of its group, gone before, nearest.

    An object that passes behind another one may appear on one side before it is gone on the other.
    """
    continued: dict[int, int] = {}
    for number, span in sorted(spans.items(), key=lambda item: item[1].first):
        gone = [
            (float(np.hypot(*(earlier.end - span.start))) + GAP_COST * (span.first - earlier.last), other)
            for other, earlier in spans.items()
            if continued.get(other) == other
            and earlier.group == span.group
            and earlier.last < min(span.first + MIN_FRAMES, span.last)
        ]
        continued[number] = min(gone)[1] if gone else number
        if gone:
            spans[continued[number]].last, spans[continued[number]].end = span.last, span.end
    return continued


def _numbered(objects: Labels, continued: dict[int, int]) -> tuple[Labels, int]:
    """The instance of each tube by first appearance, -1 for tubes without pixels and for -1; and their number."""
    numbers: dict[int, int] = {}
    for number in continued.values():
        numbers.setdefault(number, len(numbers))
    instances = [numbers[continued[number]] if number in continued else -1 for number in objects.tolist()]
    return np.array([*instances, -1], np.int32), len(numbers)


def _touching(labels: Labels) -> set[tuple[int, int]]:
    """Pairs of labels, the smaller first, with pixels side by side; -1 is none."""
    pairs: set[tuple[int, int]] = set()
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = (first != second) & (first >= 0) & (second >= 0)
        ends = np.sort(np.stack([first[differ], second[differ]], 1), 1)
        pairs.update(map(tuple, np.unique(ends, axis=0).tolist()))
    return pairs


def _connected(count: int, pairs: Sequence[tuple[int, int]]) -> Labels:
    """The connected component of each of `count` nodes."""
    edges = np.array(pairs, np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    components: Labels = connected_components(graph, directed=False)[1]
    return components


def _group_pixels(groups: NDArray[np.integer], score: NDArray[np.floating]) -> Labels:
    """Group of each pixel where the interpolated score exceeds 1: that of the nearest foreground token; else -1."""
    if not (groups >= 0).any():
        return np.full((groups.shape[0] * PATCH_PX, groups.shape[1] * PATCH_PX), -1, np.int32)
    nearest = _filled(groups.astype(np.int32), groups >= 0).repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)
    pixels = cv2.resize(score.astype(np.float32), nearest.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(pixels > 1, nearest, -1)


def _components(mask: NDArray[np.bool_]) -> tuple[int, Labels]:
    """Number of components of a mask, and the component of each pixel from 1, 0 outside.

    Narrow bridges do not connect: cores are the components of the opened mask, and each pixel belongs to the nearest
    core of its component.
    """
    size = 2 * OPENING_PX + 1
    count, component = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    eroded = cv2.erode(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    cores, core = cv2.connectedComponents(eroded, connectivity=4)
    has_core = np.bincount(component[core > 0], minlength=count) > 0
    without = mask & ~has_core[component]
    labels = np.where(without, cores - 1 + component, _filled(core, core > 0) if cores > 1 else 0)
    values, labels = np.unique(np.where(mask, labels, 0), return_inverse=True)
    return int((values > 0).sum()), labels.reshape(mask.shape).astype(np.int32) + int(values[0] > 0)


def _filled(labels: Labels, known: NDArray[np.bool_]) -> Labels:
    """Each label, or the nearest known one."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled: Labels = labels[tuple(nearest)]
    return filled
