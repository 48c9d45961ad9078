"""From files, profiles and options to resolved runs, and the errors on the way."""

import json
from pathlib import Path

import pytest

from fastvim.errors import UserError
from fastvim.experiments.documents import read_document
from fastvim.experiments.experiment import load, shipped
from fastvim.experiments.identity import run_identity
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.experiments.schema import RunConfig, json_schema, known_keys
from fastvim.experiments.template import starting_file

TEXT = """\
name: small
question: Which?
base:
  data: {name: fashion-mnist-subset, train_images: 100}
  model:
    name: fastvim_femto
    patch_size: 4
  training: {epochs: 2, batch_size: 10, lr: 1e-3, warmup_epochs: 0}
baseline: one
variants:
  one: {}
  two: {model.pooling: max}
seeds: 3
profiles:
  short: {training.epochs: 1, seeds: [0, 4]}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str = TEXT, name: str = "small.yaml") -> str:
        Path(name).write_text(text)
        return name

    return write


def test_the_experiment_in_the_readme_can_be_planned(file):
    readme = Path(__file__).parents[2] / "README.md"
    text = readme.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    plan = make_plan(load(file(text)))
    assert [v.name for v in plan.variants] == ["alternating", "columns-only", "vim"]


def test_layers_and_where_values_came_from(file):
    plan = make_plan(load(file()), "short", sets=["training.lr=0.5"], grid=["model.d_state=4,8"])
    assert [v.name for v in plan.variants] == [
        "one+d_state=4",
        "one+d_state=8",
        "two+d_state=4",
        "two+d_state=8",
    ]
    assert [v.baseline for v in plan.variants] == [
        None,
        "one+d_state=4",
        "one+d_state=4",
        "one+d_state=8",
    ]
    two = plan.variants[3]
    assert (two.config.model.pooling, two.config.model.d_state) == ("max", 8)
    assert (two.config.training.lr, two.config.training.epochs) == (0.5, 1)
    assert plan.seeds == (0, 4)
    origins = {key: (o.layer, o.place) for key, o in two.origins.items()}
    assert origins["model.pooling"] == ("variant two", "small.yaml:12:9")
    assert origins["model.patch_size"] == ("base", "small.yaml:7:5")
    assert origins["training.epochs"][0] == "profile short"
    assert origins["training.lr"][0] == "--set"
    assert origins["model.d_state"][0] == "--grid"
    assert origins["model.d_model"][0] == "preset fastvim_femto"
    assert origins["model.num_classes"][0] == "data set"
    assert origins["model.expand"][0] == "default"
    assert set(origins) == set(two.config.flat())


def test_grid_values_that_look_alike_have_names_of_their_own(file):
    columns = "col," * 11
    grid = [f"model.schedule=[{columns}row],[{columns}col]"]
    plan = make_plan(load(file()), grid=grid, variants="one")
    cut = f"one+schedule={'col-' * 10}"
    assert [v.name for v in plan.variants] == [cut, f"{cut}-2"]
    assert [v.config.model.schedule[-1] for v in plan.variants] == ["row", "col"]
    with pytest.raises(UserError, match="the same value comes twice"):
        make_plan(load("small.yaml"), grid=["model.d_state=4,8,4"])


def test_nested_and_dotted_names_mean_the_same(file):
    dotted = TEXT.replace(
        "  model:\n    name: fastvim_femto\n    patch_size: 4\n",
        "  model.name: fastvim_femto\n  model.patch_size: 4\n",
    )
    assert dotted != TEXT
    first = make_plan(load(file())).variants[0].config
    assert make_plan(load(file(dotted, "dotted.yaml"))).variants[0].config == first


def test_extends_merges_by_name(file):
    file()
    child = """\
extends: small.yaml
base: {model.depth: 1}
variants:
  two: {model.d_state: 8}
  three: {model.post_ssm_norm: false}
