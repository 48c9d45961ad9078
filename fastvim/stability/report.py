"""A review from paths to files: read, find, compare, write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastvim.errors import UserError, nearest
from fastvim.files import write_atomic
from fastvim.stability.readers import curves_of, log_files, read_logs
from fastvim.stability.review import Review, compare, review_curves, to_json
from fastvim.stability.review_plot import FORMATS

STANDARD_OUTPUT = Path("-")
PAGES = (".html", ".htm")


@dataclass(frozen=True)
class Outputs:
    """Where a review goes, None for not at all; `json` may be `-` for standard output."""

    json: Path | None = None
    plot: Path | None = None
    html: Path | None = None
    tensorboard: Path | None = None

    def check(self, logs: Iterable[Path]) -> None:
        """Raise UserError, before any work, on a format unknown or a log that would be lost."""
        if self.plot is not None:
            ending = self.plot.suffix.lstrip(".").lower()
            if ending not in FORMATS:
                raise UserError(
                    f"--plot {self.plot}: the ending says the format, one of .{', .'.join(FORMATS)}"
                    f"{nearest(ending, FORMATS)}"
                )
        if self.html is not None and self.html.suffix.lower() not in PAGES:
            raise UserError(
                f"--html {self.html}: a page ends in {' or '.join(PAGES)}; --html takes the path "
                "behind it as the file to write"
            )
        written = [p for p in (self.json, self.plot, self.html) if p not in (None, STANDARD_OUTPUT)]
        files = {file.resolve() for file in log_files(logs)} if written else set()
        for path in written:
            if path.is_dir():
                raise UserError(f"{path} is a folder; give the file to write")
            if path.exists() and path.resolve() in files:
                raise UserError(f"{path} is one of the logs; writing it would overwrite the log")
        if self.json not in (None, STANDARD_OUTPUT) and not _replaceable(self.json):
            raise UserError(
                f"--json {self.json}: the file is there and no earlier review; --json takes the "
                "path behind it as the file to write: put --json last to write to standard output"
            )

    def write(
        self, reviews: list[Review], baselines: list[Review], lost: list[str]
    ) -> tuple[str, list[Path]]:
        """Write the files; the text for standard output and the paths written.

        lost: what could not be read of the logs, for the page. All is made before any is written;
        raises UserError where it cannot be.
        """
        everything = baselines + reviews
        text = ""
        files: dict[Path, str | bytes] = {}
        if self.json == STANDARD_OUTPUT:
            text = to_json(everything)
        elif self.json is not None:
            files[self.json] = to_json(everything)
        if self.plot is not None:
            from fastvim.stability.review_plot import plot

            files[self.plot] = plot(everything, self.plot.suffix[1:].lower(), baselines)
        if self.html is not None:
            from fastvim.stability.review_page import page

            files[self.html] = page(everything, baselines, lost)
        for path, content in files.items():
            write_atomic(path, content)
        written = list(files)
        if self.tensorboard is not None:
            from fastvim.stability.overlay import write_overlay

            written += write_overlay(everything, self.tensorboard)
        return text, written


def _replaceable(path: Path) -> bool:
    """Whether nothing but an earlier review's JSON is lost by writing `path`."""
    try:
        content = path.read_text(errors="replace")
        entries = json.loads(content) if content.strip() else []
    except FileNotFoundError:
        return True
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and "spike_score" in entry for entry in entries
    )


def review_paths(
    paths: Iterable[Path], tags: tuple[str, ...] = (), baseline: Path | None = None
) -> tuple[list[Review], list[Review], list[str]]:
    """The reviews of all logs at `paths`, and of the baseline, which is not among the first; and
    of logs found in a folder without a value, or that could not be read, what is to be said.

    Raises UserError as reading does.
    """
    base_logs = [] if baseline is None else read_logs([baseline])
    baselines = review_curves(curves_of(base_logs, tags)) if base_logs else []
    known = {Path(entry.curve.path).resolve() for entry in baselines}
    logs = read_logs(paths)
    curves = [curve for curve in curves_of(logs, tags) if Path(curve.path).resolve() not in known]
    reviews = review_curves(curves)
    if baselines:
        compare(reviews, baselines)
    empty = [said for log in base_logs + logs if (said := log.without_values)]
    return reviews, baselines, list(dict.fromkeys(empty))
