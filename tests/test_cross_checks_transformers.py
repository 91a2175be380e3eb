"""Families against Hugging Face's transformers: ResNet, PVTv2, ConvNeXt, CvT, Swin.

Where theirs differs from the published model in a constant, that is set right first, in view.
"""

import re

import independent
import pytest
import torch
from independent import check_logits, randomised, with_weights_of
from torch import Tensor, nn

from python_ref.models import create_model

RESNET = [
    (r"^resnet\.embedder\.embedder", "stem"),
    (r"^resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.layer", r"stages.\1.\2.residual"),
    (r"^resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.shortcut", r"stages.\1.\2.shortcut"),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^classifier\.1", "head.classifier"),
]
PVT_V2 = [
    (r"^pvt_v2\.encoder\.layers\.(\d)", r"stages.\1"),
    (r"\.patch_embedding\.proj\.", ".embed.conv."),
    (r"\.patch_embedding\.layer_norm\.", ".embed.norm."),
    (r"\.layer_norm_1\.", ".norm."),
    (r"\.layer_norm_2\.", ".mlp.norm."),
    (r"\.attention\.spatial_reduction\.", ".mixer.reduce.conv."),
    (r"\.attention\.layer_norm\.", ".mixer.reduce.norm."),
    (r"\.attention\.proj\.", ".mixer.project."),
    (r"\.attention\.", ".mixer."),
    (r"^(stages\.\d)\.layer_norm\.", r"\1.norm."),
    (r"\.mlp\.dense1\.", ".mlp.expand."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
    (r"\.mlp\.dense2\.", ".mlp.project."),
    (r"^classifier", "head.classifier"),
]
CONVNEXT = [
    (r"^convnext\.embeddings\.patch_embeddings", "stages.0.0.conv"),
    (r"^convnext\.embeddings\.layernorm", "stages.0.0.norm"),
    (r"^convnext\.encoder\.stages\.(\d)\.downsampling_layer\.0", r"stages.\1.0.norm"),
    (r"^convnext\.encoder\.stages\.(\d)\.downsampling_layer\.1", r"stages.\1.0.reduce.conv"),
    (
        r"^convnext\.encoder\.stages\.(\d)\.layers\.(\d+)",
        lambda m: f"stages.{m[1]}.{int(m[2]) + 1}",  # our blocks follow the patch embedding
    ),
    (r"\.layer_scale_parameter", ".layer_scale"),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.layernorm\.", ".mlp.norm."),
    (r"\.pwconv1\.", ".mlp.expand."),
    (r"\.pwconv2\.", ".mlp.project."),
    (r"^convnext\.mlp\.norm", "head.norm"),
    (r"^classifier", "head.classifier"),
]
CVT = [
    (r"^cvt\.encoder\.", ""),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".embed.conv."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".embed.norm."),
    (r"\.layers\.", ".blocks."),
    (r"\.attention\.attention\.convolution_projection_(\w+)\.", r".mixer.projection.\1."),
    (r"\.convolution_projection\.convolution\.", ".conv."),
    (r"\.convolution_projection\.normalization\.", ".norm."),
    (r"\.attention\.attention\.projection_(\w+)\.", r".mixer.attention.\1."),
    (r"\.attention\.output\.dense\.", ".mixer.project."),
    (r"\.intermediate\.dense\.", ".mlp.expand."),
    (r"\.output\.dense\.", ".mlp.project."),
    (r"\.layernorm_before\.", ".norm."),
    (r"\.layernorm_after\.", ".mlp.norm."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]
SWIN = [
    (r"^swin\.embeddings\.patch_embeddings\.projection", "stages.0.0.conv"),
    (r"^swin\.embeddings\.norm", "stages.0.0.norm"),
    (
        r"^swin\.encoder\.layers\.(\d)\.blocks\.(\d)",
        lambda m: f"stages.{m[1]}.{int(m[2]) + 1}",  # our blocks follow the merging layer
    ),
    (
        r"^swin\.encoder\.layers\.(\d)\.downsample\.",
        lambda m: f"stages.{int(m[1]) + 1}.0.",  # with which our stages begin and theirs end
    ),
    (r"\.reduction\.", ".reduce."),
    (r"\.layernorm_before\.", ".norm."),
    (r"\.layernorm_after\.", ".mlp.norm."),
    (r"\.attention\.relative_position_bias\.relative_position_bias_table", ".mixer.bias"),
    (r"\.attention\.o_proj\.", ".mixer.project."),
    (r"\.attention\.", ".mixer."),
    (r"\.mlp\.fc1\.", ".mlp.expand."),
    (r"\.mlp\.fc2\.", ".mlp.project."),
    (r"^swin\.layernorm", "norms.3"),
    (r"^classifier", "head.classifier"),
]


def joined(theirs: nn.Module, parts: tuple[str, ...], name: str) -> dict[str, Tensor]:
    """Their weights, with layers of one input (query, key, ...) stacked to the layer `name`."""
    state = dict(theirs.state_dict())
    first = rf"\.{parts[0]}\."
    for key in [key for key in state if re.search(first, key)]:
        rows = [state.pop(re.sub(first, f".{part}.", key)) for part in parts]
        state[re.sub(first, f".{name}.", key)] = torch.cat(rows)
    return state


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet(name, record_property):
    transformers = independent.load("transformers")
    basic = {"depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 256, 512), "layer_type": "basic"}
    config = transformers.ResNetConfig(num_labels=10, **basic if name == "resnet18" else {})
    theirs = randomised(transformers.ResNetForImageClassification(config))
    ours = with_weights_of(theirs.state_dict(), create_model(name, num_classes=10), RESNET)
    check_logits(record_property, ours, lambda x: theirs(x).logits, (75, 101))


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2"])
def test_pvt_v2(name, record_property):
    transformers = independent.load("transformers")
    larger = {"depths": (3, 4, 6, 3), "hidden_sizes": (64, 128, 320, 512)}
    config = transformers.PvtV2Config(num_labels=10, **larger if name == "pvt_v2_b2" else {})
    theirs = randomised(transformers.PvtV2ForImageClassification(config))
    for part, module in theirs.named_modules():
        # They take the blocks' 1e-6 everywhere; the authors keep PyTorch's default here.
        if part.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
            module.eps = 1e-5
    state = joined(theirs, ("key", "value"), "key_value")
    ours = with_weights_of(state, create_model(name, num_classes=10), PVT_V2)
    check_logits(record_property, ours, lambda x: theirs(x).logits, (75, 101))


def test_convnext(record_property):
    transformers = independent.load("transformers")
    # Their default eps of the last norm, 1e-12, is not the published model's.
    config = transformers.ConvNextConfig(num_labels=10, layer_norm_eps=1e-6)
    theirs = randomised(transformers.ConvNextForImageClassification(config))
    model = create_model("convnext_t", num_classes=10)
    ours = with_weights_of(theirs.state_dict(), model, CONVNEXT)
    check_logits(record_property, ours, lambda x: theirs(x).logits, (75, 101))


@pytest.mark.parametrize("name", ["cvt_13", "cvt_21"])
def test_cvt(name, record_property):
    transformers = independent.load("transformers")
    depth = (1, 2, 10) if name == "cvt_13" else (1, 4, 16)
    theirs = randomised(
        transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=10, depth=depth))
    )
    for module in theirs.modules():
        # They took PyTorch's GELU in place of the authors' x * sigmoid(1.702 x).
        if isinstance(getattr(module, "activation", None), nn.GELU):
            module.activation = transformers.activations.QuickGELUActivation()
    ours = with_weights_of(theirs.state_dict(), create_model(name, num_classes=10), CVT)
    check_logits(record_property, ours, lambda x: theirs(x).logits, (75, 101))


def test_swin(record_property):
    transformers = independent.load("transformers")
    theirs = randomised(
        transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=10))
    )
    state = joined(theirs, ("q_proj", "k_proj", "v_proj"), "qkv")
    ours = with_weights_of(state, create_model("swin_t", num_classes=10), SWIN, "position_index")
    # On maps smaller than a window, they shrink the window; the published model does not.
    check_logits(record_property, ours, lambda x: theirs(x).logits, (224, 224))
