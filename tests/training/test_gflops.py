import pytest
import torch

from fastvim.models import create_model
from fastvim.training.costs import count_gflops

IMAGE = torch.zeros(1, 1, 28, 28)


def test_attention_pooling_is_counted_though_it_is_plain_pytorch():
    """Beyond the mean's work: a score and a weighting of each token instead of an addition."""
    mean, attention = (
        count_gflops(create_model("fastvim_femto", pooling=pooling), IMAGE)
        for pooling in ("mean", "attention")
    )
    blocks, tokens, channels, directions = 2, 196, 64, 2
    extra = blocks * tokens * channels * directions * (1 + 1 - 1)
    assert 1e9 * (attention - mean) == pytest.approx(extra)


def test_fastvim_needs_fewer_operations_than_vim():
    fast, vim = (count_gflops(create_model(f"{name}_femto"), IMAGE) for name in ("fastvim", "vim"))
    assert fast < 0.8 * vim
