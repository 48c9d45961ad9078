"""Runs that start from a pretraining: planned, shared, checked, carried out."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastvim.errors import UserError
from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.experiments.record import read_plan, write_plan
from fastvim.experiments.runner import carry_out, every_run, to_train
from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import Store, read_run
from fastvim.experiments.worker import _described, _run
from fastvim.experiments.workers import carry_out_with_jobs
from fastvim.reports.page import html_page
from fastvim.reports.study import read_study
from fastvim_cli.main import main

TEXT = """\
name: stages
question: Does it transfer?
base:
  task: linear-probe
  data: {train_images: 40, validation_images: 20, test_images: 20, hflip: 0}
  model: {name: fastvim_femto, patch_size: 4, depth: 1, pooling_scale: auto}
  training: {epochs: 1, batch_size: 20, lr: 0.1, warmup_epochs: 0, optimizer: momentum}
  pretrained:
    masking: {mask_ratio: 0.5, decoder_width: 32, decoder_depth: 1}
    training: {epochs: 1, batch_size: 20, lr: 1e-3, warmup_epochs: 0}
baseline: one
variants:
  one: {model.pooling_scale: 1}
  half: {model.pooling_scale: 0.5}
  auto: {}
  finetune: {task: classification, training.optimizer: adamw, training.layer_decay: 0.5}
  scratch: {task: classification, pretrained: null, model.pooling_scale: 1}
profiles:
  other: {}
  more-hidden: {pretrained.masking.mask_ratio: 0.75}
  narrow:
    variants:
      fine*: {training.epochs: 2}
default_profile: other
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str = TEXT, name: str = "stages.yaml") -> str:
        Path(name).write_text(text)
        return name

    return write


def planned(file, old="", new="", **options):
    assert old in TEXT
    return make_plan(load(file(TEXT.replace(old, new, 1))), **options)


def config_of(plan, name="one") -> RunConfig:
    return plan.variant(name).config


def quietly(event):
    """A listener to whom nothing matters."""


def test_what_a_pretraining_takes_over_and_what_not(file):
    plan = planned(file)
    run = config_of(plan)
    before = run.pretrained.run
    assert (before.task, before.masking.mask_ratio) == ("masked-autoencoding", 0.5)
    assert before.model == run.model.model_copy(update={"pooling_scale": 1.0})
    assert (before.data.train_images, before.data.hflip) == (40, 0.5)
    assert (before.training.optimizer, before.training.lr) == ("adamw", 1e-3)
    assert before.pretrained is None and config_of(plan, "scratch").pretrained is None
    assert RunConfig.from_nested(json.loads(json.dumps(run.nested()))) == run
    origins = plan.variant("one").origins
    assert set(origins) == set(run.flat())
    assert origins["pretrained.masking.mask_ratio"].place == "stages.yaml:9:15"
    assert origins["pretrained.model.depth"].place == "stages.yaml:6:47"


@pytest.mark.parametrize(
    ("sets", "scale"),
    [
        ([], 0.5),
        (["pretrained.masking.mask_ratio=0.9"], 0.1),
        (["pretrained.masking.pooling_divisor=kept"], 1),
        (["model.schedule=[]"], 1),
        (["model.pooling=max"], 1),
    ],
)
def test_auto_is_the_scale_that_pretraining_has_seen(file, sets, scale):
    assert config_of(planned(file, sets=sets), "auto").model.pooling_scale == scale


def test_one_pretraining_for_all_that_share_it(file):
    plan = planned(file, seeds="2")
    runs = identified_runs(plan)
    everything = every_run(runs, Store("results"))
    names = [run.name for run in everything]
    # half and auto are one run, and so are the pretrainings of a seed.
    assert names[:5] == ["pretraining-seed0", "one-seed0", "half-seed0", *names[3:5]]
    assert names[3:5] == ["finetune-seed0", "scratch-seed0"]
    assert names[5] == "pretraining-seed1" and len(names) == 10
    assert runs[0].pretraining.config == runs[3].pretraining.config
    both = identified_runs(
        planned(file, "half: {", "half: {pretrained.model.d_state: 8,model.d_state: 8, ")
    )
    assert [r.pretraining.variant for r in both if r.pretraining] == [
        "pretraining-for-one",
        "pretraining-for-half",
        "pretraining-for-one",
        "pretraining-for-one",
    ]


