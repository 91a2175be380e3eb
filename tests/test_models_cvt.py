"""CvT and MRL-CvT: published counts, the mixers by hand, and what a user does."""

from functools import partial

import pytest
import torch
from model_suite import ModelSuite
from torch import nn

from python_ref.counting import count
from python_ref.layers import CvTAttention, MRLMixer
from python_ref.models import create_model
from python_ref.published import mrl


class TestCvT(ModelSuite):
    whole = "mrl_cvt_13"
    names = ("cvt_13", "cq_cvt_13", "mrl_cvt_13", "cq_mrl_cvt_13")
    small = {"depths": (1, 1, 1), "widths": (16, 32, 48), "head_dim": 16}
    rows = mrl.ROWS
    options = (
        {"kv_conv": False},
        {"q_conv": True},
        {"samplers": 3, "kv_conv": False},
        {"kv_stride": 2},
        {"sampler_bn": False},
        {"local_bn": False},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"cls_token": False},
        {"regions": (8, 2, 1)},
        {"gc": "append"},
        {"gc": "append", "gc_group": "p4m", "gc_reduce": "mean"},
        {"gc": "replace", "gc_group": "p4m"},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96),)  # the first embedding does not round up
    out_indices = (0, 2)
    refused = [
        ({"mixer": "conv"}, "mixer must be one of cvt, cq_cvt, mrl, cq_mrl"),
        ({"depths": (1, 2)}, "depths must have one entry for each of the 3 stages"),
        ({"head_dim": 5}, "head_dim must divide"),
        ({"regions": (4, 0, 2)}, "region must be at least 1, got 0"),
        ({"samplers": 2}, "samplers must be 1, or 3"),
        ({"samplers": 3}, "kv_conv=False"),
        ({"q_conv": True, "kv_conv": False}, "q_conv needs kv_conv"),
        ({"kv_stride": 2, "kv_conv": False}, "kv_stride must be 1"),
        ({"gc": "prepend"}, "gc must be one of"),
        ({"gc": "append", "gc_group": "p6"}, "group must be 'p4' or 'p4m'"),
        ({"mixer": "cvt", "gc": "append"}, "gc is an option of MRL, but mixer is 'cvt'"),
        ({"window": 7}, "no option 'window'"),
    ]


small = partial(create_model, "mrl_cvt_13", **TestCvT.small)


def mixer_parameters(name: str, statistics: bool, **options: object) -> float:
    """Millions of parameters of all mixers, the running statistics of BatchNorm on demand."""
    with torch.device("meta"):
        model = create_model(name, **options)
    mixers = [m for n, m in model.named_modules() if n.endswith(".mixer")]
    numbers = [p.numel() for m in mixers for p in m.parameters()]
    if statistics:
        numbers += [b.numel() for m in mixers for b in m.buffers() if b.ndim]
    return sum(numbers) / 1e6


@pytest.mark.parametrize(("name", "printed"), [("cvt_13", 6.394), ("cvt_21", 10.343)])
def test_printed_size_of_cvts_attention_counts_running_statistics(name, printed):
    assert round(mixer_parameters(name, statistics=True), 3) == printed


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("mrl_cvt_13", 6.399),
        ("mrl_cvt_21", 10.353),
        ("cq_mrl_cvt_13", 3.350),
        ("cq_mrl_cvt_21", 5.422),
    ],
)
@pytest.mark.parametrize("without", ["sampler_bn", "local_bn"])
def test_a_bookkeeping_that_reproduces_all_printed_sizes(name, printed, without):
    """No biases, one BatchNorm less, running statistics counted: 6.40, 10.35, 3.35, 5.42."""
    bare = {"qkv_bias": False, "proj_bias": False, without: False}
    assert round(mixer_parameters(name, statistics=True, **bare), 3) == printed


GRID = (12, 20)
T, C, HEADS = GRID[0] * GRID[1], 48, 3


