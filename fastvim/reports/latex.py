"""The table for a paper: LaTeX with booktabs."""

from collections.abc import Mapping
from typing import Any

from fastvim.reports.tables import columns, notes, rows

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


def escape(text: object) -> str:
    """Text that LaTeX sets as it stands: every special character escaped, on one line."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(_ESCAPED.get(c, c) for c in shown)


def latex_table(results: Mapping[str, Any]) -> str:
    """table.tex: a `table` to \\input; needs \\usepackage{booktabs}."""
    heads = columns(results)
    title = escape(results["question"] or f"{results['experiment']}, profile {results['profile']}")
    aligned = "l" + "r" * (len(heads) - 2) + "l"
    # Minus signs of numbers are set as such; names keep their hyphens.
    body = [
        [escape(row[0]), *(escape(cell).replace("-", "$-$") for cell in row[1:-1]), escape(row[-1])]
        for row in rows(results)
    ]
    lines = [
        f"% {escape(results['experiment'])}, profile {escape(results['profile'])}",
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{title}}}",
        "  \\resizebox{\\linewidth}{!}{%",
        f"  \\begin{{tabular}}{{{aligned}}}",
        "    \\toprule",
        f"    {_line([escape(head) for head in heads])}",
        "    \\midrule",
        *(f"    {_line(cells)}" for cells in body),
        "    \\bottomrule",
        "  \\end{tabular}}",
        "\\end{table}",
        *(f"% {escape(note)}" for note in notes(results)),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    # A row that begins with a bracket would be read as an option of the line break before it.
    cells = [f"{{}}{cell}" if cell.startswith("[") else cell for cell in cells]
    return " & ".join(cells) + r" \\"
