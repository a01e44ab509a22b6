"""Code blocks of the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str, *, after: str = "") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    text = text[text.index(after) :]
    return [code for kind, code in BLOCK.findall(text) if kind == language]
