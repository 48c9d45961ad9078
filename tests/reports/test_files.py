"""The files of a report: numbers that agree, text that cannot break out, the same bytes twice."""

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fastvim.errors import UserError
from fastvim.reports import figures, words
from fastvim.reports.curves import RunCurves, loss_band
from fastvim.reports.latex import escape, latex_table
from fastvim.reports.page import html_page
from fastvim.reports.study import read_study
from fastvim.reports.tables import markdown
from fastvim.reports.write import FORMATS, parse_formats, write_report
from fastvim.stability import detect

HOSTILE = "$\\frac{$</td><script>alert(1)</script>&_%#~^|\n\0\u202e\"'{{ 7*7 }}"


class Tags(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(study):
    return html_page(study)


@pytest.fixture
def hostile(study):
    """The study with hostile texts wherever a file could bring them in."""
    text = json.dumps(study.results).replace('"alternating"', json.dumps(HOSTILE))
    results = {**json.loads(text), "question": HOSTILE, "problems": [HOSTILE]}
    results |= {"experiment": HOSTILE, "profile": HOSTILE, "command": HOSTILE}
    variants = {
        HOSTILE if name == "alternating" else name: config
        for name, config in study.plan.variants.items()
    }
    runs = tuple(
        replace(
            run,
            variant=HOSTILE if run.variant == "alternating" else run.variant,
            environment={HOSTILE: HOSTILE},
        )
        for run in study.runs
    )
    plan = replace(study.plan, variants=variants)
    states = ((HOSTILE, 7, HOSTILE),)
    return replace(study, results=results, plan=plan, runs=runs, states=states, commands=(HOSTILE,))


def test_every_format_is_written_and_says_the_same(study, tmp_path):
    written = write_report(study, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    plots = {f"plots/{n}.{f}" for n in ("curves", "differences", "costs") for f in ("png", "svg")}
    tables = {"results.json", "table.csv", "table.md", "table.tex", "report.html"}
    assert names == plots | tables
    results = json.loads((tmp_path / "results.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    for variant, row in zip(results["variants"][:2], rows[:2], strict=True):
        mean = np.mean(variant["metrics"]["top1"])
        assert float(row["top1_mean"]) == pytest.approx(mean)
        for name in ("table.md", "table.tex"):
            (line,) = [
                line
                for line in (tmp_path / name).read_text().splitlines()
                if line.strip().removeprefix("| ").startswith(f"{variant['name']} ")
            ]
            assert f"{mean:.2f}" in line
    pictures, drawings = (list(tmp_path.glob(f"plots/*.{kind}")) for kind in ("png", "svg"))
    assert len(pictures) == len(drawings) > 0
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures)
    for path in drawings:
        ET.parse(path)


def test_the_same_runs_give_the_same_bytes(study, tmp_path):
    for folder in ("a", "b"):
        write_report(study, tmp_path / folder)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_what_training_did_about_spikes_is_in_every_report(output, run_directory):
    lines = [
        {"step": 7, "response": "skip", "reason": "a loss of <9>"},
        {"step": 9, "response": "skip", "reason": "the gradient is not finite"},
    ]
    path = run_directory(output, "columns", 1) / "responses.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    study = read_study(output)
    entries = study.results["variants"][0]["responses"]
    assert [(entry["seed"], entry["step"]) for entry in entries] == [(1, 7), (1, 9)]
    said = "- columns, seed 1: training answered spikes by skip, in steps 7, 9."
    assert said in markdown(study.results).splitlines()
    page = Tags(html_page(study))
    assert "step 7: a loss of <9>; the step was skipped" in page.text
    assert ("section", {"id": "responses"}) in page.tags
    path.unlink()
    assert 'id="responses"' not in html_page(read_study(output))


def test_formats_are_read_from_text():
    assert parse_formats("html, LATEX,html") == ("html", "latex")
    assert parse_formats(None) == FORMATS
    for text in ("htm", "", ",", "html,pdf"):
        with pytest.raises(UserError, match="latex"):
            parse_formats(text)


def test_the_page_needs_nothing_else(page):
    for tag, attributes in Tags(page).tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert value.startswith(("#", "data:,")), (tag, name, value)
    style = re.search("<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_identifiers_on_the_page_are_unique_and_all_are_there(page):
    identifiers = [a["id"] for _, a in Tags(page).tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    used = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'href="#([^"]+)"', page)
    assert used and set(used) <= set(identifiers)


def test_plots_on_the_page_follow_the_colour_scheme(page):
    style = re.search("<style>(.*?)</style>", page, re.DOTALL).group(1)
    plots = page.replace(style, "")
    assert not re.search(r"#[0-9a-f]{6}\b", plots)
    for variable in set(re.findall(r"var\(--(\w+)\)", page)):
        light, dark = (
            re.findall(rf"--{variable}: (#\w+)", part) for part in style.split("dark)", 1)
        )
        assert variable in ("sans", "mono") or (light and dark and light != dark), variable


def test_hostile_texts_stay_texts(study, hostile):
    page = html_page(hostile)
    before, after = Tags(html_page(study)), Tags(page)
    # What was left out is named in bold, which the other page has no need of.
    assert {tag for tag, _ in after.tags} <= {tag for tag, _ in before.tags} | {"b"}
    assert "{{ 7*7 }}" in after.text and "<script>alert(1)" in after.text
    assert "<script" not in page


def test_hostile_texts_do_not_break_plots_tables_or_latex(hostile, tmp_path):
    write_report(hostile, tmp_path)
    for path in tmp_path.glob("plots/*.svg"):
        ET.parse(path)
    markdown = (tmp_path / "table.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    # An indented block is code, whatever stands in it.
    assert not any("<script" in line for line in markdown.splitlines() if line[:4] != "    ")


def test_latex_escapes_every_special_character():
    assert escape("50 % of {a_b} & $x^2$ #1 ~") == (
        r"50 \% of \{a\_b\} \& \$x\textasciicircum{}2\$ \#1 \textasciitilde{}"
    )
    assert escape("\\input{x}\n") == r"\textbackslash{}input\{x\} "


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here to set the table")
def test_latex_sets_the_table(hostile, tmp_path):
    document = (
        r"\documentclass{article}\usepackage{booktabs,graphicx}\usepackage[T1]{fontenc}"
        r"\begin{document}\input{table}\end{document}"
    )
    (tmp_path / "table.tex").write_text(latex_table(hostile.results))
    (tmp_path / "main.tex").write_text(document)
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "main"], cwd=tmp_path, capture_output=True
    )
    assert run.returncode == 0, run.stdout[-2000:]


def test_one_seed_and_no_run_are_reported_too(output, run_directory, tmp_path):
    for directory in (output / "runs").glob("*-seed1-*"):
        shutil.rmtree(directory)
    one = read_study(output)
    page = html_page(one)
    assert "One seed: the difference may be chance alone" in page
    shutil.rmtree(output / "runs")
    nothing = read_study(output)
    written = write_report(nothing, tmp_path / "none")
    assert "nothing to draw" in (tmp_path / "none" / "report.html").read_text()
    assert not any(path.suffix in (".png", ".svg") for path in written)


def contrast(**values):
    known = {
        "metric": "top1",
        "variant": "a",
        "baseline": "b",
        "difference": 1.5,
        "interval": [0.5, 2.5],
        "holm_interval": [0.4, 2.6],
        "p_holm": 0.01,
        "family": 2,
        "confidence": 0.95,
        "verdict_level": 0.04,
        "method": "paired t",
        "seeds": [0, 1, 2],
        "sd": 1.0,
        "notes": [],
        "diverged": {"baseline": [], "variant": []},
    }
    return {**known, **values}


@pytest.mark.parametrize(
    ("values", "side", "says"),
    [
        ({}, "higher", "1.50 points higher"),
        ({"difference": -1.5, "holm_interval": [-3, -0.1]}, "lower", "1.50 points lower"),
        ({"holm_interval": [-0.1, 3]}, "unclear", "cannot be told from chance"),
        ({"difference": 1e-15, "holm_interval": [-1, 1]}, "unclear", "top-1 is the same"),
        ({"diverged": {"baseline": [3], "variant": []}}, "higher", "1.50 points higher"),
        ({"diverged": {"baseline": [], "variant": [3]}}, "unclear", "the survivors alone cannot"),
        (
            {"interval": None, "holm_interval": None, "notes": ["one seed: chance"]},
            "unknown",
            "One seed: chance",
        ),
        ({"difference": None, "interval": None, "holm_interval": None}, "unknown", "no seed"),
    ],
)
def test_sentences_claim_no_more_than_the_interval(values, side, says):
    found = contrast(**values)
    assert words.side(found) == side
    sentence = words.contrast_sentence(found)
    assert says in sentence
    assert ("judged at 96 %" in sentence) == (found["interval"] is not None)
    assert ("Chance alone seldom" in sentence) == (side in ("higher", "lower"))


def test_a_band_is_the_mean_and_range_over_seeds():
    steps = np.arange(1, 301)
    low, high = RunCurves(steps, np.full(300, 1.0)), RunCurves(steps, np.full(300, 3.0))
    short = RunCurves(steps[:150], np.array([*np.full(149, 2.0), np.nan]))
    band, window = loss_band([low, high, short])
    assert window == 3 and len(band.steps) == 100 and band.steps[-1] == 300
    assert (band.mean == 2).all() and (band.low == 1).all() and (band.high == 3).all()
    assert band.seeds[0] == 3 and band.seeds[-1] == 2
    assert loss_band([RunCurves(steps[:1], np.array([np.nan]))]) is None


def test_spikes_are_marked_where_they_are(study):
    steps = np.arange(1, 201)
    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    loss = 2 - 0.002 * steps + noise
    loss[120:124] += (1.0, 3.0, 2.0, 0.5)
    episodes = tuple(detect(steps.tolist(), loss.tolist()))
    curves = RunCurves(steps, loss, {}, episodes)
    runs = tuple(replace(run, curves=curves) for run in study.runs[:1])
    figure = figures.draw_curves(replace(study, runs=runs))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert [line.get_xdata()[0] for line in marks] == [122]
    assert "loss spike" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_divergence_is_marked(study):
    figure = figures.draw_curves(study)
    assert any(line.get_marker() == "X" for line in figure.axes[0].lines)


def test_the_legend_fits_a_phone(study):
    short = dict(zip(study.variants, ("mean", "max", "hot"), strict=True))
    variants = [{**v, "name": short[v["name"]]} for v in study.results["variants"]]
    runs = tuple(replace(run, variant=short[run.variant]) for run in study.runs)
    study = replace(study, runs=runs, results={**study.results, "variants": variants})
    figure = figures.draw_curves(study, narrow=True)
    figure.draw_without_rendering()
    assert "loss no number" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1
