"""CoaT: published counts, factorised attention, and what a user does with the models."""

import torch
from model_suite import ModelSuite

from python_ref.models.coat import ConvAttention, RelativePosition
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("coat")]


class TestCoaT(ModelSuite):
    whole = "coat_tiny"
    small = {"depths": (1, 1, 1, 1), "parallel_depth": 1, "widths": (32, 32, 32, 32)}
    rows = ROWS
    options = (
        {"heads": 4, "windows": ((3, 1), (5, 3))},
        {"mlp_ratio": 2},
        {"parallel_depth": 2},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_options = ({}, {"parallel_depth": 0, "widths": (16, 32, 40, 48)})
    features_sizes = ((64, 96), (2, 1))  # patches are not padded
    refused = [
        ({"window": 7}, "no option 'window'; .*parallel_depth"),
        ({"heads": 7}, r"heads must divide the widths \(152, 152, 152, 152\), got 7"),
        ({"windows": ((3, 8), (5, 1))}, "windows must share out 8 heads"),
        ({"depths": (1, 1)}, "depths must have one entry for each of the 4 stages"),
        ({"widths": (152, 152, 152, 320)}, "the last three widths must be equal"),
    ]


def test_factorised_attention_averages_values_by_one_softmax_over_tokens():
    torch.manual_seed(0)
    attention = ConvAttention(8, 2).double()
    position = RelativePosition(4, ((3, 1), (5, 1))).double()
    tokens = torch.randn(2, 1 + 3 * 4, 8, dtype=torch.float64)
    query, key, value = attention.qkv(tokens).reshape(2, 13, 3, 2, 4).permute(2, 0, 3, 1, 4)
    # The (N x N) weights of ordinary attention, which the layer never forms.
    weights = 0.5 * torch.einsum("bhnd,bhmd->bhnm", query, key.softmax(dim=2))
    out = (weights @ value).transpose(1, 2).flatten(2)
    image = value[:, :, 1:].transpose(2, 3).reshape(2, 8, 3, 4)
    convolved = position(image.permute(0, 2, 3, 1)).flatten(1, 2)
    out[:, 1:] += query.transpose(1, 2).flatten(2)[:, 1:] * convolved
    expected = attention.project(out)
    torch.testing.assert_close(
        attention(tokens, position, (3, 4)), expected, rtol=1e-12, atol=1e-12
    )
