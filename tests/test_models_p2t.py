"""P2T: published counts, the pyramid of keys and values, and what a user does with the models."""

import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite

from python_ref.models import create_model
from python_ref.models.p2t import PyramidPoolingAttention
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("p2t")]


class TestP2T(ModelSuite):
    whole = "p2t_tiny"
    small = {"depths": (1, 1, 2, 1), "widths": (16, 32, 40, 64)}
    rows = ROWS
    options = (
        {"heads": (2, 4, 8, 16)},
        {"mlp_ratios": (2, 2, 2, 2)},
        {"pool_ratios": ((8, 16), (4, 8), (2, 4), (1, 2))},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), RAGGED, (33, 2))
    refused = [
        ({"windows": 7}, "no option 'windows'; .*pool_ratios"),
        ({"depths": (1, 1)}, r"depths must have one entry for each of the 4 stages, got \(1, 1\)"),
        ({"heads": (5, 2, 5, 8)}, "heads must divide dim = 48, got 5"),
    ]


def test_blocks_of_a_stage_share_the_convolutions_of_the_pyramid():
    model = create_model("p2t_tiny")
    assert [len(stage.positions) for stage in model.stages] == [4, 4, 4, 4]
    assert not any("positions" in name for name, _ in model.stages[0].blocks.named_parameters())


def test_attention_equals_its_definition_on_the_concatenated_pyramid():
    torch.manual_seed(0)
    attention = PyramidPoolingAttention(12, 3, (2, 3)).double()
    x = torch.randn(2, 7, 10, 12, dtype=torch.float64)
    image = x.permute(0, 3, 1, 2)
    # Python rounds 7 / 2 = 3.5 to 4 and 10 / 3 to 3.
    pooled = [F.adaptive_avg_pool2d(image, size) for size in ((4, 5), (2, 3))]
    tokens = attention.norm(torch.cat([2 * p.flatten(2) for p in pooled], dim=2).mT)
    heads = [
        t.reshape(2, -1, 3, 4).transpose(1, 2)
        for t in (attention.query(x), *attention.key_value(tokens).chunk(2, dim=-1))
    ]
    expected = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(
        attention(x, [lambda p: 2 * p] * 2), attention.project(expected), rtol=1e-12, atol=1e-12
    )


def test_map_smaller_than_half_a_window_keeps_one_token():
    attention = PyramidPoolingAttention(8, 2, (12, 16))
    x = torch.randn(1, 2, 3, 8)
    tokens = attention.pyramid(x, [torch.nn.Identity()] * 2)
    torch.testing.assert_close(tokens, x.mean(dim=(1, 2)).expand(1, 2, 8))
