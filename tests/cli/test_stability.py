"""`fastvim stability` on real runs, and how it fits into the time there is."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from fastvim.analysis import ledger, load_claims
from fastvim.errors import UserError
from fastvim.experiments import stability
from fastvim.experiments.stability import LEAST_STEPS, MOST_STEPS, Request, fit_to
from fastvim.reports.stability_factors import factor_answers
from fastvim_cli.display import RunProgress
from fastvim_cli.main import main

# Nothing of the time counts here: the steps are set.
OPTIONS = [
    *("--model", "fastvim_femto", "--backbone", "vim", "--lr-ladder", "1,20000", "--seeds", "1"),
    *("--budget", "1000", "--set", "training.steps=14", "--set", "model.patch_size=7"),
    *("--set", "data.train_images=64", "--set", "data.validation_images=10"),
    *("--set", "data.test_images=10", "--set", "training.optimizer=momentum"),
]


def fastvim(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="fastvim")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A rate at which nothing happens and one at which everything breaks."""
    folder = tmp_path_factory.mktemp("stability") / "out"
    result = fastvim("stability", *OPTIONS, "-o", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_it_says_how_long_it_will_take_before_it_starts(study):
    _, output = study
    assert "4 runs of 14 steps (4 variants with their learning rates x1, x20000; 1 seeds)" in output
    assert output.index("budget 1000 min") < output.index("# Stability of femto")


def test_the_table_and_the_results_tell_the_rates_apart(study):
    folder, output = study
    results = json.loads((folder / "results.json").read_text())
    assert [variant["name"] for variant in results["variants"]] == ["vim-with", "vim-without"]
    for variant in results["variants"]:
        calm, wild = variant["runs"]
        assert not calm["diverged"] and not calm["episodes"]
        assert wild["diverged"]
        assert variant["highest_stable_lr"] == calm["lr"] == 0.002
        assert variant["metrics"]["spikes"] == [len(run["episodes"]) for run in (calm, wild)]
        # The broken run counts as its loss at initialisation.
        regret = min(wild["final_loss"] or 99, wild["initial_loss"]) - results["best_loss"]
        expected = (regret + calm["final_loss"] - results["best_loss"]) / 2
        assert variant["lr_sensitivity"] == pytest.approx(expected)
        assert all(run["initial_loss"] >= results["best_loss"] for run in variant["runs"])
    assert sum(variant["spikes"] for variant in results["variants"]) > 0
    table = (folder / "table.md").read_text()
    assert table in output
    assert "| vim-without |" in table and "Wortsman et al. 2023" in table
    assert "No run here has one (-)" in table and "the longest run has 14" in table
    assert "- Claim post-ssm-norm-spikes: " in table
    (answer,) = results["factors"]
    assert (answer["pairs"], answer["unstable_first"], answer["unstable_value"]) == (2, 1, 1)
    assert f"- {answer['sentence']}" in table
    for name in ("loss.png", "sensitivity.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_damaged_record_of_an_episode_is_one_that_nothing_is_said_of(study, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(study[0], copy)
    recorded = list(copy.glob("study/runs/*/episodes/*.json"))
    assert recorded
    for path in recorded:
        path.write_bytes(path.read_bytes()[:40])
    result = fastvim("stability", *OPTIONS, "-o", copy)
    assert result.exit_code == 0, result.output


def test_a_response_is_asked_for_by_set_and_reported(tmp_path):
    """Without the norm among the factors there is nothing to say of the claim about it."""
    options = [*OPTIONS, "--factor", "merge", "--set", "training.response=skip"]
    result = fastvim("stability", *options, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    responses = [r for v in results["variants"] for run in v["runs"] for r in run["responses"]]
    assert responses and {response["response"] for response in responses} == {"skip"}
    table = (tmp_path / "table.md").read_text()
    assert f", {responses[0]['sentence']}." in table
    assert results["verdict"] is None and "Claim" not in table and "norm's cost" not in table
    assert "Factor merge, added against averaged: " in table


def test_factors_are_answered_by_pairs_that_differ_in_one_alone():
    request = Request("pico", backbones=("vim",), factors=("norm", "merge"), ladder=(1.0, 4.0))
    # Adding is unstable wherever there is no norm, at both rates and with all four seeds.
    variants = [
        {
            "name": name,
            "runs": [
                {
                    "lr_multiple": multiple,
                    "seed": seed,
                    "unstable": name == "vim-without-added",
                    "final_loss": None if name == "vim-without-added" else 1.0,
                    "initial_loss": 2.0,
                }
                for multiple in request.ladder
                for seed in range(4)
            ],
        }
        for name in request.groups()
    ]
    norm, merge = factor_answers(variants, request)
    for entry, value, first in ((norm, "without", "with"), (merge, "added", "averaged")):
        assert (entry["value"], entry["first"], entry["pairs"]) == (value, first, 16)
        assert (entry["only_value"], entry["only_first"]) == (8, 0)
        assert (entry["unstable_value"], entry["unstable_first"]) == (8, 0)
        # Two-sided exact: 2 / 2^8, and Holm's correction over two doubles it.
        assert entry["p_value"] == pytest.approx(2 * 2 / 2**8)
        assert entry["loss_difference"] == 0.5
        assert "it is more often unstable" in entry["sentence"]
    variants[-1]["runs"] = []
    norm, merge = factor_answers(variants, request)
    assert (norm["pairs"], norm["p_value"]) == (8, 1.0)
    assert "cannot be told apart from chance" in norm["sentence"]


def test_the_recorder_names_what_broke(study):
    folder, _ = study
    results = json.loads((folder / "results.json").read_text())
    said = [
        sentence
        for variant in results["variants"]
        for run in variant["runs"]
        for sentence in run["attributions"].values()
    ]
    assert any("block" in sentence for sentence in said)
    assert "as the recorder saw it" in (folder / "table.md").read_text()


def test_the_claims_ledger_reads_it(study):
    folder, _ = study
    result = json.loads((folder / "results.json").read_text())
    claims = load_claims()
    rows = ledger({"post-ssm-norm-spikes": claims["post-ssm-norm-spikes"]}, [result])
    assert rows[0]["state"] == "judged"
    assert rows[0]["verdict"] == result["verdict"]["verdict"]


def test_status_and_report_find_its_runs(study):
    result = fastvim("status", study[0])
    assert result.exit_code == 0, result.output
    assert result.output.count(" done ") == result.output.count(" diverged ") == 2, result.output
    result = fastvim("report", study[0])
    assert result.exit_code == 0 and "Written to" in result.output, result.output


def test_the_same_command_finds_everything_done_and_another_is_refused(study, tmp_path):
    folder, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    again = fastvim("stability", *OPTIONS, "-o", copy)
    assert again.exit_code == 0
    assert again.output.count("(already there)") == 4
    assert "as fitted before" in again.output
    other = fastvim("stability", *OPTIONS, "--factor", "merge", "-o", copy)
    assert other.exit_code == 2
    assert "a study with other options" in other.output


def test_a_plan_that_another_process_replaces_is_reported_all_the_same(
    study, tmp_path, monkeypatch
):
    folder, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = copy / "study/experiment.json"
    reported = []

    def replace(progress, event):
        record.write_text(record.read_text().replace('"steps": 14', '"steps": 15'))

    def write(study, request, output):
        reported.append({config.training.steps for config in study.plan.variants.values()})
        return "", []

    monkeypatch.setattr(RunProgress, "__call__", replace)
    monkeypatch.setattr("fastvim.reports.stability.write_stability", write)
    result = fastvim("stability", *OPTIONS, "-o", copy)
    assert result.exit_code == 0 and reported == [{14}], result.output
    assert f"meanwhile {copy / 'study'} was given another plan" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "fastvim_bse"], "did you mean 'fastvim_base'?"),
        (["--lr-ladder", "1,x"], "--lr-ladder '1,x'"),
        (["--lr-ladder", "0"], "numbers above 0"),
        (["--backbone", "mamba"], "'mamba'"),
    ],
)
def test_bad_options_are_one_message(arguments, message, tmp_path):
    result = fastvim("stability", *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["--model", "l"], ["threshold", "--vary", "width"]])