def test_identity_follows_the_pretraining(file):
    def identity(*sets, variant="one"):
        runs = identified_runs(planned(file, sets=sets, seeds="1"))
        return next(run.identity for run in runs if run.variant == variant)

    same = identity()
    assert identity("pretrained.training.log_every=7") == same
    changed = [
        identity("pretrained.training.lr=1e-4"),
        identity("pretrained.masking.pattern=block"),
        identity("pretrained.data.hflip=0.1"),
        identity("pretrained.interpolate_positions=true"),
    ]
    assert len({same, *changed}) == 5
    scratch = identity(variant="scratch")
    assert identity("pretrained.training.lr=1e-4", variant="scratch") == scratch
    without = TEXT.replace("pretrained: null, ", "")
    assert "pretrained: null" not in without
    runs = identified_runs(make_plan(load(file(without)), seeds="1"))
    assert next(run.identity for run in runs if run.variant == "scratch") != scratch


def test_a_profile_changes_some_variants(file):
    plan = planned(file, profile="narrow")
    epochs = {v.name: v.config.training.epochs for v in plan.variants}
    assert epochs == {"one": 1, "half": 1, "auto": 1, "finetune": 2, "scratch": 1}
    assert plan.variant("finetune").origins["training.epochs"].layer == "profile narrow, fine*"
    with pytest.raises(UserError, match=r"stages.yaml:23:7: .* no variant is called 'fune\*'"):
        planned(file, "fine*", "fune*")
    without = "extends: stages.yaml\nvariants: {finetune: null}\n"
    file()
    assert len(make_plan(load(file(without, "without.yaml")), profile="narrow").variants) == 4


