"""What TensorBoard reads, read back with TensorBoard's own reader."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from fastvim.experiments.store import Store
from fastvim.reports.events import write_events
from fastvim.reports.study import read_study
from fastvim.reports.tensorboard import write_board
from fastvim.stability import detect

EVERYTHING = {"tensors": 0, "images": 0, "scalars": 0}

WRITE_AGAIN = """
import sys
from fastvim.reports.study import read_study
from fastvim.reports.tensorboard import write_board
write_board(read_study(sys.argv[1]), sys.argv[1])
"""


def read(directory):
    return EventAccumulator(str(directory), size_guidance=EVERYTHING).Reload()


def texts(board, tag):
    key = next(key for key in board.Tags()["tensors"] if key.startswith(tag))
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in board.Tensors(key)]


def value(event):
    proto = event.tensor_proto
    return (
        np.frombuffer(proto.tensor_content, np.float32)
        if proto.tensor_content
        else np.array(proto.float_val)
    )[0]


def files(output):
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in (output / "runs").rglob("*.fastvim")
    }


@pytest.fixture(scope="module")
def board(finished, tmp_path_factory):
    """An output folder with what TensorBoard reads."""
    folder = tmp_path_factory.mktemp("board") / "out"
    shutil.copytree(finished, folder)
    write_board(read_study(folder), folder)
    return folder


def test_every_run_has_its_hyperparameters_and_final_figures(board):
    study = read_study(board)
    for run in study.runs:
        events = read(run.record.directory)
        content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        session = metadata.parse_session_start_info_plugin_data(content)
        assert session.hparams["variant"].string_value == run.variant
        assert session.hparams["seed"].string_value == str(run.seed)
        lr = run.record.run.config.training.lr
        assert session.hparams["training.lr"].number_value == lr
        assert session.hparams["model.schedule"].string_value.startswith("[")
        if run.record.state == "done":
            (final,) = events.Tensors("final/test_top1")
            assert value(final) == pytest.approx(run.record.result["metrics"]["top1"])
            assert final.step == run.record.result["steps"]
            # What training wrote is still there.
            assert len(events.Scalars("train/loss")) > 0


def test_variants_lie_over_one_another_in_the_layout(board):
    events = read(board / "runs")
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    variants = layout.category[0]
    assert variants.title == "variants"
    study = read_study(board)
    for chart in variants.chart:
        (series,) = chart.margin.series
        for variant in ("columns", "alternating"):
            found = read(board / "runs" / ".variants" / variant)
            for tag in (series.value, series.lower, series.upper):
                assert tag in found.Tags()["tensors"]
    steps = [run.curves.loss for run in study.runs_of("columns")]
    curve = read(board / "runs" / ".variants" / "columns").Tensors("training loss/mean")
    assert [value(e) for e in curve] == pytest.approx(np.mean(steps, axis=0), rel=1e-5)


def test_examples_and_report_are_there_once(board):
    events = read(board / "runs")
    (tag,) = events.Tags()["images"]
    (image,) = events.Images(tag)
    assert "fashion-mnist-subset" in tag
    assert image.encoded_image_string[:4] == b"\x89PNG"
    ((_, text),) = texts(events, "report")
    assert "columns" in text


def test_a_divergence_and_a_spike_are_marked_as_text(board, tmp_path):
    study = read_study(board)
    (hot,) = [run for run in study.runs if run.variant == "hot" and run.seed == 0]
    marks = texts(read(hot.record.directory), "loss spikes")
    assert marks[0][0] == hot.record.result["diverged_step"]
    assert "NaN or infinity" in marks[0][1]
    steps = np.arange(1, 201)
    loss = 2 + np.random.default_rng(0).normal(0, 0.01, 200)
    loss[120:124] += (1.0, 3.0, 2.0, 0.5)
    curves = replace(hot.curves, episodes=tuple(detect(steps.tolist(), loss.tolist())))
    directory = shutil.copytree(hot.record.directory, tmp_path / "out" / "runs" / "run")
    (directory / "episodes").mkdir()
    said = json.dumps({"summary": "block 1, state (rms), grew 9-fold"})
    (directory / "episodes" / f"{curves.episodes[0].start_step:g}.json").write_text(said)
    line = json.dumps({"step": 121, "response": "skip", "reason": "a loss of 9"})
    (directory / "responses.jsonl").write_text(line + "\n")
    run = replace(hot, curves=curves, record=replace(hot.record, directory=directory))
    write_board(replace(study, runs=(run,)), tmp_path / "out")
    ((step, text),) = texts(read(directory), "loss spikes")
    assert step == 122 and "recovered" in text
    assert text.endswith("The recorder: block 1, state (rms), grew 9-fold.")
    response = (121, "step 121: a loss of 9; the step was skipped")
    assert texts(read(directory), "responses to spikes") == [response]


def test_writing_again_changes_nothing_and_piles_nothing_up(output):
    write_board(read_study(output), output)
    first = files(output)
    # Another process, for mappings have another order in each.
    subprocess.run([sys.executable, "-c", WRITE_AGAIN, output], check=True)
    assert files(output) == first
    # A changed result replaces the file by a later one.
    study = read_study(output)
    changed = replace(study.runs[0], variant="renamed")
    write_board(replace(study, runs=(changed, *study.runs[1:])), output)
    after = files(output)
    assert len(after) == len(first)
    new, old = sorted(set(after) - set(first)), sorted(set(first) - set(after))
    assert any(run.startswith(f"runs/{changed.record.directory.name}/") for run in new)
    assert all(later > earlier for later, earlier in zip(new, old, strict=True))


@pytest.mark.parametrize("what", ["folder", "broken link", "link to itself"])
def test_what_has_the_name_of_a_board_and_is_none_does_not_stop_it(tmp_path, what):
    odd = tmp_path / "events.out.tfevents.0000000007.fastvim"
    if what == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(odd.name if what == "link to itself" else "nowhere")
    for _ in range(2):
        write_events(tmp_path, [], 1.0)
        files = [path for path in tmp_path.iterdir() if path != odd]
        assert len(files) == 1 and files[0].read_bytes()
    assert odd.is_dir() == (what == "folder") and not odd.is_symlink()


def test_the_board_is_no_run(board):
    records, problems = Store(board).all_runs()
    assert len(records) == 6 and problems == []


def test_hostile_variant_names_stay_in_their_folder(output):
    study = read_study(output)
    names = {"columns": "..", "alternating": "/a/b", "hot": "../../up"}
    results = {
        **study.results,
        "variants": [{**v, "name": names[v["name"]]} for v in study.results["variants"]],
    }
    runs = tuple(replace(run, variant=names[run.variant]) for run in study.runs)
    before = {path for path in output.parent.rglob("*")}
    write_board(replace(study, results=results, runs=runs), output)
    new = {path for path in output.parent.rglob("*")} - before
    assert new and all((output / "runs") in path.parents for path in new)
    assert len(list((output / "runs" / ".variants").iterdir())) == 3
