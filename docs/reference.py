"""Writes the tables of docs/limits-and-errors.md from the code: `python -m docs.reference`. A test holds them equal."""

from pathlib import Path

from service.api.problem_types import PROBLEM_TYPES
from service.settings import Settings

PAGE = Path(__file__).with_name("limits-and-errors.md")


def problems() -> list[str]:
    """A row for each type of problem."""
    rows = [f"| `{kind.type()}` | {kind.status} | {kind.title} | {kind.remedy} |" for kind in PROBLEM_TYPES.values()]
    return ["| type | status | what it says | what helps |", "| --- | --- | --- | --- |", *rows]


def settings() -> list[str]:
    """A row for each setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`" if field.default != [] else ""
        about = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `UVOS_{name.upper()}` | {default} | {about} |")
    return ["| variable | default | what it is |", "| --- | --- | --- |", *rows]


def filled(text: str) -> str:
    """The page with its tables as the code has them now."""
    for name, rows in {"problems": problems(), "settings": settings()}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(rows) + "\n" + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
