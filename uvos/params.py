"""Keyword arguments of the Python client: the fields of POST /segment, typed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class SegmentOptions(TypedDict, total=False):
    """Parameters of a job, as docs/parameters.md describes them; None means the default."""

    tau: float | Sequence[float] | None
    key_ratio: float | None
    mode: Literal["multi", "single"] | None
    model: str | None
    format: str | Sequence[str] | None
    start: float | None
    end: float | None
    fps: float | None
    resolution: str | None
    clustering: Literal["algorithm1", "windowed"] | None
    background: Literal["auto", "keep"] | None
    edges: Literal["smooth", "fine", "patch"] | None
    min_area: float | None
    motion: Literal["on", "off"] | None
    affinity: Literal["qk", "keys", "spectral"] | None
    metadata: Mapping[str, str] | None
    tags: Sequence[str] | None
    callback_url: str | None


def form(options: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Options as fields of a form: lists repeat the field, mappings are JSON.

    Raises:
        TypeError: there is no such option.
    """
    unknown = options.keys() - SegmentOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(SegmentOptions.__annotations__)
        raise TypeError(f"there is no parameter {', '.join(sorted(unknown))}; the parameters are {known}")
    return {name: _field(value) for name, value in options.items() if value is not None}


def _field(value: Any) -> str | list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return json.dumps(dict(value)) if isinstance(value, Mapping) else str(value)
