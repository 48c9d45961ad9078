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
    written: list[Path] = []

    # The figures before the plots: what is written stays, should a later format fail.
    def write(name: str, content: str | bytes) -> None:
        write_atomic(output / name, content)
        written.append(output / name)

    if "json" in formats:
        write("results.json", json.dumps(study.results, indent=2, allow_nan=False) + "\n")
    if "csv" in formats:
        write("table.csv", csv_table(study.results))
    if "md" in formats:
        write("table.md", markdown(study.results))
    if "latex" in formats:
        from fastvim.reports.latex import latex_table

        write("table.tex", latex_table(study.results))
    if "html" in formats:
        from fastvim.reports.page import html_page

        write("report.html", html_page(study))
    forms = [form for form in ("png", "svg") if form in formats]
    if forms:
        from fastvim.reports.figures import FIGURES, render

        for name, draw in FIGURES.items():
            figure = draw(study)
            if figure is None:
                continue
            for form in forms:
                write(f"plots/{name}.{form}", render(figure, form, name))
    return written
