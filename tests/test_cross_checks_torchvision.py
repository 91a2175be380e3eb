"""Families against torchvision: ResNet, Swin, and MaxViT's two kinds of attention."""

import independent
import pytest
import torch
from independent import check_equal, check_logits, example, randomised, with_weights_of
from torch import nn

from python_ref.layers import AtrousAttention, Mlp
from python_ref.models import create_model

RESNET = [
    (r"^conv1", "stem.conv"),
    (r"^bn1", "stem.norm"),
    (r"^layer(\d)", lambda m: f"stages.{int(m[1]) - 1}"),
    (r"\.conv(\d)", lambda m: f".residual.{int(m[1]) - 1}.conv"),
    (r"\.bn(\d)", lambda m: f".residual.{int(m[1]) - 1}.norm"),
    (r"\.downsample\.0", ".shortcut.conv"),
    (r"\.downsample\.1", ".shortcut.norm"),
    (r"^fc", "head.classifier"),
]
SWIN = [
    (r"^head", "head.classifier"),
    (r"^norm\.", "norms.3."),
    (r"^features\.0\.0", "stages.0.0.conv"),
    (r"^features\.0\.2", "stages.0.0.norm"),
    # Theirs alternate between merging layers (even) and lists of blocks; ours hold both.
    (r"^features\.([246])\.reduction", lambda m: f"stages.{int(m[1]) // 2}.0.reduce"),
    (r"^features\.([246])\.norm", lambda m: f"stages.{int(m[1]) // 2}.0.norm"),
    (r"^features\.([1357])\.(\d)", lambda m: f"stages.{int(m[1]) // 2}.{int(m[2]) + 1}"),
    (r"\.norm1\.", ".norm."),
    (r"\.norm2\.", ".mlp.norm."),
    (r"\.attn\.relative_position_bias_table", ".mixer.bias"),
    (r"\.attn\.proj\.", ".mixer.project."),
    (r"\.attn\.", ".mixer."),
    (r"\.mlp\.0\.", ".mlp.expand."),
    (r"\.mlp\.3\.", ".mlp.project."),
]
PARTITION_ATTENTION = [
    (r"attn_layer\.0", "0.norms.0"),
    (r"attn_layer\.1\.relative_position_bias_table", "0.bias"),
    (r"attn_layer\.1\.to_qkv", "0.qkvs.0"),
    (r"attn_layer\.1\.merge", "0.projections.0"),
    (r"mlp_layer\.0", "1.norm"),
    (r"mlp_layer\.1", "1.expand"),
    (r"mlp_layer\.3", "1.project"),
]
INDICES = "relative_position_index"  # a constant of their shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet(name, record_property):
    models = independent.load("torchvision.models")
    theirs = randomised(getattr(models, name)(num_classes=10))
    ours = with_weights_of(theirs.state_dict(), create_model(name, num_classes=10), RESNET)
    check_logits(record_property, ours, theirs, (75, 101))


# Windows that tile the maps, maps that are filled up, maps smaller than a window.
@pytest.mark.parametrize("size", [(224, 224), (84, 100), (20, 60)])
def test_swin(size, record_property):
    models = independent.load("torchvision.models")
    theirs = randomised(models.swin_t(num_classes=10))
    model = create_model("swin_t", num_classes=10)
    ours = with_weights_of(theirs.state_dict(), model, SWIN, INDICES)
    check_logits(record_property, ours, theirs, size)


@pytest.mark.parametrize(("kind", "dilation"), [("window", 1), ("grid", 4)])
def test_attention_of_maxvit_is_atrous_attention(kind, dilation, record_property):
    maxvit = independent.load("torchvision.models.maxvit")
    dim, heads, side = 24, 3, 28
    theirs = randomised(
        maxvit.PartitionAttentionLayer(
            dim, dim // heads, 7, kind, (side, side), 4, nn.GELU, nn.LayerNorm, 0.0, 0.0, 0.0
        )
    )

    class Ours(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            return y + self[1](y)

    ours = with_weights_of(
        theirs.state_dict(),
        Ours(AtrousAttention(dim, heads, (dilation,), scale_mode="width"), Mlp(dim)),
        PARTITION_ATTENTION,
        INDICES,
    )
    x = example(2, side, side, dim)
    with torch.no_grad():
        check_equal(record_property, [ours(x)], [theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)])
