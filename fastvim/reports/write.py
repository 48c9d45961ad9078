"""A study into files, each written whole."""

import json
from collections.abc import Sequence
from pathlib import Path

from fastvim.errors import UserError, nearest
from fastvim.files import write_atomic
from fastvim.reports.study import Study
from fastvim.reports.tables import csv_table, markdown

FORMATS = ("html", "md", "csv", "latex", "json", "png", "svg")


def parse_formats(text: str | None) -> tuple[str, ...]:
    """`html,md` as names; all of them for None. Raises UserError for an unknown one."""
    if text is None:
        return FORMATS
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in FORMATS:
            raise UserError(
                f"--format {name!r}: there is no such format{nearest(name, FORMATS)}; "
                f"there are {', '.join(FORMATS)}"
            )
    if not names:
        raise UserError(f"--format names none; there are {', '.join(FORMATS)}")
    return names


def write_report(study: Study, output: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write `formats` to `output`: report.html, table.md, table.csv, table.tex, results.json and
    the plots under plots/. The paths written. Raises UserError where they cannot be."""
    output = Path(output)
    files: dict[str, str | bytes] = {}
    if "json" in formats:
        text = json.dumps(study.results, indent=2, allow_nan=False)
        files["results.json"] = f"{text}\n"
    if "csv" in formats:
        files["table.csv"] = csv_table(study.results)
    if "md" in formats:
        files["table.md"] = markdown(study.results)
    if "latex" in formats:
        from fastvim.reports.latex import latex_table

        files["table.tex"] = latex_table(study.results)
    if "html" in formats:
        from fastvim.reports.page import html_page

        files["report.html"] = html_page(study)
    files |= _plots(study, [form for form in ("png", "svg") if form in formats])
    for name, content in files.items():
        write_atomic(output / name, content)
    return [output / name for name in files]


def _plots(study: Study, forms: Sequence[str]) -> dict[str, bytes]:
    if not forms:
        return {}
    from fastvim.reports.figures import FIGURES, render

    found = {}
    for name, draw in FIGURES.items():
        figure = draw(study)
        if figure is not None:
            found |= {f"plots/{name}.{form}": render(figure, form, name) for form in forms}
    return found
