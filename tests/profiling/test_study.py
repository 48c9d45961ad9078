"""The resolution study measures what it says; nothing here depends on how long it took."""

import csv
import json

import pytest
import torch

from fastvim.errors import UserError
from fastvim.models import create_model
from fastvim.profiling.stages import UNFUSED_STAGES, block_stages
from fastvim.profiling.study import build, default_batch, study
from fastvim.profiling.timing import interleaved
from fastvim.reports import profile

CPU = torch.device("cpu")
MODELS = ["vim_femto", "fastvim_femto", "fastvim_femto:post_ssm_norm=false"]


@pytest.fixture(scope="module")
def measurements():
    found = []
    for part in study(MODELS, [28, 56], device=CPU, batch=2, repeats=2, minutes=1):
        found += part
    return found


def test_every_model_is_measured_at_every_size(measurements):
    assert [(m.model, m.resolution) for m in measurements] == [
        (model, size) for size in (28, 56) for model in MODELS
    ]
    for m in measurements:
        assert m.problem is None
        assert set(m.seconds) == {"forward", "training"} == set(m.peak_memory_mb)
        assert m.images_per_second("forward") > 0 and m.gflops > 0
        assert m.peak_memory_mb["training"] > m.peak_memory_mb["forward"] > 0


def test_vim_scans_all_tokens_and_fastvim_one_axis(measurements):
    steps = {(m.model, m.resolution): (m.tokens, m.steps) for m in measurements}
    assert steps["vim_femto", 56] == (28 * 28 + 1, 28 * 28 + 1)
    assert steps["fastvim_femto", 56] == (28 * 28, 28)


def test_the_stages_together_are_the_mixer():
    model = create_model("fastvim_femto")
    torch.manual_seed(0)
    stages = block_stages(model, batch=2)
    assert set(UNFUSED_STAGES) <= set(stages)
    # `fused` starts from xz, `norm` and `gate` end the unfused chain from the same xz.
    merged = stages["broadcast"]()
    block = model.blocks[0].mixer
    torch.manual_seed(0)
    x = torch.randn(2, 196, 32)
    _, z = block.in_proj(x).chunk(2, dim=-1)
    chained = block.norm(merged) * torch.nn.functional.silu(z)
    fused, _, _ = stages["fused"]()
    torch.testing.assert_close(fused, chained, rtol=1e-4, atol=1e-5)


def test_files_hold_what_was_measured(measurements, tmp_path):
    claims = profile.claims(measurements, *[MODELS[i] for i in (1, 0, 2)])
    paths = profile.write(measurements, claims, {"cpu": "x"}, tmp_path)
    assert {path.name for path in paths} >= {"profile.md", "growth.png", "shares.svg"}
    assert all(path.stat().st_size for path in paths)
    with open(tmp_path / "profile.csv") as file:
        assert len(list(csv.reader(file))) == 1 + len(measurements)
    stored = json.loads((tmp_path / "profile.json").read_text())
    fast = stored["measurements"][1]
    assert fast["images_per_second"]["forward"] == 2 / fast["seconds"]["forward"]["median"]
    evidence = json.loads((tmp_path / "results.json").read_text())
    assert [v["name"] for v in evidence["variants"]][:2] == ["vim_femto@28", "fastvim_femto@28"]
    assert len(evidence["variants"][0]["cost"]["images_per_second"]) == 2
    texts = {claim["claim"] for claim in claims}
    assert {"FLOPs fewer than Vim", "SSM time grows, vim_femto"} <= texts


def test_shares_add_up(measurements):
    shares = profile.shares(measurements[0])
    assert sum(share for name, share in shares.items() if name != "fused") == pytest.approx(1)


def test_no_budget_is_said_not_hidden():
    (part,) = study(["fastvim_femto"], [28], device=CPU, repeats=1, minutes=0)
    assert part[0].problem == "no time left in the budget" and not part[0].seconds


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    timings = interleaved(calls, CPU, repeats=2)
    assert order == ["a", "b"] * 3 and len(timings["a"].calls) == 2


def test_batches_shrink_with_the_pixels():
    assert [default_batch(size) for size in (224, 512, 1024, 2048)] == [8, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fastvim_tny", "did you mean 'fastvim_tiny'"),
        ("fastvim_tiny:norm", "not a setting"),
        ("timm/no_such_model", "cannot be built"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(UserError, match=message):
        build(name, 224, CPU)
