"""The ledger of claims over results, and the contrasts of one experiment."""

import json

import pytest

from fastvim.analysis import contrasts, ledger, load_claims
from fastvim.analysis.ledger import judge
from fastvim.errors import UserError

QUICK = {"dataset": "fashion-mnist-subset", "image_size": 28, "epochs": 5}


def alternation(**changes):
    """A results.json of pooling-alternation in which alternating wins clearly."""
    result = {
        "experiment": "pooling-alternation",
        "profile": "quick",
        "scale": QUICK,
        "variants": [
            {"name": name, "seeds": [0, 1, 2, 3], "metrics": {"top1": top1}, "cost": {}}
            for name, top1 in {
                "alternating": [85.0, 85.5, 84.9, 85.2],
                "columns-only": [84.0, 84.2, 84.1, 84.2],
                "rows-only": [84.1, 84.0, 84.3, None],
            }.items()
        ],
        "contrasts": [
            {"variant": "columns-only", "baseline": "alternating", "metric": "top1"},
            {"variant": "rows-only", "baseline": "alternating", "metric": "top1"},
        ],
    }
    return result | changes


def rows_of(results):
    claims = load_claims()
    rows = ledger(claims, results)
    json.dumps(rows, allow_nan=False)
    assert {row["claim"] for row in rows} == set(claims)
    return {row["claim"]: row for row in rows}


def test_without_results_every_claim_says_how_to_test_it():
    for row in rows_of([]).values():
        assert row["verdict"] is None and row["estimate"] is None
        if row["state"] == "not run":
            assert row["command"].startswith("fastvim ")
            assert row["paper_command"].startswith("fastvim ")
        else:
            assert row["state"] == "no experiment" and "needs" in row["reason"]
            assert row["command"] is None


def test_a_judged_claim_whichever_way_round_it_was_contrasted():
    row = rows_of([alternation()])["pooling-alternation"]
    assert row["state"] == "judged" and row["verdict"] == "consistent"
    assert row["estimate"] == pytest.approx(1.025)
    assert 0.5 < row["interval"][0] < 1.025 < row["interval"][1] < 1.6
    assert row["seeds"] == 4 and row["scale"] == QUICK
    assert "Holm-adjusted over 2 comparisons" in row["reason"]
    assert "says nothing of the published about +1 point" in row["reason"]
    assert row["command"] == "fastvim ablate pooling-alternation --profile quick --seeds 4"
    assert row["paper_command"].endswith("--profile paper --seeds 5")


def test_an_experiment_of_the_users_own_may_name_the_claim():
    claims = load_claims()
    verdict, seeds = judge(claims["pooling-alternation"], alternation(experiment="mine"), claims)
    assert (verdict.verdict, seeds) == ("consistent", 4)
    mine = alternation(experiment="mine", claim="pooling-alternation")
    rows = rows_of([mine])
    assert rows["pooling-alternation"]["verdict"] == "consistent"
    assert rows["in1k-top1-fastvim-t"]["reason"] == "not run yet"
    mine["variants"] = mine["variants"][:1]
    row = rows_of([mine])["pooling-alternation"]
    assert row["state"] == "not run" and "columns-only is not in" in row["reason"]
    assert row["command"] == "fastvim ablate pooling-alternation"


def test_evidence_is_made_again_by_the_command_that_made_it():
    command = "fastvim ablate mine.yaml --seeds 3,5,7,9 --set training.lr=0.1"
    row = rows_of([alternation(command=command)])["pooling-alternation"]
    assert row["command"] == command
    assert row["paper_command"].endswith("--profile paper --seeds 5")


def test_a_published_number_is_not_judged_on_fashion_mnist():
    row = rows_of([alternation()])["in1k-top1-fastvim-t"]
    assert row["verdict"] == "unresolved" and "cannot speak on it" in row["reason"]
    assert row["estimate"] == pytest.approx(85.15) and row["interval"] is not None


def test_at_its_own_scale_the_number_is_judged():
    claims = load_claims()
    at_scale = alternation(profile="paper", scale=dict(claims["pooling-alternation"].scale))
    rows = rows_of([at_scale])
    assert rows["in1k-top1-fastvim-t"]["verdict"] == "contradicted"
    assert rows["pooling-alternation"]["verdict"] == "consistent"
    assert "says nothing" not in rows["pooling-alternation"]["reason"]


def test_unrecorded_scale_counts_as_another():
    row = rows_of([alternation(scale=None)])["pooling-alternation"]
    assert row["verdict"] == "consistent" and "not recorded" in row["reason"]


def test_two_results_make_two_rows():
    rows = ledger(load_claims(), [alternation(), alternation(profile="standard")])
    found = [r["profile"] for r in rows if r["claim"] == "pooling-alternation"]
    assert found == ["quick", "standard"]


def test_missing_variant_or_metric_is_said():
    part = alternation()
    part["variants"] = part["variants"][:1]
    row = rows_of([part])["pooling-alternation"]
    assert row["state"] == "not run" and "columns-only is not in this result" in row["reason"]
    part = alternation()
    part["variants"][0]["metrics"] = {"top5": [1, 2, 3, 4]}
    row = rows_of([part])["pooling-alternation"]
    assert row["state"] == "not run" and "top1 of alternating" in row["reason"]


