"""The step of a row: what is damage, what is a resume, and what a new epoch."""

import json

import pytest

from fastvim.errors import UserError
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


BATCHES = [{"epoch": e, "batch": b, "loss": 1.0, "norm": 1.0} for e in range(4) for b in range(5)]


def steps_of(tmp_path, rows, tag):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = read_curves([tmp_path / "log.jsonl"], (tag,))
    assert curve.lost == []
    return curve.steps.tolist()


@pytest.mark.parametrize(
    "between",
    [
        [{"epoch": 0, "val_loss": 1.0}, {"epoch": 1, "val_loss": 1.0}],
        [{"epoch": 0, "batch": 2, "val_loss": 1.0}, {"epoch": 1, "batch": 2, "val_loss": 1.0}],
        # Counted from 1, so that it is ahead of the training.
        [{"epoch": 1, "batch": 2, "val_loss": 1.0}, {"epoch": 2, "batch": 2, "val_loss": 1.0}],
    ],
)
def test_validation_between_epochs_moves_no_batch(tmp_path, between):
    rows = [*BATCHES[:5], between[0], *BATCHES[5:10], between[1], *BATCHES[10:]]
    assert steps_of(tmp_path, rows, "loss") == list(range(20))


def test_batches_logged_less_often_keep_their_place(tmp_path):
    rows = [
        row if row["batch"] == 2 else {name: row[name] for name in ("epoch", "batch", "loss")}
        for row in BATCHES
    ]
    assert steps_of(tmp_path, rows, "norm") == [2, 7, 12, 17]


def test_a_run_resumed_at_an_earlier_epoch_is_placed_there(tmp_path):
    again = [*BATCHES[10:], {"epoch": 4, "batch": 0, "loss": 1.0}]
    steps = steps_of(tmp_path, [*BATCHES[:18], *again], "loss")
    assert steps == [*range(18), *range(10, 21)]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("log.jsonl", '{"step": 2, "loss": ' + "9" * 400 + "}"),
        ("log.jsonl", "[" * 100_000),
        ("log.jsonl", '{"a":' * 5000 + "1" + "}" * 5000),
        ("log.csv", '2,"' + "x" * 200_000 + '"'),
    ],
)
def test_a_line_beyond_all_bounds_is_skipped_and_said(tmp_path, name, bad):
    first, last = ("step,loss\n", "1,1") if "csv" in name else ("", '{"step": 1, "loss": 1}')
    (tmp_path / name).write_text(f"{first}{last}\n{bad}\n{last}\n")
    (curve,) = read_curves([tmp_path / name])
    assert curve.values.tolist() == [1, 1] and "1 line(s) skipped" in curve.lost[0]


@pytest.mark.parametrize("name", ["log.json", "metrics"])
def test_a_document_nested_too_deeply_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON: it is nested too deeply"):
        read_curves([tmp_path / name])


def test_an_epoch_that_validation_alone_logs_makes_no_resume_a_new_epoch(tmp_path):
    train = [{"step": step, "loss": 1.0} for step in range(20)]
    first, second = ({"epoch": e, "step": 10 * e, "val_loss": 1.0} for e in (1, 2))
    rows = [*train[:10], first, *train[10:], second, *train[15:]]
    assert steps_of(tmp_path, rows, "loss") == [*range(20), *range(15, 20)]
