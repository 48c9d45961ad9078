"""What TensorBoard shows beside the scalars that training wrote, under `<output>/runs`.

Each run gets its hyperparameters, final figures and loss spikes; each variant, as a run of its
own, the mean and range of its seeds; the folder itself (the run `.`) the verdict, a layout that
lays the variants over one another, and a few training images. A file is written again only when
what it says has changed, so rebuilding piles nothing up.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastvim.reports import events
from fastvim.reports.curves import Band, loss_band, validation_band
from fastvim.reports.events import Record
from fastvim.reports.examples import example_images
from fastvim.reports.page import setting_text
from fastvim.reports.study import Study, StudyRun
from fastvim.reports.tables import NAMES, markdown
from fastvim.reports.words import answers
from fastvim.stability import Episode
from fastvim.stability.episodes import CLASSES
from fastvim.training.recorded import recorded_summary
from fastvim.training.responses import read_responses

# A leading dot keeps it from being taken for a run.
VARIANTS = ".variants"
BAND = ("mean", "lowest seed", "highest seed")


def write_board(study: Study, output: str | Path) -> None:
    """Write what is missing or has changed under `<output>/runs`, where the study's runs lie.

    Raises UserError where it cannot be written.
    """
    if not study.runs:
        return
    differing, _ = study.settings()
    for directory, runs in _by_directory(study.runs).items():
        events.write_events(directory, _of_run(runs, differing), _finished_at(runs[0]))
    latest = max(_finished_at(run) for run in study.runs)
    folder = Path(output) / "runs"
    for directory, records in _of_variants(study, folder / VARIANTS).items():
        events.write_events(directory, records, latest)
    events.write_events(folder, [*_overview(study), *_examples(study)], latest)


def _by_directory(runs: Iterable[StudyRun]) -> dict[Path, list[StudyRun]]:
    """Variants with the same settings share their runs."""
    found: dict[Path, list[StudyRun]] = {}
    for run in runs:
        found.setdefault(run.record.directory, []).append(run)
    return found


def _finished_at(run: StudyRun) -> float:
    return (run.record.directory / "result.json").stat().st_mtime


def _of_run(runs: list[StudyRun], differing: Mapping[str, list]) -> list[Record]:
    run, result = runs[0], runs[0].record.result
    flat = run.record.run.config.flat()
    hyperparameters = {
        "variant": " = ".join(each.variant for each in runs),
        "seed": str(run.seed),
        **{name: _hyperparameter(flat.get(name)) for name in differing},
    }
    records = [(0, s) for s in events.session(hyperparameters, run.record.state == "done")]
    figures = {
        # The hparams plugin sorts by name and shows the first five: what matters comes first.
        **{f"final/test_{name}": (result.get("metrics") or {}).get(name) for name in NAMES},
        "final/loss_spikes": result.get("spikes"),
        **{f"resources/{name}": value for name, value in (result.get("cost") or {}).items()},
    }
    last = int(result.get("steps") or 0)
    records += [(last, events.scalar(n, v)) for n, v in figures.items() if events.finite(v)]
    records += [
        (
            int(episode.peak_step),
            events.text("loss spikes", _episode_text(episode, run.record.directory)),
        )
        for episode in run.curves.episodes
    ]
    records += [
        (response.step, events.text("responses to spikes", response.sentence))
        for response in read_responses(run.record.directory)
    ]
    return records


def _hyperparameter(value: Any) -> str | float | bool:
    if isinstance(value, (bool, float)):
        return value
    return float(value) if isinstance(value, int) else setting_text(value)


def _episode_text(episode: Episode, directory: Path) -> str:
    height = "not finite"
    if math.isfinite(episode.height_value):
        height = f"{episode.height_value:.3g} above the trend ({episode.height:.1f} deviations)"
    back = "recovered" if episode.recovered else "not recovered"
    cause = recorded_summary(directory, int(episode.start_step))
    said = "" if cause is None else f"\n\nThe recorder: {cause}."
    return (
        f"steps {episode.start_step:g} to {episode.end_step:g}, peak at {episode.peak_step:g}: "
        f"{height}, {back}. Class: {CLASSES[episode.kind]}.{said}"
    )


def _overview(study: Study) -> list[Record]:
    """The verdict, and the layout that lays variants over one another."""
    said = "\n\n".join(f"**{a.word}**: {a.sentence}" for a in answers(study.results))
    metric = study.plan.metric
    variants = [
        events.bands_chart(f"{title}, mean and range over seeds", _band_tags(title))
        for title in ("training loss", f"validation {metric}")
    ]
    every_run = [
        events.lines_chart("training loss", ["^train/loss$"]),
        events.lines_chart(f"validation {metric}", [f"^validation/val_{metric}$"]),
    ]
    return [
        (0, events.text("report", f"{said}\n\n{markdown(study.results)}")),
        (0, events.layout({"variants": variants, "every run": every_run})),
    ]


def _band_tags(title: str) -> tuple[str, str, str]:
    mean, low, high = (f"{title}/{part}" for part in BAND)
    return mean, low, high


def _of_variants(study: Study, folder: Path) -> dict[Path, list[Record]]:
    """The curves of each variant over its seeds, by the directory for them."""
    found: dict[Path, list[Record]] = {}
    for variant in study.variants:
        curves = [run.curves for run in study.runs_of(variant)]
        loss, metric = loss_band(curves), study.plan.metric
        records = _of_band("training loss", loss[0] if loss else None)
        band = validation_band(curves, f"val_{metric}")
        records += _of_band(f"validation {metric}", band)
        name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", variant).lstrip(".-")[:80] or "variant"
        directory = folder / name
        for number in range(2, len(study.variants) + 2):
            if directory not in found:
                break
            directory = folder / f"{name}-{number}"
        found[directory] = records
    return found


def _of_band(title: str, band: Band | None) -> list[Record]:
    if band is None:
        return []
    curves = zip(_band_tags(title), (band.mean, band.low, band.high), strict=True)
    return [
        (int(step), events.scalar(tag, value))
        for tag, curve in curves
        for step, value in zip(band.steps, curve, strict=True)
    ]


def _examples(study: Study) -> list[Record]:
    """A few training images after augmentation, once for each kind of data."""
    records = []
    for name, picture in example_images(study).items():
        tag = f"training images of {name}"
        if isinstance(picture, str):
            records.append((0, events.text(tag, picture)))
        else:
            found = events.image(tag, picture.width, picture.height, picture.png)
            records.append((0, found))
    return records
