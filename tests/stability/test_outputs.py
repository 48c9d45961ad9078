"""What a review writes, and that it writes over no log."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastvim_cli.main import main

LOG = "step,loss\n1,2.5\n2,2.25\n"


def run(*arguments):
    return CliRunner().invoke(main, ["logs", "review", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # The shell made the first of *.csv the page.
        (["--html", "a.csv", "b.csv"], "--html a.csv: a page ends in .html or .htm"),
        ([".", "--html", "a.csv"], "a page ends in"),
        (["page.html", "--html", "page.html"], "page.html is one of the logs"),
        ([".", "--json", "history.json"], "history.json is one of the logs"),
    ],
)
def test_no_output_takes_the_place_of_a_log(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    logs = {"a.csv": LOG, "b.csv": LOG, "page.html": LOG, "history.json": "[]"}
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == logs


def test_names_are_no_markup(tmp_path):
    (tmp_path / "pool=[mean]").mkdir()
    path = tmp_path / "pool=[mean]" / "a.csv"
    path.write_text("step,loss [/red]\n" + "1,1\n" * 50 + "2,nan\n")
    result = run(path)
    assert result.exit_code == 0, result.output
    shown = "".join(result.stdout.split())  # The columns of the table are folded.
    assert "pool=[mean]/a.csv" in shown and "loss[/red]" in shown


def test_names_are_no_formulas(tmp_path):
    path = tmp_path / "$x$_^$$.csv"
    path.write_text("step,loss $_$\n" + "1,1\n" * 50)
    result = run(path, "--plot", tmp_path / "a.svg", "--html", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert "loss $_$" in (tmp_path / "a.html").read_text()


def test_too_many_curves_for_a_plot_write_nothing(tmp_path):
    for name in range(41):
        (tmp_path / f"{name}.csv").write_text(LOG)
    outputs = [tmp_path / "out.json", tmp_path / "out.svg"]
    result = run(tmp_path, "--json", outputs[0], "--plot", outputs[1])
    assert result.exit_code == 2
    assert "41 curves are too many" in result.stderr and "fewer logs, or write" in result.stderr
    assert not any(path.exists() for path in outputs)


def test_logs_with_names_alike_have_runs_of_their_own(tmp_path):
    for name in ("a b.csv", "a_b.csv", "a_b.csv-episodes"):
        (tmp_path / name).write_text(LOG)
    logs = [tmp_path / "a b.csv", tmp_path / "a_b.csv", tmp_path / "a_b.csv-episodes"]
    assert run(*logs, "--write-tensorboard", tmp_path / "runs").exit_code == 0
    # The curve and the findings of each.
    folders = list((tmp_path / "runs").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [1] * 6


def test_a_baseline_named_in_another_way_is_not_compared_with_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("base.csv", "other.csv"):
        (tmp_path / "runs" / name).write_text(LOG)
    result = run("runs", "--baseline", tmp_path / "runs/base.csv", "--json")
    logs = json.loads(result.stdout)
    assert [Path(log["path"]).name for log in logs] == ["base.csv", "other.csv"]
