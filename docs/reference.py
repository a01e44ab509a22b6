"""Generate the tables of docs/limits-and-errors.md: `python -m docs.reference`. A test compares them with the code."""

from pathlib import Path

from service.api.problem_types import PROBLEM_TYPES
from service.settings import Settings

PAGE = Path(__file__).with_name("limits-and-errors.md")


def problems() -> list[str]:
    """Table of the problem types."""
    rows = [
        f"| `{error.type()}` | {error.status} | {error.title} | {error.remedy} |" for error in PROBLEM_TYPES.values()
    ]
    return ["| type | status | title | remedy |", "| --- | --- | --- | --- |", *rows]


def settings() -> list[str]:
    """Table of the settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None or field.default == [] else f"`{field.default}`"
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `UVOS_{name.upper()}` | {default} | {description} |")
    return ["| variable | default | description |", "| --- | --- | --- |", *rows]


def filled(text: str) -> str:
    """The page with its tables generated from the code."""
    for name, rows in {"problems": problems(), "settings": settings()}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(rows) + "\n" + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
