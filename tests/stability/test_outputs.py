"""What a review writes, and that it writes over no log."""

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
