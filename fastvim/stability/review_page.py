"""The review as one self-contained page, readable on a phone, dark or light."""

from __future__ import annotations

import html
import re

from jinja2 import Environment
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from fastvim.stability import review_plot
from fastvim.stability.episodes import CLASSES
from fastvim.stability.review import Review
from fastvim.stability.review_table import (
    comparison_cells,
    episode_cells,
    label,
    number,
    recovered,
    words,
)

# Colours drawn by matplotlib that the page turns into its own, which follow dark and light.
PAGE_COLOURS = {
    review_plot.LINE: "var(--line)",
    review_plot.TREND: "var(--ink)",
    review_plot.INK: "var(--ink)",
    review_plot.BASE: "var(--faint)",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Loss spikes: {{ title }}</title>
<style>
:root { --paper: #fff; --ink: #222; --faint: #777; --rule: #ddd; --line: #4c78a8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e4e6e8; --faint: #9aa0a6; --rule: #33383d; --line: #7aa6d6; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif;
  margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { color: var(--faint); font-weight: 500; } .text { text-align: left; }
svg { width: 100%; max-width: 48rem; height: auto; }
.lost { color: #b3261e; } .faint { color: var(--faint); }
@media (prefers-color-scheme: dark) { .lost { color: #f2918b; } }
{% for kind, colour in colours.items() %}.{{ kind }} { color: {{ colour }}; font-weight: 600; }
{% endfor %}
</style>
</head>
<body>
<h1>Loss spikes</h1>
<p>{{ summary }}</p>
{% for line in lost %}<p class="lost">Lost: {{ line }}</p>
{% endfor %}
<div class="scroll"><table>
<tr><th class="text">log</th><th>values</th><th class="text">episodes</th><th>spike score</th>
<th>final level</th>{% if compared %}<th>episodes +/-</th><th>final level +/-</th>
<th>below from step</th>{% endif %}</tr>
{% for run in runs %}<tr><td class="text"><a href="#run{{ loop.index }}" style="color: inherit">
{{- run.label }}</a></td><td>{{ run.logged }}</td><td class="text">{{ run.words }}</td>
<td>{{ run.score }}</td><td>{{ run.final }}</td>
{% if compared %}{% for cell in run.comparison %}<td>{{ cell }}</td>{% endfor %}{% endif %}</tr>
{% endfor %}</table></div>
{% for run in runs %}
<h2 id="run{{ loop.index }}">{{ run.label }}</h2>
<p class="faint">{{ run.path }}, tag {{ run.tag }}</p>
{{ run.svg }}
{% if run.episodes %}<div class="scroll"><table>
<tr><th class="text">class</th><th>start</th><th>peak</th><th>end</th><th>deviations</th>
<th>height</th><th>values</th><th class="text">recovered</th></tr>
{% for episode in run.episodes %}<tr><td class="text {{ episode.kind }}">{{ episode.kind }}</td>
{% for cell in episode.cells %}<td>{{ cell }}</td>{% endfor %}
<td class="text">{{ episode.recovered }}</td></tr>
{% endfor %}</table></div>{% else %}<p>No episodes.</p>{% endif %}
{% endfor %}
<h2>What the words mean</h2>
<dl>{% for kind, meaning in classes.items() %}<dt class="{{ kind }}">{{ kind }}</dt>
<dd>{{ meaning }}</dd>{% endfor %}
<dt>deviations</dt><dd>height above the trend just before, in robust deviations of the noise</dd>
<dt>spike score</dt><dd>OLMo 2's: share of values at least 7 standard deviations from the mean of
the 1,000 before (arXiv 2501.00656)</dd>
<dt>line</dt><dd>the logged values; over it the trend as the detector saw it, outside episodes</dd>
</dl>
</body>
</html>
"""


def page(reviews: list[Review], baselines: list[Review], lost: list[str]) -> str:
    """The page; it loads nothing from anywhere. lost: what could not be read of the logs."""
    compared = any(entry.comparison for entry in reviews)
    episodes = sum(len(entry.episodes) for entry in reviews)
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=", ".join(dict.fromkeys(entry.curve.path for entry in reviews)),
        summary=f"{episodes} episode(s) in {len(reviews)} curve(s).",
        lost=lost,
        runs=[_run(entry, reviews, baselines) for entry in reviews],
        compared=compared,
        colours=review_plot.COLOURS,
        classes=CLASSES,
    )


def _run(entry: Review, reviews: list[Review], baselines: list[Review]) -> dict:
    base = review_plot.baseline_of(entry, baselines)
    return {
        "label": label(entry, reviews),
        "path": entry.curve.path,
        "tag": entry.curve.tag,
        "logged": len(entry.curve.values),
        "words": words(entry),
        "score": f"{100 * entry.spike_score:.3g} %",
        "final": number(entry.final_level),
        "comparison": comparison_cells(entry),
        "svg": Markup(_svg(entry, base)),
        "episodes": [
            {
                "kind": episode.kind,
                "recovered": recovered(episode),
                "cells": episode_cells(episode),
            }
            for episode in entry.episodes
        ],
    }


def _svg(entry: Review, base: Review | None) -> str:
    """The plot of one curve as SVG for the page: its text as text, its colours the page's."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": entry.curve.path + entry.curve.tag}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        panel = figure.subplots()
        panel.patch.set_alpha(0)
        review_plot.draw(panel, entry, base)
        legend = panel.get_legend()
        texts = [panel.xaxis.label, panel.yaxis.label, panel.xaxis.offsetText]
        for text in texts + (legend.get_texts() if legend else []):
            text.set_color(review_plot.INK)
        panel.tick_params(colors=review_plot.INK)
        for spine in panel.spines.values():
            spine.set_color(review_plot.INK)
        drawing = review_plot.save(figure, "svg").decode()
    drawing = drawing[drawing.index("<svg") :]
    for drawn, own in PAGE_COLOURS.items():
        drawing = drawing.replace(drawn, own)
    # The page scales the drawing; a fixed size would not fit a phone.
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    name = html.escape(f"{entry.curve.tag} of {entry.curve.path}: {words(entry)}", quote=True)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
