"""Pictures that runs, or the runs they start from, have left in their directories."""

import base64
from dataclasses import dataclass
from pathlib import Path

from fastvim.experiments.store import Run, Store
from fastvim.reports.study import Study

FILE = "picture.png"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 5_000_000


@dataclass(frozen=True)
class RunPicture:
    """A run's name, the variants that it belongs to, and the image as a data URI."""

    name: str
    variants: tuple[str, ...]
    source: str


def run_pictures(study: Study) -> list[RunPicture]:
    """Of each variant's first seed: its own picture and that of its pretraining."""
    found: dict[Path, tuple[str, list[str]]] = {}
    seen: set[str] = set()
    for run in study.runs:
        if run.variant not in seen:
            seen.add(run.variant)
            name = run.record.run.name
            found.setdefault(run.record.directory, (name, []))[1].append(run.variant)
    store = Store(study.folders[0])
    first: dict[str, Run] = {}
    for planned in study.plan.runs:
        first.setdefault(planned.variant, planned)
    for variant, run in first.items():
        if run.pretraining is None or variant not in seen:
            continue
        record, _ = store.lookup(run.pretraining)
        if record is not None:
            found.setdefault(record.directory, (run.pretraining.name, []))[1].append(variant)
    pictures = []
    for directory, (name, variants) in found.items():
        content = _content(directory / FILE)
        if content is not None:
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            ordered = [each for each in study.variants if each in variants]
            pictures.append(RunPicture(name, tuple(ordered), source))
    return pictures


def _content(path: Path) -> bytes | None:
    """The file, if it is a whole picture of ours."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError:
        return None
    return content if content.startswith(SIGNATURE) and len(content) <= LARGEST else None
