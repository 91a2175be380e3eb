"""The mixers of CvT and MRL, step by step in other words: PyTorch's own layers, NCHW, float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, random
from torch import Tensor, nn

from python_ref.layers import CvTAttention, MRLMixer
from python_ref.layers.conv_projection import DepthwiseNorm
from python_ref.layers.mrl import LocalMix

DIM, HEADS = 12, 3
SIZES = [(8, 12), (7, 10), (5, 5), (1, 3)]
# With a class token or without, statistics of the batch or the running ones.
modes = pytest.mark.parametrize(
    ("with_cls", "training"), list(itertools.product([False, True], [False, True]))
)
sizes = pytest.mark.parametrize("size", SIZES)


def prepared(mixer: nn.Module, training: bool) -> nn.Module:
    """In float64, with statistics and norms far from their initial values."""
    mixer.double().train(training)
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)  # negative factors as well
            nn.init.normal_(module.bias)
    return mixer


def inputs(size: tuple[int, int], with_cls: bool) -> tuple[Tensor, tuple[int, int] | None]:
    torch.manual_seed(size[0] * 100 + size[1])
    if with_cls:
        return random(2, 1 + size[0] * size[1], DIM, grad=True), size
    return random(2, *size, DIM, grad=True), None


def conv_norm(x: Tensor, part: DepthwiseNorm, stride: int, padding: int) -> Tensor:
    """Depthwise convolution and BatchNorm of a map NCHW, the norm as PyTorch does it."""
    y = F.conv2d(x, part.conv.weight, None, stride, padding, groups=DIM)
    norm = part.norm
    if norm is None:
        return y
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(y, mean, variance, norm.weight, norm.bias, norm.training)


def rows(x: Tensor, cls: Tensor | None) -> Tensor:
    tokens = x.flatten(2).mT
    return tokens if cls is None else torch.cat([cls, tokens], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are scaled by the root of all channels, not of those of one head."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=DIM**-0.5)
    return out.transpose(1, 2).flatten(2)


def separate(x: Tensor, size: tuple[int, int] | None) -> tuple[Tensor | None, Tensor]:
    """Class token and map NCHW."""
    if size is None:
        return None, x.permute(0, 3, 1, 2)
    return x[:, :1], x[:, 1:].mT.unflatten(2, size)


def queries_keys_values(mixer: nn.Module, s: Tensor, cls: Tensor | None, stride: int):
    projection, attention = mixer.projection, mixer.attention
    if isinstance(projection.basis, nn.Linear):
        s = projection.basis(s.movedim(1, -1)).movedim(-1, 1)
        cls = None if cls is None else projection.basis(cls)
    tokens = []
    for name, step in (("query", 1), ("key", stride), ("value", stride)):
        part = getattr(projection, name)
        y = s if part is None else conv_norm(s, part, step, 1)
        tokens.append(getattr(attention, name)(rows(y, cls)))
    return tokens


def mrl_by_steps(mixer: MRLMixer, x: Tensor, size, region: int, stride: int) -> Tensor:
    cls, pixels = separate(x, size)
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (0, -width % region, 0, -height % region))
    samples = [conv_norm(padded, s.depthwise, region, 0) for s in mixer.samplers]
    if len(samples) == 1:
        q, k, v = queries_keys_values(mixer, samples[0], cls, stride)
    else:
        linears = (mixer.attention.query, mixer.attention.key, mixer.attention.value)
        q, k, v = (lin(rows(s, cls)) for lin, s in zip(linears, samples, strict=True))
    out = mixer.regional(attend(q, k, v))
    out_cls, out = (None, out) if cls is None else (out[:, :1], out[:, 1:])
    grid = samples[0].shape[2:]
    g = out.mT.unflatten(2, grid)
    rows_of, columns_of = torch.arange(height) // region, torch.arange(width) // region
    y = conv_norm(pixels + g[:, :, rows_of][:, :, :, columns_of], mixer.local.plain, 1, 1)
    if cls is None:
        return mixer.project(y.movedim(1, -1))
    return mixer.project(rows(y, out_cls))


def check(mixer: nn.Module, by_steps, x: Tensor, size) -> None:
    ours, others = mixer(x, size), by_steps(mixer, x, size)
    torch.testing.assert_close(ours, others, **TOLERANCE)
    grad = torch.randn_like(ours)
    parameters = [x, *mixer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters, grad),
        torch.autograd.grad(others, parameters, grad),
        **TOLERANCE,
    )


@modes
@sizes
@pytest.mark.parametrize("common", [False, True], ids=["three_linears", "common"])
def test_cvt_attention(size, common, with_cls, training):
    def by_steps(mixer, x, size):
        cls, pixels = separate(x, size)
        out = mixer.project(attend(*queries_keys_values(mixer, pixels, cls, 2)))
        return out.view_as(x)

    x, of_tokens = inputs(size, with_cls)
    mixer = prepared(CvTAttention(DIM, HEADS, common=common), training)
    check(mixer, by_steps, x, of_tokens)


@modes
@sizes
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"common": True},
        {"common": True, "kv_stride": 2},
        {"q_conv": True},
        {"kv_conv": False},
        {"samplers": 3, "kv_conv": False},
        {"sampler_bn": False, "local_bn": False, "qkv_bias": False, "proj_bias": False},
        {"kv_conv": False, "regional_linear": True},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_mrl_mixer(size, options, with_cls, training):
    x, of_tokens = inputs(size, with_cls)
    mixer = prepared(MRLMixer(DIM, HEADS, 4, **options), training)

    def by_steps(mixer, x, size):
        return mrl_by_steps(mixer, x, size, 4, options.get("kv_stride", 1))

    check(mixer, by_steps, x, of_tokens)


@pytest.mark.parametrize(("mode", "width"), [("width", DIM), ("head", DIM // HEADS)])
def test_scale_of_the_scores(mode, width):
    assert MRLMixer(DIM, HEADS, 2, scale_mode=mode).attention.scale == width**-0.5


@pytest.mark.parametrize("group", ["p4", "p4m"])
def test_local_mix_of_group_convolutions_turns_with_its_input(group):
    torch.manual_seed(0)
    local = prepared(LocalMix(DIM, 4, gc="replace", gc_group=group), training=False)
    x, g = random(2, 8, 8, DIM), random(2, 2, 2, DIM)
    turns = [lambda t: t.rot90(1, (1, 2))] + ([lambda t: t.flip(2)] if group == "p4m" else [])
    for turn in turns:
        torch.testing.assert_close(local(turn(x), turn(g)), turn(local(x, g)), **TOLERANCE)


def test_appended_group_convolution_follows_the_plain_one():
    torch.manual_seed(0)
    appended = prepared(LocalMix(DIM, 4, gc="append"), training=False)
    x, g = random(2, 7, 10, DIM), random(2, 2, 3, DIM)
    plain = LocalMix(DIM, 4).double().eval()
    plain.load_state_dict(appended.state_dict(), strict=False)
    turned = [appended.lifted.conv.weight.rot90(s, (2, 3)) for s in range(4)]
    y = plain(x, g).permute(0, 3, 1, 2)
    lifted = [F.conv2d(y, weight, padding=1, groups=DIM) for weight in turned]
    expected = appended.lifted.norm(torch.stack(lifted).amax(dim=0)).permute(0, 2, 3, 1)
    torch.testing.assert_close(appended(x, g), expected, **TOLERANCE)


def test_frozen_statistics_train_the_same_in_both_modes():
    """Folding the norms in eval mode changes neither values nor gradients."""
    x, _ = inputs((7, 10), with_cls=False)
    mixer = prepared(MRLMixer(DIM, HEADS, 4), training=True)
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    parameters = list(mixer.parameters())
    frozen = torch.autograd.grad(mixer(x).square().sum(), parameters)
    folded = torch.autograd.grad(mixer.eval()(x).square().sum(), parameters)
    torch.testing.assert_close(folded, frozen, **TOLERANCE)


def test_training_updates_the_statistics():
    x, of_tokens = inputs((7, 10), with_cls=True)
    mixer = MRLMixer(DIM, HEADS, 4, common=True).double()
    mixer(x, of_tokens)
    norms = [m for m in mixer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 5
    assert all(norm.num_batches_tracked == 1 and norm.running_mean.any() for norm in norms)
