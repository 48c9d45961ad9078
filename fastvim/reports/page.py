"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastvim.reports import figures, words
from fastvim.reports.disagreements import disagreements
from fastvim.reports.pictures import run_pictures
from fastvim.reports.study import Study
from fastvim.reports.tables import (
    NAMES,
    PERCENT,
    contrast_notes,
    difference,
    signed,
    spoken_on,
    spread,
)

# What each plot shows, for its caption and for those who cannot see it.
CAPTIONS = {
    "curves": "Lines are means over seeds, bands reach from the lowest to the highest seed.",
    "differences": "Diamonds are means over seeds, bars their intervals, ticks single seeds. "
    "A bar that crosses zero leaves open which variant is better.",
    "costs": "Bars reach from the lowest to the highest seed; variants of equal cost stand side by "
    "side. The dashed line joins the variants that no other beats in both cost and accuracy.",
}
COST_HEADS = {
    "parameters": ("parameters, M", lambda value: f"{value / 1e6:.4g}"),
    "gflops": ("GFLOPs", lambda value: f"{value:.4g}"),
    "train_images_per_second": ("training images/s", lambda value: f"{value:.0f}"),
    "peak_memory_mb": ("peak memory, MB", lambda value: f"{value:.0f}"),
    "seconds": ("seconds a run", lambda value: f"{value:.0f}"),
}


def html_page(study: Study) -> str:
    """The whole page. Every text from files is escaped."""
    environment = Environment(
        loader=PackageLoader("fastvim.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(p_text=words.p_text, setting=setting_text)
    results = study.results
    differing, shared = study.settings()
    environments, differences = _environments(study)
    return environment.get_template("report.html").render(
        results=results,
        study=study,
        title=f"{results['experiment']} ({results['profile']})",
        metric_name=NAMES[results["metric"]],
        answers=words.answers(results),
        sentences=[words.contrast_sentence(contrast) for contrast in results["contrasts"]],
        spikes=words.spike_sentence(results),
        variants=_variants(study),
        metrics=[(name, NAMES[name]) for name in _metrics(results)],
        costs=[(name, head) for name, (head, _) in COST_HEADS.items()],
        contrasts=_contrasts(results),
        disagreements=disagreements(study),
        plots=_plots(study),
        pictures=run_pictures(study),
        captions=CAPTIONS,
        notes=contrast_notes(results),
        other_claims=len(results["claims"]) - len(spoken_on(results)),
        differing=differing,
        shared=shared,
        environment=environments,
        environment_differences=differences,
        colours=len(figures.COLOURS),
    )


def setting_text(value: object) -> str:
    """A setting as it would stand in the YAML file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(setting_text, value))}]"
    return str(value)


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """The metric that is compared first, then the others that some run has."""
    names = [results["metric"], *(name for name in NAMES if name != results["metric"])]
    return [
        name
        for name in names
        if any(v is not None for variant in results["variants"] for v in variant["metrics"][name])
    ]


def _variants(study: Study) -> list[dict[str, Any]]:
    """Rows of the table of results: text, and the exact mean beside it."""
    contrasts = {c["variant"]: c for c in study.results["contrasts"]}
    rows = []
    for variant in study.results["variants"]:
        metrics = {}
        for name in _metrics(study.results):
            values = [value for value in variant["metrics"][name] if value is not None]
            digits = 2 if name in PERCENT else 3
            text = spread(variant["metrics"][name], digits)
            metrics[name] = {"text": text, "value": mean(values) if values else None}
        contrast = contrasts.get(variant["name"])
        rows.append(
            {
                **variant,
                "shown": metrics,
                "difference": difference(contrast) if contrast else "baseline",
                "costs": {
                    name: "-" if variant["cost"].get(name) is None else form(variant["cost"][name])
                    for name, (_, form) in COST_HEADS.items()
                },
            }
        )
    return rows


def _contrasts(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = []
    for contrast in results["contrasts"]:
        digits = 2 if contrast["metric"] in PERCENT else 3
        boot = contrast["bootstrap_interval"]
        effect = contrast["effect_size"]
        shown.append(
            {
                **contrast,
                "text": difference(contrast),
                "side": words.side(contrast),
                "bootstrap": f"[{', '.join(signed(end, digits) for end in boot)}]" if boot else "-",
                "effect": "-" if effect is None else f"{effect:+.2f}",
            }
        )
    return shown


def _environments(study: Study) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What all runs share, and what differs: name -> values, in the order of the runs."""
    flat = []
    for run in study.runs:
        values = dict(run.environment)
        packages = values.pop("packages", {})
        packages = packages if isinstance(packages, dict) else {}
        backend = {"backend of the operator": run.record.result.get("backend")}
        # Every process has its own command; the one that counts is the experiment's.
        values.pop("command", None)
        flat.append({**values, **packages, **backend})
    names = list(dict.fromkeys(name for values in flat for name in values))
    shared: dict[str, str] = {}
    differing: dict[str, list[str]] = {}
    for name in names:
        found = list(dict.fromkeys(setting_text(each.get(name)) for each in flat))
        if len(found) == 1:
            shared[name] = found[0]
        else:
            differing[name] = found
    return shared, differing


def _plots(study: Study) -> dict[str, tuple[Markup, Markup]]:
    """Name -> the plot for wide and for narrow screens."""
    plots = {}
    for name, draw in figures.FIGURES.items():
        pair = []
        for narrow in (False, True):
            figure = draw(study, narrow)
            if figure is not None:
                label = f"{name}-{'narrow' if narrow else 'wide'}"
                svg = figures.render(figure, "svg", label).decode()
                pair.append(inline_svg(svg, label, CAPTIONS[name]))
        if pair:
            plots[name] = (pair[0], pair[1])
    return plots


def inline_svg(svg: str, prefix: str, description: str) -> Markup:
    """Matplotlib's SVG as a part of the page, in the page's colours and type.

    Its identifiers get `prefix`, for several plots share the page. Matplotlib has escaped the
    texts.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]+)"', body)
    assert view_box is not None, "matplotlib always writes a viewBox"
    body = body[body.index(">") + 1 :]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    # Only within tags: a variant may be called like a colour.
    body = re.sub(r"<[^>]+>", lambda tag: _themed(tag.group()), body)
    width = view_box.group(1).split()[2]
    return Markup(
        f'<svg viewBox="{view_box.group(1)}" style="max-width:{float(width) * 1.35:.0f}px" '
        f'role="img"><title>{Markup.escape(description)}</title>{body}'
    )


def _themed(tag: str) -> str:
    tag = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", tag)
    for colour, variable in _variables():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _variables() -> Sequence[tuple[str, str]]:
    own = [(figures.INK, "ink"), (figures.MUTED, "muted"), (figures.GRID, "grid")]
    variants = [(colour, f"v{number}") for number, colour in enumerate(figures.COLOURS)]
    return [*own, (figures.PAPER, "paper"), *variants]
