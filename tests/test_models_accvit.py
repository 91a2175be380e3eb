"""ACC-ViT: published counts as exact integers, and what a user does with the models."""

import torch
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite
from torch import nn

from python_ref.models import create_model
from python_ref.published import accvit


def tiny_sized(**options: object) -> nn.Module:
    """One layer of femto's width per stage: every kind of block, little arithmetic."""
    torch.manual_seed(0)
    settings = {"num_classes": 10, **TestACCViT.small} | options
    return create_model("accvit_femto", **settings)


class TestACCViT(ModelSuite):
    whole = "accvit_femto"
    small = {"layers": (1, 1, 1, 1)}
    rows = accvit.ROWS
    options = (
        {"dw_dilations": (1,)},
        {"gate": False},
        {"shared_mlp": False},
        {"mlp": "convnext"},
        {"scale_mode": "width"},
        {"window_size": 4},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), RAGGED, (33, 2))
    compiled_options = ({"dilations": ((1, 2), (1,), (1,), (1,))},)
    refused = [
        ({"windows": 3}, "no option 'windows'; .*window_size"),
        ({"mlp": "swiglu"}, "mlp must be one of mlp, convnext"),
        ({"layers": (1, 2)}, "layers must have one entry for each of the 4 stages"),
        ({"scale_mode": "depth"}, "scale_mode must be"),
        ({"head_dim": 48}, "head_dim"),
        ({"drop_path": 1.0}, "drop path rate"),
    ]


def test_tiny_without_its_head_has_the_published_size():
    with torch.device("meta"):
        model = create_model("accvit_tiny", features_only=True)
    assert sum(p.numel() for p in model.parameters()) == 27_591_572


def test_logits_are_those_of_the_pooled_features():
    model = tiny_sized().eval()
    pooled = create_model("accvit_femto", num_classes=0, layers=(1, 1, 1, 1)).eval()
    pooled.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        head = model.head
        logits = head.classifier(head.hidden(head.norm(pooled(x))).tanh())
        torch.testing.assert_close(model(x), logits)


def test_drop_path_rises_linearly_to_the_last_layer():
    model = create_model("accvit_femto", drop_path=0.7)
    layers = [layer for stage in model.stages for layer in stage]
    rates = [layer.conv.drop_path.rate for layer in layers]
    torch.testing.assert_close(rates, [0.1 * depth for depth in range(8)])
    assert rates == [layer.attention.drop_path.rate for layer in layers]
    assert rates == [layer.attention.attention.drop_path.rate for layer in layers]


def test_drop_path_drops_whole_images():
    torch.manual_seed(0)
    attention = tiny_sized(drop_path=0.9).stages[3][0].attention.attention.train()
    x = torch.randn(32, 3, 3, 256)
    changed = (attention(x) != x).flatten(1)
    assert set(changed.any(dim=1).tolist()) == {True, False}
    assert torch.equal(changed.any(dim=1), changed.float().mean(dim=1) > 0.5)


def test_scale_of_the_scores():
    by_head, by_width = tiny_sized(), tiny_sized(scale_mode="width")
    assert by_head.stages[1][0].attention.attention.scale == 16**-0.5
    assert by_width.stages[1][0].attention.attention.scale == 64**-0.5


def test_initialisation():
    torch.manual_seed(0)
    model = create_model("accvit_femto")
    attention = model.stages[2][1].attention.attention
    conv = model.stages[2][1].conv
    for weight in (attention.bias, attention.qkvs[0].weight, conv.depthwise, conv.gate.weight):
        assert abs(weight.std().item() - 0.02) < 0.003
    zeros = (attention.qkvs[0].bias, attention.gate.bias, conv.gate.bias, conv.project.bias)
    assert not any(bias.any() for bias in zeros)
    assert torch.equal(conv.norm_in.weight, torch.ones(128))
