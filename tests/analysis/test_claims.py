"""The claims file: complete, true to the recipes, and clear about what is wrong with another."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fastvim.analysis.claims import (
    COMMANDS,
    Claim,
    describe_scale,
    find_claim,
    load_claims,
    scale_from_config,
    scale_gaps,
)
from fastvim.errors import UserError
from fastvim.experiments.experiment import load as load_experiment
from fastvim.experiments.plan import make_plan

ABLATIONS = Path(__file__).resolve().parents[2] / "ablations"
RECIPES = Path(__file__).resolve().parents[3] / "shared" / "recipes.md"

MINIMAL = """\
scales:
  big: {dataset: imagenet-1k}
claims:
  - id: first
    statement: it is better
    source: a paper
    kind: difference
    metric: top1
    unit: points
    variant: a
    baseline: b
    direction: higher
    published: one point
    value: 1.0
    tolerance: 0.5
    scale: big
    experiments: [some]
"""


def load(tmp_path, text):
    file = tmp_path / "claims.yaml"
    file.write_text(text)
    return load_claims(file)


def test_shipped_claims_load_and_name_real_variants():
    claims = load_claims()
    assert len(claims) >= 35
    for claim in claims.values():
        assert "2502.00594" in claim.source
        for experiment in claim.experiments:
            file = ABLATIONS / f"{experiment}.yaml"
            if experiment in COMMANDS or not file.exists():
                continue
            variants = yaml.safe_load(file.read_text())["variants"]
            assert {claim.variant, claim.baseline or claim.variant} <= set(variants), claim.id


def test_shipped_experiments_name_claims_that_exist():
    claims, tested = load_claims(), 0
    for file in sorted(ABLATIONS.glob("*.yaml")):
        named = yaml.safe_load(file.read_text()).get("claim")
        if named is not None:
            assert find_claim(claims, named).experiments, file.name
            assert file.stem in claims[named].experiments, file.name
            tested += 1
    assert tested >= 3


@pytest.mark.skipif(
    not RECIPES.exists(), reason="the published recipes are not beside the checkout"
)
def test_every_published_result_is_a_claim():
    table = RECIPES.read_text().split("| published result | value |")[1].split("Source:")[0]
    # Batch sizes, resolutions and the like stand in the first column; results in the second.
    numbers = set()
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 2 and not cells[0].startswith("--"):
            words = cells[1].replace(",", " ").replace(";", " ").replace("%", " ").split()
            numbers |= {w.strip("+") for w in words if w.strip("+").replace(".", "", 1).isdigit()}
    said = " ".join(f"{c.statement} {c.source} {c.published}" for c in load_claims().values())
    assert len(numbers) >= 30
    assert not {n for n in numbers if n not in said}


def test_commands():
    claims = load_claims()
    claim = claims["pooling-alternation"]
    assert claim.paper_command == "fastvim ablate pooling-alternation --profile paper --seeds 5"
    assert claim.command("pooling-alternation", "quick", 2) == (
        "fastvim ablate pooling-alternation --profile quick --seeds 2"
    )
    assert claims["fewer-flops"].paper_command == "fastvim profile"
    assert claims["coco-vim-s"].paper_command is None


def test_the_paper_profile_that_tests_a_claim_is_at_the_scale_of_the_claim():
    claims = load_claims().values()
    tested = {claim.id: claim for claim in claims if claim.experiments}
    files = {c.experiments[0] for c in tested.values() if c.experiments[0] not in COMMANDS}
    plans = {name: make_plan(load_experiment(name), "paper") for name in files}
    for claim in tested.values():
        plan = plans.get(claim.experiments[0])
        for name in filter(None, (claim.variant, claim.baseline) if plan else ()):
            scale = scale_from_config(plan.variant(name).config.nested(), 1_281_167)
            assert scale_gaps(claim.scale, scale) == [], claim.id


def test_minimal_file(tmp_path):
    claims = load(tmp_path, MINIMAL)
    assert claims["first"].scale == {"dataset": "imagenet-1k"}
    with pytest.raises(UserError, match="no claim 'frist', did you mean 'first'"):
        find_claim(claims, "frist")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("claims:", "claim:", "unknown key 'claim', did you mean 'claims'"),
        ("    unit:", "    units:", "unknown key 'units', did you mean 'unit'"),
        ("scale: big", "scale: bigg", "'bigg' is not one of the scales, did you mean 'big'"),
        ("kind: difference", "kind: differences", r"\('first'\) kind: .*'differences'"),
        ("id: first", "id: First Claim", "id: .*'First Claim'"),
        ("value: 1.0", "value: one", "value: .*'one'"),
        ("value: 1.0", "value: .nan", "value: .*nan"),
        ("    tolerance: 0.5\n", "", "value and tolerance are given together"),
        ("tolerance: 0.5", "tolerance: -1", "tolerance: .*-1"),
        ("    baseline: b\n", "", "baseline: needed"),
        ("    experiments: [some]\n", "", "exactly one"),
        ("direction: higher", "direction: about", "transfers: false"),
        ("kind: difference", "kind: spikes", "without a value"),
        ("    source: a paper\n", "", "source: Field required"),
        ("{dataset: imagenet-1k}", "[1, 2]", "scale: .*dict"),
        ("scales:", "scales: [", "line 3, column"),
        ("  - id: first", "  - 3\n  - id: first", "expected a mapping, not 3"),
    ],
)
def test_bad_files_are_explained(tmp_path, old, new, message):
    assert old in MINIMAL
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, MINIMAL.replace(old, new, 1))
    assert "claims.yaml" in str(error.value) and len(str(error.value)) < 600


def test_other_bad_files(tmp_path):
    entry = MINIMAL.split("claims:\n")[1]
    with pytest.raises(UserError, match="'first' is there twice"):
        load(tmp_path, MINIMAL + entry)
    for text in ("", "3", "- a", "scales: {}\nclaims: {}", "\x00", "a: !!python/object:os.x {}"):
        with pytest.raises(UserError, match=r"claims\.yaml"):
            load(tmp_path, text)
    with pytest.raises(UserError, match="cannot read"):
        load_claims(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="UTF-8"):
        load_claims(tmp_path / "bytes.yaml")


def test_an_anchor_bomb_is_one_short_message(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    bomb = "\n  ".join(["scales:", *lines]) + "\nclaims:\n  - {id: *a11}\n  - {scale: *a11}\n"
    with pytest.raises(UserError) as error:
        load(tmp_path, bomb)
    assert len(str(error.value)) < 1000


def test_frozen():
    claim = load_claims()["pooling-alternation"]
    with pytest.raises(ValidationError):
        claim.value = 2.0
    assert isinstance(claim, Claim)


def test_scale_of_a_run():
    config = {
        "data": {"name": "imagefolder", "image_size": 224},
        "model": {
            "image_size": [224, 224],
            "patch_size": [16, 16],
            "d_model": 192,
            "depth": 24,
            "num_classes": 1000,
        },
        "training": {"epochs": 300, "steps": None},
    }
    claimed = load_claims()["pooling-alternation"].scale
    assert scale_gaps(claimed, scale_from_config(config, 1_281_167)) == []
    assert scale_gaps(claimed, scale_from_config(config)) == ["dataset imagefolder for imagenet-1k"]
    config["training"]["steps"] = 100
    assert scale_gaps(claimed, scale_from_config(config, 1_281_167)) == [
        "epochs not recorded for 300"
    ]
    assert scale_from_config({"model": {"image_size": (28, 56)}}) == {"image_size": "28x56"}
    assert describe_scale({}) == "a scale that was not recorded"
    assert describe_scale({"dataset": "cifar10", "epochs": 3}) == "cifar10, epochs 3"
