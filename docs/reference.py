"""Generate the tables of docs/limits-and-errors.md and docs/operation.md: `python -m docs.reference`.

A test compares them with the code.
"""

from pathlib import Path

from service.api.problem_types import PROBLEM_TYPES
from service.jobs.metrics import families
from service.settings import Settings

PAGE = Path(__file__).with_name("limits-and-errors.md")
OPERATION_PAGE = Path(__file__).with_name("operation.md")


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


def metrics() -> list[str]:
    """Table of the metrics."""
    rows = []
    for family in families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return ["| metric | type | description |", "| --- | --- | --- |", *rows]


TABLES = {PAGE: {"problems": problems, "settings": settings}, OPERATION_PAGE: {"metrics": metrics}}


def filled(page: Path) -> str:
    """A page with its tables generated from the code."""
    text = page.read_text(encoding="utf-8")
    for name, rows in TABLES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(rows()) + "\n" + end + after
    return text


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(filled(page), encoding="utf-8")
