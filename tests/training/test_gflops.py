import pytest
import torch
import torch.nn.functional as F

from fastvim.models import create_model
from fastvim.models.timm_peers import create_timm
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


def test_attention_is_two_products_of_queries_keys_and_values():
    class Attention(torch.nn.Module):
        def forward(self, query):
            return F.scaled_dot_product_attention(query, query.new_zeros(2, 3, 7, 8), self.value)

        value = torch.zeros(2, 3, 7, 4)

    counted = 1e9 * count_gflops(Attention(), torch.zeros(2, 3, 5, 8))
    assert counted == pytest.approx(2 * 3 * 5 * 7 * (8 + 4))


def test_a_transformer_counts_the_same_with_fused_attention():
    settings = {"image_size": (28, 28), "in_channels": 1, "patch_size": 4, "depth": 1}
    model = create_timm("timm/vit_tiny_patch16_224", settings)
    fused = count_gflops(model, IMAGE)
    model.blocks[0].attn.fused_attn = False
    assert fused == count_gflops(model, IMAGE)
