"""The review: what it finds, compares, writes, and how the command behaves."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastvim.errors import UserError
from fastvim.stability import detect
from fastvim.stability.curves import LoggedCurve, current, envelope
from fastvim.stability.follow import Follower, sentence
from fastvim.stability.overlay import overlay_points
from fastvim.stability.readers import read_curves
from fastvim.stability.review import compare, review
from fastvim_cli.logs import command

COUNT = 2000
X = np.arange(COUNT)
CLEAN = 2 + 4 * np.exp(-X / 200) + 0.05 * np.random.default_rng(0).standard_normal(COUNT)
SPIKED = CLEAN + 2.0 * (X == 900) + 1.5 * np.exp(-np.maximum(X - 1400, 0) / 10) * (X >= 1400)


def write_csv(path, values, header="step,train_loss"):
    rows = "".join(f"{step},{value!r}\n" for step, value in enumerate(np.asarray(values).tolist()))
    path.write_text(f"{header}\n{rows}")
    return path


def run(*arguments):
    return CliRunner().invoke(command, ["review", *map(str, arguments)])


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "logs").mkdir()
    write_csv(tmp_path / "logs" / "spiked.csv", SPIKED)
    write_csv(tmp_path / "logs" / "clean.csv", CLEAN - 0.5)
    return tmp_path / "logs"


def test_review_is_the_detector(logs):
    (curve,) = read_curves([logs / "spiked.csv"])
    entry = review(curve)
    assert entry.episodes == detect(X, SPIKED)
    assert [episode.start_step for episode in entry.episodes] == [900, 1400]
    assert entry.final_level == pytest.approx(2.0, abs=0.05)
    steps, levels = entry.trend
    assert np.isnan(levels[(steps > 1402) & (steps < 1420)]).all()
    assert entry.share_in_episodes == sum(e.duration for e in entry.episodes) / COUNT


def test_json_of_a_folder(logs, tmp_path):
    result = run(logs, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    clean, spiked = json.loads((tmp_path / "out.json").read_text())
    assert clean["path"] == str(logs / "clean.csv") and clean["episodes"] == []
    assert spiked["tag"] == "train_loss" and spiked["values"] == COUNT
    first = spiked["episodes"][0]
    assert (first["start_step"], first["peak_step"], first["end_step"]) == (900, 900, 900)
    assert first["class"] == "spike" and first["height"] > 20
    assert spiked["spike_score"] > 0 and spiked["lost"] == []


def test_json_on_standard_output_is_nothing_but_json(logs):
    for arguments in ((logs, "--json"), ("--json", logs)):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert [len(log["episodes"]) for log in json.loads(result.stdout)] == [0, 2]


def test_json_has_no_nan(tmp_path):
    values = SPIKED.copy()
    values[1000:] = np.nan
    result = run(write_csv(tmp_path / "a.csv", values), "--json")
    (log,) = json.loads(result.stdout, parse_constant=lambda word: pytest.fail(word))
    assert log["values"] == COUNT
    assert log["episodes"][-1]["class"] == "nonfinite" and log["episodes"][-1]["height"] is None


def test_table_says_what_was_lost(tmp_path):
    path = write_csv(tmp_path / "a.csv", SPIKED)
    path.write_text(path.read_text() + "broken\n")
    result = run(path)
    assert result.exit_code == 0
    assert "2 spikes" in result.output
    assert "Lost:" in result.output and "1 line(s) skipped" in result.output


def test_baseline(logs, tmp_path):
    result = run(logs, "--baseline", logs / "spiked.csv", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    base, other = json.loads((tmp_path / "out.json").read_text())
    assert "comparison" not in base and base["path"].endswith("spiked.csv")
    against = other["comparison"]
    assert against["episodes"] == -2 and against["baseline"] == base["path"]
    assert against["final_level"] == pytest.approx(-0.5, abs=0.02)
    assert against["below_from_step"] == pytest.approx(0, abs=5)


def test_baseline_without_the_tag():
    one = review(LoggedCurve("a", "loss", X, CLEAN))
    others = [review(LoggedCurve("b", tag, X, CLEAN)) for tag in ("x", "y")]
    with pytest.raises(UserError, match=r"the baseline has no tag 'loss'.*x, y"):
        compare([one], others)
    compare([one], others[:1])
    assert one.comparison["below_from_step"] is None
    same = review(LoggedCurve("c", "train/loss", X, CLEAN))
    compare([same], [*others, review(LoggedCurve("b", "train_loss", X, CLEAN))])
    assert same.comparison["tag"] == "train_loss"


def test_the_overlay_is_of_what_was_not_gone_back_over():
    steps, values = np.concatenate([X[:1000], X]), np.concatenate([CLEAN[:1000] + 3, CLEAN])
    at, drawn = overlay_points(review(LoggedCurve("a", "loss", steps, values)))
    assert (np.diff(at) > 0).all() and drawn[at > 500].max() < 3


def test_the_overlay_of_many_episodes_has_the_peak_of_each():
    peaks = np.arange(100, 40000, 97)
    noise = 0.05 * np.random.default_rng(1).standard_normal(40000)
    values = 2 + noise + 3.0 * np.isin(np.arange(40000), peaks)
    entry = review(LoggedCurve("a", "loss", np.arange(40000), values))
    assert len(entry.episodes) > 300
    at, drawn = overlay_points(entry)
    assert len(at) <= 1000 and (np.diff(at) > 0).all()
    assert {e.peak_step for e in entry.episodes} <= set(at[drawn > 4])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_plot(logs, tmp_path, kind):
    path = tmp_path / f"plot.{kind}"
    assert run(logs, "--plot", path).exit_code == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert path.read_bytes().startswith(start)
    if kind == "png":
        assert matplotlib.image.imread(path).std() > 0.05


def test_page_is_self_contained_and_the_same_each_time(logs, tmp_path):
    for name in ("a.html", "b.html"):
        assert run(logs, "--html", tmp_path / name).exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert text.count("<svg") == 2 and "built-in method" not in text
    for outside in ('src="http', 'href="http', "<script", "@import", "url(http"):
        assert outside not in text


def test_page_escapes_names(tmp_path):
    path = write_csv(tmp_path / "a<b>&.csv", CLEAN, 'step,"<script>loss"')
    assert run(path, "--html", tmp_path / "out.html").exit_code == 0
    assert "<script>" not in (tmp_path / "out.html").read_text()


def test_tensorboard_overlay(logs, tmp_path):
    result = run(logs / "spiked.csv", "--write-tensorboard", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    curve, folder = sorted((tmp_path / "runs").iterdir())
    assert (curve.name, folder.name) == ("spiked.csv", "spiked.csv-episodes")
    # What TensorBoard itself keeps of a curve, chosen at random where there are more points.
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 1000})
    accumulator.Reload()
    points = {event.step: event.value for event in accumulator.Scalars("train_loss")}
    assert points[900] == pytest.approx(SPIKED[900]) and points[1400] == pytest.approx(SPIKED[1400])
    # Between, above the noise and below the spikes.
    between = [value for step, value in points.items() if 100 < step < 1390 and step != 900]
    assert min(between) > 2.3 and max(between) < 6 and points[899] < 3
    text = accumulator.Tensors("episodes/train_loss")[0].tensor_proto.string_val[0].decode()
    assert "| spike | 900 | 900 | 900 |" in text
    logged = EventAccumulator(str(curve), size_guidance={"scalars": 1000}).Reload()
    drawn = {event.step: event.value for event in logged.Scalars("train_loss")}
    assert len(drawn) == 1000 and drawn[900] == pytest.approx(SPIKED[900])
    # A second review replaces the first, and findings are no logs: it does not read them.
    assert run(logs / "spiked.csv", "--write-tensorboard", tmp_path / "runs").exit_code == 0
    assert len(list((tmp_path / "runs").rglob("*tfevents*"))) == 2
    with pytest.raises(UserError, match="no log in this folder"):
        read_curves([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "missing.csv: no such file or folder"),
        (["spiked.csv", "--tag", "train_los"], "did you mean 'train_loss'"),
        (["spiked.csv", "--plot", "a.gif"], "the ending says the format"),
        (["spiked.csv", "--json", "."], "is a folder"),
        (["spiked.csv", "--json", "spiked.csv"], "would overwrite the log"),
        (["--json", "spiked.csv", "clean.csv"], "--json spiked.csv: the file is there"),
        (["spiked.csv", "--baseline", "other.csv"], "other.csv: no such file"),
        (["empty.csv"], "no values in it"),
    ],
)
def test_bad_input(logs, monkeypatch, arguments, message):
    from fastvim_cli.main import main

    monkeypatch.chdir(logs)
    (logs / "empty.csv").write_text("")
    result = CliRunner().invoke(main, ["logs", "review", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output and "Traceback" not in result.output
    assert sorted(path.name for path in logs.iterdir()) == ["clean.csv", "empty.csv", "spiked.csv"]
    assert (logs / "spiked.csv").read_text().startswith("step,train_loss")


def test_follower_reports_as_the_log_grows(tmp_path):
    path = tmp_path / "log.csv"
    write_csv(path, SPIKED[:950])
    follower = Follower([tmp_path])
    seen = follower.poll()
    assert [(s.event.what, s.live) for s in seen] == [("started", False), ("finished", False)]
    for end in (1000, 1401, 1500, 2000):
        write_csv(path, SPIKED[:end])
        seen += follower.poll()
    assert [(s.event.what, s.event.episode.start_step) for s in seen[2:]] == [
        ("started", 1400),
        ("finished", 1400),
    ]
    assert seen[-1].live and "spike" in sentence(seen[-1]) and "recovered" in sentence(seen[-1])
    # A run that appears later is followed too, and one written anew is read anew.
    write_csv(tmp_path / "later.csv", SPIKED[:950])
    assert [s.path for s in follower.poll()] == [str(tmp_path / "later.csv")] * 2
    write_csv(path, CLEAN[:100])
    assert follower.poll() == []


def test_follow_command_watches_a_running_training(tmp_path):
    path = write_csv(tmp_path / "log.csv", SPIKED[:1000])
    program = "from fastvim_cli.main import main; main()"
    arguments = ["logs", "review", str(path), "--follow", "--json", str(tmp_path / "out.json")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # A thread reads, so that a line that never comes is a failure and not a hang.
        lines = queue.Queue()
        threading.Thread(
            target=lambda: [lines.put(line) for line in process.stdout], daemon=True
        ).start()
        for what in ("starts an episode", "spike"):
            line = lines.get(timeout=60)
            assert "step 900" in line and what in line
        with open(path, "a") as file:
            file.writelines(f"{step},{SPIKED[step]}\n" for step in range(1000, 1402))
        assert "step 1400 starts an episode" in lines.get(timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    (log,) = json.loads((tmp_path / "out.json").read_text())
    assert log["values"] == 1402 and log["episodes"][-1]["recovered"] is False


def test_envelope_keeps_every_peak():
    values = np.random.default_rng(0).standard_normal(100_000)
    values[[5, 77_777]] = 50, -50
    steps, drawn = envelope(np.arange(100_000), values)
    assert len(drawn) == 3000 and drawn.max() == 50 and drawn.min() == -50
    assert (np.diff(steps) >= 0).all() and (values[steps] == drawn).all()


def test_replaced_values_are_not_drawn():
    steps, values = current(np.array([1, 2, 3, 4, 3, 4, 5]), np.arange(7))
    assert steps.tolist() == [1, 2, 3, 4, 5] and values.tolist() == [0, 1, 4, 5, 6]