def formula(kind: str, region: int, kv_stride: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one mixer on a map of T pixels, in closed form."""
    n = T // region**2
    n_kv = n // kv_stride**2
    if kind == "cvt":
        t_kv = T // kv_stride**2
        products = 2 * T * t_kv * C
        return 4 * C**2 + 37 * C, (2 * T + 2 * t_kv) * C**2 + products + 9 * C * (T + 2 * t_kv)
    parameters = 4 * C**2 + C * (4 + region**2 + 2 + 22 + 11)
    linear, conv = T + 3 * n, 18 * n_kv
    if kind == "cq_mrl":
        parameters = 2 * C**2 + C * (2 + region**2 + 2 + 33 + 11)
        linear, conv = T + n, 9 * n + 18 * n_kv
    products = 2 * n * n_kv * C
    return parameters, linear * C**2 + products + C * (9 * T + region**2 * n + conv)


def counted(mixer: nn.Module) -> tuple[int, int]:
    found = count(mixer.eval(), torch.empty(1, *GRID, C))
    return found.parameters, int(found.total("macs"))


@pytest.mark.parametrize(
    ("kind", "region", "kv_stride"),
    [("mrl", 4, 1), ("mrl", 2, 1), ("cq_mrl", 2, 1), ("cq_mrl", 2, 2), ("cvt", 1, 2)],
)
def test_cost_of_a_mixer_in_closed_form(kind, region, kv_stride):
    with torch.device("meta"):
        if kind == "cvt":
            mixer = CvTAttention(C, HEADS, kv_stride=kv_stride)
        else:
            common = kind == "cq_mrl"
            mixer = MRLMixer(C, HEADS, region, common=common, kv_stride=kv_stride)
        assert counted(mixer) == formula(kind, region, kv_stride)


@pytest.mark.parametrize(("gc", "times"), [("append", 1), ("replace", 0)])
def test_cost_of_a_group_convolution(gc, times):
    """Four orientations of one kernel, beside or instead of the plain convolution."""
    with torch.device("meta"):
        plain, mixer = counted(MRLMixer(C, HEADS, 4)), counted(MRLMixer(C, HEADS, 4, gc=gc))
    extra = (11 * C * times, (36 - 9 * (1 - times)) * C * T)
    assert tuple(b - a for a, b in zip(plain, mixer, strict=True)) == extra


def test_the_first_embedding_drops_what_its_kernel_does_not_reach():
    """A 7x7 kernel with stride 4 and padding 2; later strides round up."""
    model = small(features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 78, 101))
    assert [tuple(m.shape[2:]) for m in maps] == [(19, 25), (10, 13), (5, 7)]


def test_the_class_token_is_classified_or_else_the_mean_of_all_pixels():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    for cls_token in (True, False):
        model = small(cls_token=cls_token).eval()
        with torch.no_grad():
            maps, cls = model._forward_stages(x)
            tokens = cls if cls_token else maps[-1].flatten(2).transpose(1, 2)
            pooled = model.norm(tokens).mean(dim=1)
            torch.testing.assert_close(model(x), model.head(pooled))
        assert (cls is not None) == cls_token
        assert tokens.shape[1] == (1 if cls_token else 16)


def test_only_the_last_stage_drops_paths():
    model = create_model("cvt_13", depths=(1, 2, 4), drop_path=0.3)
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.stages]
    assert rates[:2] == [[0], [0, 0]]
    torch.testing.assert_close(rates[2], [0.0, 0.1, 0.2, 0.3])


def test_initialisation():
    torch.manual_seed(0)
    model = create_model("cq_mrl_cvt_13", depths=(1, 1, 1))
    stage = model.stages[2]
    mixer = stage.blocks[0].mixer
    for weight in (stage.cls_token, mixer.projection.basis.weight, model.head.weight):
        assert abs(weight.std().item() - 0.02) < 0.003
    assert not any(b.any() for b in (mixer.projection.basis.bias, model.head.bias))
    # PyTorch's own: uniform up to one over the root of the fan-in, here a 3x3 kernel.
    assert 0.32 < mixer.projection.key.conv.weight.abs().max() <= 1 / 3
