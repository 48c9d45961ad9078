"""Arguments that do not fit are refused by name: kernels would read what lies beside a tensor."""

import pytest
import torch
from operator_cases import layout, mixer_inputs, scan_inputs

from fastvim.kernels import (
    BlockArguments,
    MixerWeights,
    ScanLayout,
    pooled_mixer,
    residual_blocks,
    rms_norm,
    selective_scan,
)

CHANNELS, TOKENS, WIDTH = 8, 12, 6
DEFAULTS = {"pooling": "mean", "scale": 1.0, "merge": "mean", "gate": True, "eps": 1e-5}


def mixer_weights() -> MixerWeights:
    return mixer_inputs(2, TOKENS, CHANNELS, dtype=torch.float32)[1]


def columns() -> ScanLayout:
    """With an order and steps."""
    return layout("columns", 3, 4, 2)


def mix(weights: MixerWeights, places: ScanLayout) -> None:
    pooled_mixer(torch.randn(2, TOKENS, 2 * CHANNELS), weights, places)


def run_block(weights: MixerWeights, places: ScanLayout, **own: torch.Tensor) -> None:
    own = {
        "norm_weight": torch.randn(WIDTH),
        "in_proj": torch.randn(2 * CHANNELS, WIDTH),
        "out_proj": torch.randn(WIDTH, CHANNELS),
    } | own
    block = BlockArguments(**own, weights=weights, layout=places, settings=DEFAULTS, norm_eps=1e-5)
    residual_blocks(torch.randn(2, TOKENS, WIDTH), [block])


@pytest.mark.parametrize("run", [mix, run_block])
@pytest.mark.parametrize("name", MixerWeights._fields)
def test_weights_of_a_mixer(run, name):
    right = getattr(mixer_weights(), name)
    run(mixer_weights(), columns())
    # A smaller, a larger and a broadcast one, one axis less, and one where there is no memory.
    for wrong in (right[..., 1:], torch.cat([right, right], -1), right[:1], right[0]):
        if name in ("conv_weight", "dt_proj") and wrong.shape[:-1] == right.shape[:-1]:
            continue  # The axis that they alone have, or that x_proj is held to.
        with pytest.raises(ValueError, match=r"has shape \(.*\); it must be"):
            run(mixer_weights()._replace(**{name: wrong}), columns())
    with pytest.raises(ValueError, match=f"{name} is on meta"):
        run(mixer_weights()._replace(**{name: right.to("meta")}), columns())


@pytest.mark.parametrize("run", [mix, run_block])
def test_tables_and_pairs_of_a_mixer(run):
    for name in ("order", "steps"):
        wrong = columns()._replace(**{name: torch.arange(11, dtype=torch.int32)})
        with pytest.raises(ValueError, match=rf"layout: {name} has shape \(11,\)"):
            run(mixer_weights(), wrong)
        right = getattr(columns(), name)
        with pytest.raises(ValueError, match=rf"layout: {name} is torch.float32; it must be"):
            run(mixer_weights(), columns()._replace(**{name: right / 1}))
        run(mixer_weights(), columns()._replace(**{name: right.long()}))
    with pytest.raises(ValueError, match="layout: steps is on meta"):
        run(mixer_weights(), columns()._replace(steps=columns().steps.to("meta")))
    with pytest.raises(ValueError, match="reverse_steps without steps"):
        run(mixer_weights(), columns()._replace(steps=None, reverse_steps=columns().steps))
    with pytest.raises(ValueError, match="norm_bias without norm_weight"):
        run(mixer_weights()._replace(norm_weight=None), columns())
    run(mixer_weights()._replace(norm_bias=None, conv_bias=None), columns())


@pytest.mark.parametrize("name", ["norm_weight", "in_proj", "out_proj"])
def test_a_block_s_own_weights(name):
    shape = {"norm_weight": (5,), "in_proj": (16, 5), "out_proj": (6, 7)}[name]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        run_block(mixer_weights(), columns(), **{name: torch.randn(shape)})
    right = {"norm_weight": (6,), "in_proj": (16, 6), "out_proj": (6, 8)}[name]
    with pytest.raises(ValueError, match=f"{name} is torch.float64, but the tokens are"):
        run_block(mixer_weights(), columns(), **{name: torch.randn(right, dtype=torch.float64)})


def test_devices_of_a_scan_and_a_norm():
    right = scan_inputs(dtype=torch.float32)
    selective_scan(**right)
    names = [name for name, value in right.items() if torch.is_tensor(value) and name != "u"]
    assert len(names) == 7
    for name in names:
        with pytest.raises(ValueError, match=f"{name} is on meta"):
            selective_scan(**right | {name: right[name].to("meta")})
    step = right["u"]
    with pytest.raises(ValueError, match="weight is on meta"):
        rms_norm(step, torch.ones(7, device="meta"), 1e-5)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\); it must be \(7,\)"):
        rms_norm(step, torch.ones(5), 1e-5)