def test_a_model_that_does_not_fit_is_one_message(command, monkeypatch, tmp_path):
    def cost(config):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: 96 bytes")

    monkeypatch.setattr(stability, "_cost", cost)
    result = fastvim("stability", *command, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: vim-with-") and ": out of memory in its first steps" in last
    monkeypatch.setattr(stability, "_cost", lambda config: {}["a mistake"])
    with pytest.raises(KeyError):
        raise fastvim("stability", *command, "-o", tmp_path / "out").exception


def test_steps_then_seeds_then_the_ladder_shrink_to_the_time():
    request = Request("b", ladder=(1.0, 4.0, 16.0), seeds=2, minutes=10)
    available = 0.85 * 600
    # Four groups at 0.1 s a step: 24 runs.
    fit = fit_to([(0.5, 0.1)] * 4, request)
    assert (fit.seeds, fit.ladder) == (2, (1.0, 4.0, 16.0))
    assert fit.seconds(fit.steps) <= available < fit.seconds(fit.steps + 1)
    assert fit_to([(0.0, 1e-6)], request).steps == MOST_STEPS
    slow = fit_to([(1.0, 1.0)] * 4, request)
    assert (slow.seeds, slow.ladder) == (1, (1.0, 4.0, 16.0))
    slower = fit_to([(5.0, 3.0)] * 4, request)
    assert (slower.seeds, slower.ladder) == (1, (16.0,))
    assert slower.steps >= LEAST_STEPS and slower.seconds(slower.steps) <= available
    with pytest.raises(UserError, match="that takes 14"):
        fit_to([(0.0, 6.0)] * 4, request)


def test_factors_make_a_product_and_the_real_size_stays_real():
    request = Request("b", backbones=("vim",), factors=("norm", "precision", "delta_init"))
    groups = request.groups()
    assert len(groups) == 2 * 3 * 3
    assert groups["vim-without-float16-delta-large"] == {
        "model.schedule": [],
        "model.class_token": "middle",
        "model.post_ssm_norm": False,
        "training.precision": "float16",
        "model.dt_min": 0.01,
        "model.dt_max": 1.0,
    }
    fit = fit_to([(0.0, 0.01)], request)
    text = yaml.safe_dump(request.document(fit))
    content = yaml.safe_load(text)
    assert content["base"]["model"]["name"] == "fastvim_base"
    assert content["baseline"]["vim-without-float32-delta-small-lr4"] == (
        "vim-with-float32-delta-small-lr4"
    )
    assert content["variants"]["vim-with-float32-delta-small-lr4"]["training.lr"] == 0.004
