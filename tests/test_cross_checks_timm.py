"""Families against timm: CoaT, and convolutional attention against VOLO's outlook attention."""

import independent
import pytest
import torch
from independent import check_equal, example, randomised, with_weights_of

import hybrid_kernels
import python_ref.ops
from python_ref.models import create_model

COAT = [
    (r"^patch_embed(\d)\.proj", r"serial.\1.embed.conv"),
    (r"^patch_embed(\d)\.norm", r"serial.\1.embed.norm"),
    (r"^cls_token(\d)", r"serial.\1.token"),
    (r"^cpe(\d)\.proj", r"serial.\1.position.depthwise"),
    (r"^crpe(\d)\.conv_list", r"serial.\1.relative.convs"),
    (r"^serial_blocks(\d)\.(\d)\.norm1", r"serial.\1.blocks.\2.norm"),
    (r"^serial_blocks(\d)\.(\d)\.norm2", r"serial.\1.blocks.\2.mlp.norm"),
    (r"^serial_blocks(\d)\.(\d)\.factoratt_crpe", r"serial.\1.blocks.\2.mixer"),
    (r"^serial_blocks(\d)\.(\d)\.mlp", r"serial.\1.blocks.\2.mlp"),
    (r"^serial\.(\d)", lambda m: f"serial.{int(m[1]) - 1}"),  # they count from 1
    (r"^parallel_blocks\.(\d)\.norm1(\d)", r"parallel.\1.norms.\2"),
    (r"^parallel_blocks\.(\d)\.norm2(\d)", r"parallel.\1.mlp_norms.\2"),
    (r"^parallel_blocks\.(\d)\.factoratt_crpe(\d)", r"parallel.\1.mixers.\2"),
    (r"^parallel_blocks\.(\d)\.mlp2", r"parallel.\1.mlp"),
    (r"^norm(\d)", r"head.norms.\1"),
    (r"(norms|mixers)\.(\d)", lambda m: f"{m[1]}.{int(m[2]) - 2}"),  # scales 2, 3 and 4
    (r"^aggregate", "head.aggregate"),
    (r"^head\.(weight|bias)", r"head.classifier.\1"),
    (r"\.proj\.", ".project."),
    (r"\.fc1\.", ".expand."),
    (r"\.fc2\.", ".project."),
]
# What blocks share has a name in every one of them.
COAT_SHARED = r"\.cpe\.|\.crpe\.|parallel_blocks\.\d\.mlp[34]"


@pytest.mark.parametrize(
    "widths", [(152, 152, 152, 152), (152, 320, 320, 320)], ids=["tiny", "small"]
)
def test_coat(widths, record_property):
    coat = independent.load("timm.models.coat")
    size = (64, 96)
    theirs = randomised(
        coat.CoaT(
            img_size=size,
            patch_size=4,
            embed_dims=widths,
            serial_depths=(2, 2, 2, 2),
            parallel_depth=6,
            num_classes=10,
        )
    )
    name = "coat_tiny" if widths[1] == 152 else "coat_small"
    ours = with_weights_of(
        theirs.state_dict(), create_model(name, num_classes=10), COAT, COAT_SHARED
    )
    x = example(2, 3, *size)
    with torch.no_grad():
        expected = [theirs(x), *theirs.forward_intermediates(x, intermediates_only=True)]
        check_equal(record_property, [ours(x), *ours.forward_features(x)], expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
@pytest.mark.parametrize("package", [python_ref.ops, hybrid_kernels], ids=lambda m: m.__name__)
def test_convolutional_attention_is_outlook_attention(package, stride, size, record_property):
    volo = independent.load("timm.models.volo")
    heads, dim = 6, 48
    theirs = randomised(volo.OutlookAttention(dim, heads, stride=stride, qkv_bias=True))
    x = example(2, *size, dim)
    with torch.no_grad():
        centres = theirs.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        logits = theirs.attn(centres).unflatten(-1, (heads, 9, 9))
        mixed = package.conv_attention(theirs.v(x), logits, theirs.scale, 3, stride, 1)
        check_equal(record_property, [theirs.proj(mixed)], [theirs(x)])