seeds: 1
"""
    plan = make_plan(load(file(child, "child.yaml")))
    assert plan.experiment.name == "child" and plan.experiment.question == "Which?"
    configs = {v.name: v.config.model for v in plan.variants}
    assert list(configs) == ["one", "two", "three"]
    assert (configs["two"].pooling, configs["two"].d_state, configs["two"].depth) == ("max", 8, 1)
    assert plan.variants[0].origins["model.name"].layer == "base of small"
    without = make_plan(load(file("extends: small.yaml\nvariants: {two: null}\n", "w.yaml")))
    assert [v.name for v in without.variants] == ["one"]


def test_what_an_extending_file_says_is_stronger_than_inherited_profiles(file):
    file(TEXT.replace("seeds: [0, 4]}", "seeds: [0, 4], training.batch_size: 20, data.workers: 1}"))
    file("extends: small.yaml\nbase: {training.epochs: 5, data.workers: 2}\n", "middle.yaml")
    child = "extends: middle.yaml\nbase: {data.workers: 3}\nseeds: 1\n"
    plan = make_plan(load(file(child, "child.yaml")), "short")
    values = plan.variants[0].config
    assert (values.training.epochs, values.training.batch_size, values.data.workers) == (5, 20, 3)
    origin = plan.variants[0].origins["training.epochs"]
    assert (origin.layer, origin.place) == ("base of middle", "middle.yaml:2:8")
    assert plan.seeds == (0,)
    own = child + "profiles: {short: {training.epochs: 7, data.workers: 4, seeds: 2}}\n"
    plan = make_plan(load(file(own, "own.yaml")), "short")
    values = plan.variants[0].config
    assert (values.training.epochs, values.data.workers, plan.seeds) == (7, 4, (0, 1))


def test_extends_in_a_circle(file):
    file("extends: b.yaml\n", "a.yaml")
    file("extends: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match=r"extends goes in a circle: a.yaml -> b.yaml -> a.yaml$"):
        load("a.yaml")


def test_extends_a_shipped_ablation(file):
    plan = make_plan(load(file("extends: pooling-alternation\nseeds: 1\n", "mine.yaml")), "smoke")
    assert [v.name for v in plan.variants] == ["alternating", "columns-only", "rows-only"]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_ablations_resolve_in_every_profile(name):
    experiment = load(name)
    assert experiment.question
    assert set(experiment.profiles) >= {"smoke", "quick", "standard", "paper"}
    for profile in experiment.profiles:
        for variant in make_plan(experiment, profile).variants:
            assert RunConfig.from_nested(json.loads(json.dumps(variant.config.nested()))) == (
                variant.config
            )


def test_alternation_pools_what_it_says():
    plan = make_plan(load("pooling-alternation"), "smoke")
    assert {v.name: v.config.model.schedule for v in plan.variants} == {
        "alternating": ("col", "row"),
        "columns-only": ("col",),
        "rows-only": ("row",),
    }


def test_paper_profile_is_the_published_recipe():
    run = make_plan(load("pooling-alternation"), "paper").variants[0].config
    training, data = run.training, run.data
    assert (training.epochs, training.batch_size, training.peak_lr) == (300, 1024, 1e-3)
    assert (training.min_lr, training.warmup_epochs, training.warmup_lr) == (1e-5, 5, 1e-6)
    assert (training.weight_decay, training.smoothing, training.ema_decay) == (0.05, 0.1, 0.9999)
    assert training.optimizer == "adamw" and training.clip_grad is None
    assert (data.mixup, data.cutmix, data.mixup_switch_prob) == (0.8, 1.0, 0.5)
    assert data.auto_augment == "rand-m9-mstd0.5-inc1" and data.color_jitter == 0.3
    assert (data.re_prob, data.re_mode, data.crop_pct) == (0.25, "pixel", 0.875)
    assert (run.model_name, run.model.grid_size) == ("fastvim_tiny", (14, 14))
    assert run.model.drop_path_rate == 0.05
    base = make_plan(load("post-ssm-norm"), "paper").variants[0].config.model
    assert (base.d_model, base.drop_path_rate) == (768, 0.4)


def test_timm_models_take_only_what_applies(file):
    text = TEXT.replace("two: {model.pooling: max}", "two: {model.name: timm/resnet10t}")
    two = make_plan(load(file(text))).variants[1].config
    assert two.flat()["model.name"] == "timm/resnet10t"
    assert two.model.num_classes == 10 and two.model.image_size == (28, 28)
    bad = TEXT.replace(
        "two: {model.pooling: max}", "two: {model.name: timm/resnet10t, model.depth: 2}"
    )
    with pytest.raises(UserError, match=r"12:37: model.depth does not apply to timm/resnet10t"):
        make_plan(load(file(bad)))


GRID = ["model.name=timm/vit_tiny_patch16_224"]


def test_a_transformer_of_timm_gets_the_token_grid_of_the_others(file):
    vit = "two: {model.name: timm/vit_tiny_patch16_224}"
    plan = make_plan(load(file(TEXT.replace("two: {model.pooling: max}", vit))))
    assert plan.variant("two").config.model.patch_size == 4
    (warning,) = plan.warnings
    assert "two: timm/vit_tiny_patch16_224 gets patches of 4 pixels as the others do" in warning
    own = TEXT.replace("two: {model.pooling: max}", vit.replace("}", ", model.patch_size: 14}"))
    assert not make_plan(load(file(own))).warnings
    plan = make_plan(load(file(TEXT)), sets=["model.patch_size=[2,2]"], grid=GRID)
    assert plan.variants[0].config.model.patch_size == 2


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("model.patch_size=5", "patches of 5 pixels do not divide images of 28 x 28"),
        ("model.embed_dim=31", "timm cannot build 'timm/vit_tiny_patch16_224': dim should be"),
        ("model.d_state=8", "model.d_state does not apply to timm/vit_tiny_patch16_224"),
    ],
)
def test_what_timm_cannot_build_is_said_before_anything_is_trained(file, sets, message):
    with pytest.raises(UserError) as error:
        plan = make_plan(load(file(TEXT)), sets=[sets], grid=GRID, variants="one")
        identified_runs(plan)
    assert str(error.value).startswith("--") and message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patch_size: 4", "pach_size: 4", "7:5: unknown key 'model.pach_size', did you mean 'mo"),
        ("patch_size: 4", "patch_size: 5", "7:5: model.patch_size = 5: image_size: 28"),
        ("lr: 1e-3", "lr: 1e-9", "8:41: training.lr = 1e-09: min_lr: "),
        ("patch_size: 4", "patch_size: two", "7:5: model.patch_size = 'two'"),
        ("patch_size: 4", "patch_size: '4'", "7:5: model.patch_size = '4': "),
        ("patch_size: 4", "depth: 1.5", "7:5: model.depth = 1.5: "),
        ("patch_size: 4", "depth: true", "7:5: model.depth = True: expected a number"),
        ("lr: 1e-3", "lr: '1e-3'", "8:41: training.lr = '1e-3': expected a number"),
        ("lr: 1e-3", "lr: -1", "8:41: training.lr = -1: Input should be greater than 0"),
        ("lr: 1e-3", "epochs: 3", "8:41: key 'epochs' appears twice"),
        ("{model.pooling: max}", "{model.pooling: maks}", "12:9: model.pooling = 'maks': Input"),
        ("{model.pooling: max}", "{model.schedule: [col, frame]}", "12:9: model.schedule = ["),
        ("{model.pooling: max}", "{pooling: max}", "12:9: unknown key 'pooling', did you mean 'm"),
        ("{model.pooling: max}", "", "12:3: variants.two is empty; write {}"),
        ("fastvim_femto", "fastvim_fento", "6:5: no model named 'fastvim_fento', did you mean"),
        ("fashion-mnist-subset", "fashion-mnst", "4:10: data.name = 'fashion-mnst': unknown dat"),
        ("baseline: one", "baseline: on", "9:1: baseline = 'on': there is none of that name, did"),
        ("seeds: 3", "seeds: 0", "13:1: seeds = 0: expected a count from 1 to 1000"),
        ("seeds: 3", "seeds: [1, 1]", "13:1: seeds = [1, 1]: a seed appears twice"),
        ("seeds: 3", "seds: 3", "13:1: unknown key 'seds', did you mean 'seeds'?"),
        ("seeds: 3", "claim: pooling-alternatio", "13:1: claim = 'pooling-alternatio': there is"),
        ("question: Which?", "metric: top2", "2:1: metric = 'top2': Input should be 'top1'"),
        ("name: small", "name: ../small", "1:1: name = '../small': "),
        ("  two:", "  ../two:", "12:3: variants.../two"),
    ],
)
def test_errors_name_file_line_and_column(file, old, new, message):
    assert old in TEXT
    with pytest.raises(UserError) as error:
        make_plan(load(file(TEXT.replace(old, new, 1))))
    assert str(error.value).startswith(f"small.yaml:{message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "shrt"}, "no profile 'shrt' in small, did you mean 'short'?"),
        ({"variants": "one,twoo"}, "no variant 'twoo' in small, did you mean 'two'?"),
        ({"variants": ","}, "--variants names none"),
        ({"seeds": "0"}, "--seeds '0': expected"),
        ({"seeds": "a"}, "--seeds 'a': expected"),
        (
            {"seeds": "0,2147483648"},
            "--seeds: the seed 2147483648 is above the largest, 2147483647",
        ),
        ({"seeds": "1,1"}, "seeds = [1, 1]: a seed appears twice"),
        ({"sets": ["training.lr"]}, "--set training.lr: expected key=value"),
        ({"sets": ["training.lrr=1"]}, "--set training.lrr=1: unknown key 'training.lrr', did"),
        ({"sets": ["model=x"]}, "--set model=x: model is a section: set one of its keys, such as "),
        ({"sets": ["pretrained.data=x"]}, "--set pretrained.data=x: pretrained.data is a section"),
        ({"sets": ["training.lr=x"]}, "--set training.lr=x: training.lr = 'x': "),
        ({"sets": ["training.lr=[1"]}, "--set training.lr=[1:"),
        ({"grid": ["training.lr="]}, "--grid training.lr=: expected key=a,b,c"),
        ({"grid": ["training.lr=1,1"]}, "--grid: the same value comes twice"),
        ({"grid": ["model.d_state=1,2", "model.d_state=3"]}, "--grid: the same key is given"),
        ({"grid": [f"model.d_state={','.join(map(str, range(1, 200)))}"] * 1, "seeds": "1000"}, ""),
    ],
)
def test_option_errors(file, options, message):
    with pytest.raises(UserError) as error:
        make_plan(load(file()), **options)
    assert str(error.value).startswith(message)


def test_seeds_option(file):
    experiment = load(file())
    assert make_plan(experiment).seeds == (0, 1, 2)
    assert make_plan(experiment, seeds="2").seeds == (0, 1)
    assert make_plan(experiment, seeds="5,").seeds == (5,)
    assert make_plan(experiment, seeds="0,3,5").seeds == (0, 3, 5)
    assert make_plan(experiment, seeds="0,2147483647").seeds == (0, 2**31 - 1)


def test_own_baseline_for_each_pair():
    plan = make_plan(load("post-ssm-norm"), "smoke")
    assert {v.name: v.baseline for v in plan.variants} == {
        "fastvim-with": None,
        "fastvim-without": "fastvim-with",
        "vim-with": None,
        "vim-without": "vim-with",
    }
    some = make_plan(load("post-ssm-norm"), "smoke", variants="vim-without,fastvim-with")
    assert {v.name: v.baseline for v in some.variants} == {
        "fastvim-with": None,
        "vim-without": None,
    }


def test_identity_follows_what_decides_the_result(file):
    experiment = load(file())

    def identity(*sets: str, seed: int = 0, fingerprint: str = "f") -> str:
        config = make_plan(experiment, sets=sets).variants[0].config
        return run_identity(config, seed, fingerprint)

    same = identity()
    assert identity("data.workers=3", "training.checkpoint_every=7") == same
    changed = [
        identity("training.lr=0.002"),
        identity("model.depth=1"),
        identity("data.hflip=0"),
        identity(seed=1),
        identity(fingerprint="g"),
    ]
    assert len({same, *changed}) == 6


def test_variants_that_are_the_same_run_share_an_identity(file):
    text = TEXT.replace("two: {model.pooling: max}", "two: {model.pooling: mean}")
    runs = identified_runs(make_plan(load(file(text)), seeds="1"))
    assert [run.variant for run in runs] == ["one", "two"]
    assert runs[0].identity == runs[1].identity


def test_data_that_does_not_fit_is_an_error_before_any_run(file):
    plan = make_plan(load(file()), sets=["model.num_classes=7"])
    with pytest.raises(UserError, match=r"model.num_classes = 7, but fashion-mnist-subset has 10"):
        identified_runs(plan)
    plan = make_plan(load(file()), sets=["data.name=imagefolder", "data.root=nowhere"])
    with pytest.raises(UserError, match="nowhere"):
        identified_runs(plan)


def test_new_file_is_a_valid_plan(file):
    plan = make_plan(load(file(starting_file("state-size"), "state-size.yaml")), "smoke")
    assert [v.config.model.d_state for v in plan.variants] == [16, 8, 32]


def test_json_schema_knows_every_key():
    schema = json_schema()
    properties = schema["$defs"]["settings"]["properties"]
    assert set(known_keys()) <= set(properties)
    assert set(schema["properties"]) >= {"name", "base", "variants", "profiles", "extends"}
    references = json.dumps(schema).split('"#/$defs/')[1:]
    assert {text.partition('"')[0] for text in references} <= set(schema["$defs"])


def test_json_schema_accepts_every_shipped_file_and_marks_an_error(tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator(json_schema())
    folder = shipped()["mae-scaling"].parent
    (tmp_path / "new.yaml").write_text(starting_file("new"))
    files = [*folder.glob("*.yaml"), tmp_path / "new.yaml"]
    for path in files:
        if path.name != "claims.yaml":
            value = read_document(path).value
            assert not [error.message for error in validator.iter_errors(value)], path.name
    value = read_document(tmp_path / "new.yaml").value
    value["base"]["training"]["batch_sise"] = value["base"]["training"].pop("batch_size")
    (error,) = validator.iter_errors(value)
    assert "'batch_sise' was unexpected" in error.message
