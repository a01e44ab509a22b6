"""Named choices between the exact result and a quicker one; docs/benchmarks.md has what each of them costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What a preset means.

    Attributes:
        pool: Side of the squares of key patches whose attention is summed after the softmax (`AttentionMaps`).
        max_key_tokens: Key frames are left out, evenly, to stay below it: fewer rows' worth of everything.
    """

    pool: int
    max_key_tokens: int


PRESETS = {
    "quality": Preset(pool=1, max_key_tokens=40_000),
    "balanced": Preset(pool=2, max_key_tokens=20_000),
    "fast": Preset(pool=4, max_key_tokens=5_000),
}