def test_costs_and_spikes():
    claims = load_claims()
    spikes = claims["post-ssm-norm-spikes"]
    norm = {
        "experiment": "post-ssm-norm",
        "profile": "quick",
        "scale": QUICK,
        "variants": [
            {"name": name, "seeds": [0, 1, 2], "metrics": {"spikes": counts}, "cost": cost}
            for name, counts, cost in (
                (spikes.variant, [6, 5, 7], {}),
                (spikes.baseline, [0, 1, 0], {}),
            )
        ],
    }
    profile = {
        "experiment": "profile",
        "profile": None,
        "scale": {"device": "some CPU"},
        "variants": [
            {"name": "vim_tiny@224", "cost": {"literature_gflops": 1.5, "ssm_seconds": [1.0, 1.1]}},
            {
                "name": "fastvim_tiny@224",
                "cost": {"literature_gflops": 1.0, "images_per_second": 90},
            },
            {
                "name": "fastvim_tiny:post_ssm_norm=false@224",
                "cost": {"images_per_second": 100},
            },
            {"name": "vim_tiny@2048", "cost": {"images_per_second": [1.0] * 7}},
            {
                "name": "fastvim_tiny@2048",
                "cost": {"images_per_second": [1.5, 1.6, 1.55, 1.5, 1.52, 1.57, 1.6]},
            },
        ],
    }
    rows = rows_of([norm, profile])
    assert rows["post-ssm-norm-spikes"]["verdict"] == "consistent"
    assert rows["post-ssm-norm-cost"]["verdict"] == "unresolved"
    assert "needs 6 interleaved repeats" in rows["post-ssm-norm-cost"]["reason"]
    assert rows["post-ssm-norm-cost"]["estimate"] == 0.9
    assert rows["fewer-flops"]["verdict"] == "consistent"
    assert rows["fewer-flops"]["estimate"] == pytest.approx(2 / 3)
    assert rows["inference-speedup-2048"]["verdict"] == "consistent"
    assert "says nothing of the published +72.5 %" in rows["inference-speedup-2048"]["reason"]
    assert rows["ssm-time-growth-vim"]["state"] == "not run"


def test_published_values_are_judged_at_the_level_of_all_that_are():
    claims = load_claims()
    values = [
        claim
        for claim in claims.values()
        if claim.kind == "value" and "post-ssm-norm" in claim.experiments
    ]
    assert len(values) == 3
    offsets = [-0.18, -0.09, 0.0, 0.09, 0.18]  # By themselves these would lie within 0.3.
    result = {
        "experiment": "post-ssm-norm",
        "variants": [
            {
                "name": claim.variant,
                "seeds": [0, 1, 2, 3, 4],
                "metrics": {"top1": [claim.value + offset for offset in offsets]},
                "scale": dict(claim.scale),
            }
            for claim in values
        ],
    }
    for claim in values:
        verdict, _ = judge(claim, result, claims)
        assert "judged at 98 %" in verdict.reason
        assert (verdict.verdict, claim.tolerance) == ("unresolved", 0.3)
        verdict, _ = judge(claim, result, {claim.id: claim})
        assert verdict.verdict == "consistent"


def test_ratios_of_one_metric_are_corrected_for_each_other():
    claims = load_claims()
    speeds = [c for c in claims.values() if c.metric == "images_per_second"]
    assert len(speeds) == 2

    def reasons(repeats):
        costs = {claim.variant: 3.0 for claim in speeds} | {c.baseline: 1.0 for c in speeds}
        variants = [
            {"name": name, "cost": {"images_per_second": [value] * repeats}}
            for name, value in costs.items()
        ]
        result = {"experiment": "profile", "scale": {"device": "some CPU"}, "variants": variants}
        return [judge(claim, result, claims)[0].reason for claim in speeds]

    # Six repeats give an interval at 96.9 %, seven one at 98.4; two comparisons want 97.5.
    assert all("Too few repeats for an interval over 2" in reason for reason in reasons(6))
    assert all("7 interleaved repeats, corrected over 2" in reason for reason in reasons(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": None}, "results.json"),
        ({"variants": None}, "no `variants`"),
        ({"variants": [{}]}, "no `variants`"),
        (
            {"variants": [{"name": n, "seeds": [0], "metrics": {"top1": [1, 2]}} for n in
                          ("alternating", "columns-only")]},
            "alternating: metrics.top1 and seeds",
        ),
    ],
)  # fmt: skip
def test_bad_results_are_named(change, message):
    with pytest.raises(UserError, match=message):
        ledger(load_claims(), [alternation(**change)])


def test_contrasts_of_an_experiment():
    values = {
        v["name"]: dict(zip(v["seeds"], v["metrics"]["top1"], strict=True))
        for v in alternation()["variants"]
    }
    pairs = [("columns-only", "alternating"), ("rows-only", "columns-only")]
    first, second = contrasts(values, pairs, "top1", load_claims().values(), QUICK)
    assert (first["variant"], first["baseline"]) == pairs[0]
    assert first["difference"] == pytest.approx(-1.025) and first["verdict"] == "consistent"
    assert first["claim_verdict"]["claim"] == "pooling-alternation"
    assert second["verdict"] == "no claim" and second["claim_verdict"] is None
    assert second["diverged"]["variant"] == [3] and first["family"] == 2
    json.dumps([first, second], allow_nan=False)
    # The claim's pair is counted even where no contrast shows it.
    (alone,) = contrasts(values, pairs[1:], "top1", load_claims().values(), QUICK)
    assert alone["family"] == 2
    with pytest.raises(UserError, match="did you mean 'columns-only'"):
        contrasts(values, [("column-only", "alternating")], "top1")
