"""Text logs as frameworks write them, folders of logs, and what is said of bad ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fastvim.errors import UserError
from fastvim.stability.curves import is_loss
from fastvim.stability.follow import Follower
from fastvim.stability.readers import read_curves
from fastvim_cli.main import main


def write_events(path, points):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for step, value in points:
            summary = Summary(value=[Summary.Value(tag="train/loss", simple_value=value)])
            writer.write(Event(wall_time=1e9, step=step, summary=summary).SerializeToString())


LOGS = {
    "plain.csv": ("step,loss,lr\n1,2.5,0.1\n2,2.25,0.1\n", "loss", [1, 2], [2.5, 2.25]),
    "bare.csv": ("1,2.5\n5,2.25\n", "value", [1, 5], [2.5, 2.25]),
    "one.txt": ("2.5\n2.25\n", "value", [0, 1], [2.5, 2.25]),
    "semicolon.csv": ("step;loss\n1;2.5\n2;2.25", "loss", [1, 2], [2.5, 2.25]),
    "wandb.csv": (
        '"Step","mae - train_loss","mae - train_loss__MIN","mae - train_loss__MAX"\n'
        '"0","2.5","2.5","2.5"\n"50","2.25","2.25","2.25"\n',
        "mae - train_loss",
        [0, 50],
        [2.5, 2.25],
    ),
    "tensorboard.csv": (
        "Wall time,Step,Value\n1700000000.1,10,2.5\n1700000001.1,20,2.25\n",
        "Value",
        [10, 20],
        [2.5, 2.25],
    ),
    "lightning.csv": (
        "epoch,step,train_loss,val_acc\n0,49,2.5,\n0,99,,0.5\n0,99,2.25,\n",
        "train_loss",
        [49, 99],
        [2.5, 2.25],
    ),
    "keras.csv": ("epoch,accuracy,loss\n0,0.1,2.5\n1,0.2,2.25\n", "loss", [0, 1], [2.5, 2.25]),
    # A batch number starts over each epoch; that is no resume.
    "batches.csv": (
        "epoch,batch,loss\n0,0,4\n0,1,3\n1,0,2\n1,1,1\n",
        "loss",
        [0, 1, 2, 3],
        [4, 3, 2, 1],
    ),
    "resumed.csv": (
        "step,loss\n1,4\n2,3\nstep,loss\n2,3.5\n3,2\n",
        "loss",
        [1, 2, 2, 3],
        [4, 3, 3.5, 2],
    ),
    "detectron2.json": (
        '{"iteration": 19, "total_loss": 2.5, "lr": 0.1}\n{"iteration": 39, "total_loss": 2.25}\n',
        "total_loss",
        [19, 39],
        [2.5, 2.25],
    ),
    "nested.jsonl": (
        '{"step": 1, "train": {"loss": 2.5}, "name": "a"}\n{"step": 2, "train": {"loss": "NaN"}}\n',
        "train/loss",
        [1, 2],
        [2.5, float("nan")],
    ),
    "trainer_state.json": (
        json.dumps(
            {
                "best_metric": None,
                "log_history": [
                    {"epoch": 0.1, "loss": 2.5, "step": 10},
                    {"epoch": 0.2, "loss": 2.25, "step": 20},
                    {"epoch": 0.2, "eval_runtime": 3.0, "step": 20},
                ],
            },
            indent=2,
        ),
        "loss",
        [10, 20],
        [2.5, 2.25],
    ),
    "history.json": ('{"loss": [2.5, 2.25], "acc": [0.1, 0.2]}', "loss", [0, 1], [2.5, 2.25]),
}


@pytest.mark.parametrize("name", LOGS)
def test_dialects(tmp_path, name):
    text, tag, steps, values = LOGS[name]
    (tmp_path / name).write_text(text)
    (curve,) = read_curves([tmp_path / name])
    assert curve.tag == tag
    assert curve.steps.tolist() == steps
    assert curve.values.tolist() == pytest.approx(values, nan_ok=True)
    assert curve.lost == [] and curve.path == str(tmp_path / name)


def test_words_for_no_number(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,2.5\n2,nan\n3,\n4,None\n5,inf\n")
    (curve,) = read_curves([path])
    # An empty cell was not logged; NaN and infinity were.
    assert curve.steps.tolist() == [1, 2, 5] and curve.lost == []


def test_bad_lines_are_counted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,2.5\n2,2.4,9\n3,2.3\nx\n4,oops\nnan,1\n5,2.2\n6,")
    (curve,) = read_curves([path])
    assert curve.steps.tolist() == [1, 3, 5]
    assert curve.lost == ["log.csv: 4 line(s) skipped, the first is line 3"]
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"st\n[1]\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    (curve,) = read_curves([path])
    assert curve.steps.tolist() == [1, 2]
    assert "2 line(s) skipped" in curve.lost[0] and "ends inside a line" in curve.lost[1]


def test_losses_by_name():
    losses = "loss train/loss val_loss Loss mlm-loss totalLoss closs perplexity losses/cls ce_loss"
    others = "lr grad_norm loss_scale kd_loss_weight lossless glossy accuracy x__MAX best_loss"
    assert [name for name in losses.split() if not is_loss(name)] == []
    assert [name for name in others.split() if is_loss(name)] == []


def test_folders_are_searched(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        write_events(tmp_path / run / "events.out.tfevents.99.h", [(0, 3.0), (1, 2.0)])
        (tmp_path / run / "history.csv").write_text("step,loss\n1,1\n")
    # A second file of run b, written when it was resumed; the name sorts before the first.
    write_events(tmp_path / "b" / "events.out.tfevents.1000.a", [(1, 2.5), (2, 1.0)])
    write_events(tmp_path / "a" / "events.out.tfevents.101.fastvim-review", [(9, 9.0)])
    write_events(tmp_path / "a" / "events.out.tfevents.102.fastvim", [(9, 9.0)])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.csv").write_text("step,loss\n1,1\n")
    (tmp_path / "c" / "config.json").write_text("{}")
    (tmp_path / "c" / "scores.csv").write_text("name,score\nx,1\n")
    curves = read_curves([tmp_path])
    found = {curve.path.removeprefix(str(tmp_path)): curve.steps.tolist() for curve in curves}
    assert found == {"/a": [0, 1], "/b": [0, 1, 1, 2], "/c/metrics.csv": [1]}


def test_a_followed_run_that_is_resumed_goes_on_in_its_next_file(tmp_path):
    rng = np.random.default_rng(0)
    values = 2 + 0.05 * rng.standard_normal(500)
    values[400] = 4
    points = list(enumerate(values.tolist()))
    write_events(tmp_path / "events.out.tfevents.99.h", points[:300])
    follower = Follower([tmp_path])
    assert follower.poll() == []
    write_events(tmp_path / "events.out.tfevents.1000.h", points[300:])
    seen = follower.poll()
    assert [(s.path, s.event.what, s.event.episode.start_step) for s in seen] == [
        (str(tmp_path), "started", 400),
        (str(tmp_path), "finished", 400),
    ]


def test_what_a_resumed_history_still_has_is_not_told_as_new(tmp_path):
    lines = ["step,epoch,loss,lr,grad_norm", *(f"{n},1,{2 + n % 3 / 10},0,1" for n in range(90))]
    lines[60] = "59,1,nan,0,1"
    path = tmp_path / "history.csv"
    write_events(tmp_path / "events.out.tfevents.99.h", [(9, 2.0), (19, 2.0)])
    path.write_text("\n".join([*lines[:60], ""]))
    follower = Follower([tmp_path])
    assert follower.poll() == []
    path.write_text("\n".join([*lines, ""]))
    seen = follower.poll()
    assert [(s.path, s.tag, s.event.what, s.live) for s in seen] == [
        (str(tmp_path), "train/loss", "started", True),
        (str(tmp_path), "train/loss", "finished", True),
    ]
    path.write_text("\n".join([*lines[:80], ""]))
    assert [s.live for s in follower.poll()] == [False, False]


def test_checkpoints_of_a_run_are_one_log(tmp_path):
    for step in (10, 9, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        rows = [{"step": n, "loss": 1.0} for n in range(step)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    (curve,) = read_curves([tmp_path])
    assert len(curve.values) == 100


def test_tags_are_chosen(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,train_loss,val_loss,grad_norm\n1,1,2,3\n")
    assert [c.tag for c in read_curves([path])] == ["train_loss", "val_loss"]
    assert [c.tag for c in read_curves([path], ("grad_norm",))] == ["grad_norm"]
    assert [c.tag for c in read_curves([path], ("*_loss", "val_loss"))] == [
        "train_loss",
        "val_loss",
    ]


@pytest.mark.parametrize(
    ("name", "text", "tags", "message"),
    [
        ("a.csv", "", (), "a.csv: no values in it"),
        ("a.csv", "step,loss\n", (), "a.csv: no values in it"),
        ("a.csv", "step,acc,lr\n1,2,3\n", (), "no tag is a loss.*--tag from: acc, lr"),
        (
            "a.csv",
            "step,loss\n1,2\n",
            ("los",),
            "there are: loss, did you mean 'loss'",
        ),
        ("a.json", '{"a": [1, 2', (), "a.json is not JSON"),
        ("a.jsonl", "[]\n", (), "no values in it .*1 line.s. skipped"),
        ("events.out.tfevents.1.h", "", (), "no values in it"),
    ],
)
def test_bad_logs(tmp_path, name, text, tags, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_curves([tmp_path / name], tags)


def test_missing_paths(tmp_path):
    (tmp_path / "metrics.csv").write_text("1\n")
    with pytest.raises(UserError, match=r"metric.csv: no such file.*did you mean 'metrics.csv'"):
        read_curves([tmp_path / "metric.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no log in this folder"):
        read_curves([tmp_path / "empty"])
    (tmp_path / "empty" / "a.csv").write_text("step,acc,lr\n1,2,3\n")
    with pytest.raises(UserError, match="--tag from: acc, lr"):
        read_curves([tmp_path / "empty"])


def test_a_damaged_log_in_a_folder_is_named_beside_the_others(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good/log.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "bad").mkdir()
    damaged = tmp_path / "bad/events.out.tfevents.1.h"
    damaged.write_bytes(b"x" * 100)
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["logs", "review", str(tmp_path), "--html", str(page)])
    said = f"{tmp_path}/bad: no values in it ({damaged.name}: 100 bytes skipped"
    assert result.exit_code == 0, result.output
    assert f"Lost: {said}" in result.stderr and f"Lost: {said}" in page.read_text()
    with pytest.raises(UserError, match=r"no values in it .*100 bytes skipped"):
        read_curves([tmp_path / "bad"])


def test_json_that_was_torn_in_a_folder_is_named_beside_the_others(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,2\n")
    torn = tmp_path / "run/metrics.json"
    torn.parent.mkdir()
    torn.write_text('{"loss": [1, 2')
    result = CliRunner().invoke(main, ["logs", "review", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"Lost: {torn}: no values in it ({torn} is not JSON: Expecting" in result.stderr
    assert "log.csv" in result.stdout
    (tmp_path / "log.csv").unlink()
    result = CliRunner().invoke(main, ["logs", "review", str(tmp_path)])
    assert result.exit_code == 2 and "is not JSON" in result.stderr


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("name", ["metrics.json", "broken.csv"])
def test_a_file_that_cannot_be_read_is_named_beside_the_others(name, tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,2\n")
    broken = tmp_path / name
    broken.symlink_to("/proc/self/mem")  # Reading its start is an error, for root too.
    result = CliRunner().invoke(main, ["logs", "review", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"Lost: {broken}: no values in it (cannot read {broken}: " in result.stderr
    assert "log.csv" in result.stdout
    result = CliRunner().invoke(main, ["logs", "review", str(broken)])
    assert result.exit_code == 2 and f"cannot read {broken}: " in result.stderr


def test_damage_to_the_baseline_is_named_too(tmp_path):
    for name in ("mine", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "base/empty.jsonl").touch()
    command = ["logs", "review", str(tmp_path / "mine"), "--baseline", str(tmp_path / "base")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert f"Lost: {tmp_path}/base/empty.jsonl: no values in it" in result.stderr
    # Once, where the baseline is one of those reviewed.
    result = CliRunner().invoke(main, [*command, str(tmp_path / "base")])
    assert result.stderr.count("Lost: ") == 1