def test_a_forgotten_scale_is_a_warning_that_says_what_to_do(file):
    plan = planned(file, ", pooling_scale: auto}", "}")
    (warning,) = plan.warnings
    assert warning.startswith("auto, finetune: starts from a masked autoencoder (mask ratio 0.5)")
    assert "set model.pooling_scale: 0.5 or auto" in warning
    assert not planned(file).warnings
    kept = planned(file, "0.5, decoder_width", "0.5, pooling_divisor: kept, decoder_width")
    assert not kept.warnings
    result = CliRunner().invoke(main, ["show", file(TEXT.replace(", pooling_scale: auto}", "}"))])
    assert "warning: auto, finetune: starts from a masked autoencoder" in result.output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mask_ratio: 0.5",
            "mask_ratio: 0.99",
            "9:15: pretrained.masking.mask_ratio: 0.99 keeps no",
        ),
        ("mask_ratio: 0.5", "mask_ratio: 0", "9:15: pretrained.masking.mask_ratio: 0 removes none"),
        ("mask_ratio: 0.5", "mask_ratio: 1", "9:15: pretrained.masking.mask_ratio = 1: Input shou"),
        ("mask_ratio: 0.5", "mask_rato: 0.5", "9:15: unknown key 'pretrained.masking.mask_rato', "),
        ("mask_ratio: 0.5", "pattern: blok", "9:15: pretrained.masking.pattern = 'blok': Input"),
        ("depth: 1,", "depth: 1, class_token: middle, schedule: [],", "6:57: pretrained.model.cla"),
        ("    masking", "    model.depth: 3\n    masking", "9:5: pretrained.model.depth = 3, but"),
        (
            "    masking",
            "    model.name: fastvim_pico\n    masking",
            "9:5: pretrained.model.d_model = 48, but",
        ),
        (
            "    masking",
            "    data.image_size: 32\n    masking",
            "9:5: pretrained.model.image_size =",
        ),
        (
            "    masking",
            "    task: linear-prob\n    masking",
            "9:5: pretrained.task = 'linear-prob'",
        ),
        ("    masking", "    data.mixup: 1.0\n    masking", "9:5: pretrained.data.mixup does not"),
        (
            "    masking: {mask_ratio: 0.5, decoder_width: 32, decoder_depth: 1}\n"
            "    training: {epochs: 1, batch_size: 20",
            "    task: classification\n    data.mixup: 0.5\n"
            "    training: {epochs: 1, batch_size: 15",
            "11:27: pretrained.training.batch_size = 15: pretrained.data.mixup pairs",
        ),
        (
            "finetune: {",
            "finetune: {data.cutmix: 1, training.batch_size: 5, ",
            "16:30: training.batch_size = 5: data.cutmix pairs",
        ),
        (
            "    masking",
            "    interpolate_positions: 1\n    masking",
            "9:5: pretrained.interpolate_p",
        ),
        (
            "task: classification, pretrained: null,",
            "pretrained: null,",
            "4:3: task = linear-probe:",
        ),
        (
            "pretrained: null, model.pooling_scale: 1",
            "pretrained: null",
            "6:57: model.pooling_scale =",
        ),
        (
            "task: classification, training.optimizer",
            "training.optimizer",
            "16:41: training.layer_",
        ),
        ("one: {", "one: {masking.mask_ratio: 0.5, ", "13:9: masking.mask_ratio does not apply"),
        (
            "one: {",
            "one: {task: masked-autoencoding, ",
            "13:9: task = masked-autoencoding: it starts",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(file, old, new, message):
    with pytest.raises(UserError) as error:
        planned(file, old, new)
    assert str(error.value).startswith(f"stages.yaml:{message}")


def test_another_image_size_is_interpolated_when_asked(file):
    sets = ["pretrained.data.image_size=32", "pretrained.interpolate_positions=true"]
    run = config_of(planned(file, sets=sets))
    assert run.model.image_size == (28, 28) and run.pretrained.run.model.image_size == (32, 32)


def test_stages_are_carried_out_once_each_and_reported(file, tmp_path):
    plan = planned(file, seeds="1")
    runs, store = identified_runs(plan), Store(tmp_path / "out")
    write_plan(store.output, plan, runs, "fastvim ablate stages.yaml")
    began = []
    outcomes = carry_out(
        runs,
        store,
        lambda e: began.append(e["run"].name) if e["event"] == "begin" else None,
        lambda: False,
    )
    assert [outcome.state for outcome in outcomes] == ["done"] * 5
    assert began == [f"{n}-seed0" for n in ("pretraining", "one", "half", "finetune", "scratch")]
    records = {run.variant: store.lookup(run)[0] for run in runs}
    assert records["one"].run.config == config_of(plan)
    assert "knn_top1" in records["one"].result["metrics"]
    assert read_plan(store.output).runs[0].pretraining == runs[0].pretraining
    # The finished pretraining is not needed again.
    assert len(every_run(runs, store)) == 4
    study = read_study(store.output)
    assert study.results["variants"][0]["scale"]["pretraining_epochs"] == 1
    page = html_page(study)
    assert "pretraining-seed0, for one, half, auto, finetune" in page
    assert "data:image/png;base64," in page


def test_jobs_share_a_pretraining(file, tmp_path):
    plan = planned(file, seeds="1", variants="one,half")
    runs, store = identified_runs(plan), Store(tmp_path / "out")
    assert _run(json.loads(json.dumps(_described(runs[0])))) == runs[0]
    outcomes = carry_out_with_jobs(runs, store, quietly, lambda: False, jobs=2)
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert len(list(store.runs.glob("pretraining-*"))) == 1
    # A run that comes later starts from a pretraining that is there.
    more = identified_runs(planned(file, seeds="1", variants="one,finetune"))
    outcomes = carry_out_with_jobs(more, store, quietly, lambda: False, jobs=2)
    assert [(o.state, o.reused) for o in outcomes] == [("done", True), ("done", False)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_pretraining_that_lost_its_weights_is_trained_again_where_it_is_needed(
    file, tmp_path, jobs
):
    first, second = (
        identified_runs(planned(file, seeds="1", variants=names)) for names in ("one", "one,half")
    )
    store, beside = Store(tmp_path / "out"), Store(tmp_path / "beside")
    carry_out(first, store, quietly, lambda: False)
    pretraining = store.lookup(first[0].pretraining)[0].directory
    weights = (pretraining / "checkpoint.safetensors").read_bytes()
    (pretraining / "checkpoint.safetensors").unlink()
    assert to_train(every_run(first, store), store) == []
    assert to_train([first[0].pretraining], beside) == [first[0].pretraining]
    if jobs > 1:
        outcomes = carry_out_with_jobs(second, store, quietly, lambda: False, jobs)
    else:
        outcomes = carry_out(second, store, quietly, lambda: False)
    assert [(o.state, o.reused) for o in outcomes] == [("done", True), ("done", False)]
    assert jobs > 1 or (pretraining / "checkpoint.safetensors").read_bytes() == weights


def test_runs_whose_pretraining_diverged_say_so(file, tmp_path):
    sets = ["pretrained.training.lr=1e30", "pretrained.training.epochs=3"]
    plan = planned(file, sets=sets, seeds="1", variants="one,scratch")
    runs, store = identified_runs(plan), Store(tmp_path / "out")
    one, scratch = carry_out(runs, store, quietly, lambda: False)
    assert one.state == "failed" and scratch.state == "done"
    assert "the run it starts from, pretraining-seed0, diverged" in one.message
    assert read_run(one.directory).result["error"] == one.message
    options = [part for text in sets for part in ("--set", text)]
    command = ["train", "stages.yaml", "--variant", "one", *options, "-o", str(store.output)]
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1 and one.message in again.output and "its log" not in again.output


def test_train_makes_a_stage_alone(file, tmp_path):
    invoke = CliRunner().invoke
    arguments = ["train", file(), "--variant", "one", "-o", str(tmp_path / "out")]
    result = invoke(main, [*arguments, "--pretraining"])
    assert result.exit_code == 0, result.output
    assert [p.name[:17] for p in (tmp_path / "out" / "runs").glob("*-*")] == ["pretraining-seed0"]
    result = invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "one-seed0 done" in result.output and "knn_top1" in result.output
    again = invoke(main, ["train", file(), "--variant", "scratch", "--pretraining"])
    assert again.exit_code == 2 and "starts from no other run" in again.output
    plan = invoke(main, ["ablate", file(), "--dry-run", "-o", str(tmp_path / "out")])
    assert "pretraining-seed0" in plan.output, plan.output


def test_a_transformer_goes_through_the_same_stages(file, tmp_path):
    timm = "name: timm/vit_tiny_patch16_224, embed_dim: 32, depth: 1, num_heads: 2, patch_size: 4"
    text = TEXT.replace("half: {model.pooling_scale: 0.5}", f"half: {{model: {{{timm}}}}}")
    with pytest.raises(UserError, match=r"needs model\.class_token: none and a"):
        make_plan(load(file(text)))
    text = text.replace("name: timm", "class_token: none, name: timm")
    plan = make_plan(load(file(text)), seeds="1", variants="half")
    runs = identified_runs(plan)
    (outcome,) = carry_out(runs, Store(tmp_path / "out"), quietly, lambda: False)
    assert outcome.state == "done", outcome.message
    assert runs[0].config.flat()["pretrained.model.embed_dim"] == 32
    bad = text.replace("embed_dim: 32", "d_state: 8")
    with pytest.raises(UserError, match=r"14:\d+: model.d_state does not apply to timm/vit_tiny"):
        make_plan(load(file(bad)))
