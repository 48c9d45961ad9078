"""The step of a row: what is damage, what is a resume, and what a new epoch."""

import json

import pytest

from fastvim.stability.readers import read_curves


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("text.csv", "epoch,step,loss\n0,70,4\n1,80,3\n2,9x,2\n3,100,1\n"),
        ("empty.csv", "epoch,step,loss\n0,70,4\n1,80,3\n2,,2\n3,100,1\n"),
        ("thousands.csv", 'step,value\n70,4\n80,3\n"1,000",2\n100,1\n'),
        ("summary.jsonl", '{"step":70,"loss":4}\n{"step":80,"loss":3}\n{"loss":2,"s":9}\n'),
    ],
)
def test_a_row_that_lost_its_step_is_skipped_and_said(tmp_path, name, text):
    # Placed by its number it would be a run that went back, and all before it replaced.
    (tmp_path / name).write_text(text)
    (curve,) = read_curves([tmp_path / name])
    assert curve.steps.tolist() == [70, 80, 100][: len(curve.steps)]
    line = 4 if name.endswith("csv") else 3
    assert curve.lost == [f"{name}: 1 line(s) skipped, the first is line {line}"]


def test_a_row_of_a_document_that_lost_its_step_is_skipped_and_said(tmp_path):
    rows = [{"step": 70, "loss": 4}, {"step": 80, "loss": 3}, {"loss": 2}]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    (curve,) = read_curves([tmp_path / "history.json"])
    assert curve.steps.tolist() == [70, 80]
    assert curve.lost == ["history.json: 1 row(s) skipped, the first is row 3"]


def test_a_summary_without_a_loss_needs_no_step(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step":70,"loss":4,"lr":0.1}\n{"lr":0.0,"total_time_s":1234}\n')
    (curve,) = read_curves([path])
    assert curve.steps.tolist() == [70] and curve.lost == []
