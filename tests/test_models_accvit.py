"""ACC-ViT: published counts as exact integers, and what a user does with the models."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from python_ref.models import create_model, list_models
from python_ref.ops import REFERENCE, gated_fuse

PER_BRANCH_MLP = {"gate": False, "shared_mlp": False}
# Variant and switches; parameters and multiply-accumulates; the paper's G of Tables 2 and 8.
COUNTS = [
    ("tiny", {}, 28_367_252, 5_535_014_912, 5.694),
    ("small", {}, 62_886_494, 11_354_996_736, 11.59),
    ("base", {}, 103_576_028, 21_879_788_544, 22.316),
    ("nano", {}, 16_649_248, 3_705_574_400, 3.812),
    ("pico", {}, 9_550_476, 2_136_648_960, 2.217),
    ("femto", {}, 4_399_880, 996_078_080, 1.049),
    (
        "nano",
        {"dw_dilations": (1,), **PER_BRANCH_MLP},
        16_906_688,
        4_779_203_584,
        4.862,
    ),
    ("nano", PER_BRANCH_MLP, 19_330_400, 4_826_606_592, 4.939),
    (
        "nano",
        {"gate": False, "layers": (1, 2, 3, 1)},
        14_584_528,
        3_372_313_600,
        3.473,
    ),
    ("nano", {"mlp": "convnext"}, 17_024_944, 3_736_587_776, 3.844),
]
PAPER_MILLIONS = [28.367, 62.886, 103.576, 16.649, 9.55, 4.4, 16.907, 19.33, 14.585, 17.025]


def tiny_sized(**options: object) -> nn.Module:
    """One layer of femto's width per stage: every kind of block, little arithmetic."""
    torch.manual_seed(0)
    return create_model("accvit_femto", num_classes=10, layers=(1, 1, 1, 1), **options)


class NormAndPoolCounter(TorchDispatchMode):
    """Operations that fvcore counts beside multiply-accumulates, for a model in training mode.

    Five per element of a norm and one per element of a global pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (
            torch.ops.aten.native_batch_norm.default,
            torch.ops.aten.native_layer_norm.default,
        ):
            self.total += 5 * out[0].numel()
        elif func is torch.ops.aten.mean.dim:
            self.total += args[0].numel()
        return out


def count(name: str, options: dict[str, object]) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates and fvcore's count at 224 x 224, without data."""
    gate_macs = 0

    def counted_gated_fuse(x, m, weight, *rest):
        # A gate is a depthwise 1x1 convolution, written elementwise: the counter cannot see it.
        nonlocal gate_macs
        gate_macs += 0 if weight is None else weight.shape[0] * x.numel()
        return gated_fuse(x, m, weight, *rest)

    with torch.device("meta"):
        model = create_model(f"accvit_{name}", **options)
        for module in model.modules():
            if hasattr(module, "ops"):
                module.ops = replace(REFERENCE, gated_fuse=counted_gated_fuse)
        with FlopCounterMode(display=False) as flops, NormAndPoolCounter() as extra:
            model(torch.empty(1, 3, 224, 224))
    macs = flops.get_total_flops() // 2 + gate_macs
    return sum(p.numel() for p in model.parameters()), macs, macs + extra.total


@pytest.mark.parametrize(
    ("row", "millions"),
    list(zip(COUNTS, PAPER_MILLIONS, strict=True)),
    ids=[f"{name}{'-' * bool(options)}{'-'.join(options)}" for name, options, *_ in COUNTS],
)
def test_counts_equal_the_published_ones(row, millions):
    name, options, parameters, macs, giga = row
    counted_parameters, counted_macs, counted = count(name, options)
    assert (counted_parameters, counted_macs) == (parameters, macs)
    assert abs(parameters / 1e6 - millions) < 0.00051
    assert abs(counted / 1e9 - giga) < 0.00055


def test_tiny_without_its_head_has_the_published_size():
    with torch.device("meta"):
        model = create_model("accvit_tiny", features_only=True)
    assert sum(p.numel() for p in model.parameters()) == 27_591_572


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 224, 224), (2, 75, 101), (2, 1, 1)])
def test_forward_and_backward_at_any_size(batch, height, width):
    torch.manual_seed(0)
    model = create_model("accvit_femto")
    logits = model(torch.randn(batch, 3, height, width))
    assert logits.shape == (batch, 1000)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"dw_dilations": (1,)},
        {"gate": False},
        {"shared_mlp": False},
        {"mlp": "convnext"},
        {"scale_mode": "width"},
        {"window_size": 4},
        {"drop_path": 0.5},
        {"in_chans": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_trains(options):
    model = tiny_sized(**options)
    model(torch.randn(2, options.get("in_chans", 3), 50, 36)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 101), (33, 2)])
def test_features_have_rounded_up_sizes(height, width):
    model = tiny_sized(features_only=True, out_indices=(0, 2, 3)).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    expected = [
        (1, channels, -(-height // stride), -(-width // stride))
        for channels, stride in ((32, 4), (128, 16), (256, 32))
    ]
    assert [tuple(m.shape) for m in maps] == expected


def test_no_classes_gives_pooled_features():
    model = tiny_sized().eval()
    pooled = create_model("accvit_femto", num_classes=0, layers=(1, 1, 1, 1)).eval()
    pooled.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        head = model.head
        logits = head.classifier(head.hidden(head.norm(pooled(x))).tanh())
        torch.testing.assert_close(model(x), logits)


def test_maps_stay_channels_last():
    model = tiny_sized(features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 75, 101))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    model, other = tiny_sized().eval(), create_model("accvit_femto", 10, layers=(1, 1, 1, 1)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    x = torch.randn(2, 3, 50, 36)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(expected, model(x))
        assert torch.equal(expected, other(x))


def test_batches_do_not_mix_in_eval():
    model = tiny_sized().eval()
    x = torch.randn(3, 3, 50, 36)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


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


def test_compiled_model_equals_eager():
    model = tiny_sized(dilations=((1, 2), (1,), (1,), (1,))).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 50, 36)
    torch.testing.assert_close(compiled(x), model(x))


def test_names():
    names = ["base", "femto", "nano", "pico", "small", "tiny"]
    assert list_models("accvit_*") == [f"accvit_{name}" for name in names]
    assert list_models("*_t?ny") == ["accvit_tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "accvit_tinny"}, "did you mean accvit_tiny"),
        ({"name": "accvit_tiny", "windows": 3}, "no option 'windows'; .*window_size"),
        ({"name": "accvit_tiny", "mlp": "swiglu"}, "mlp must be one of mlp, convnext"),
        ({"name": "accvit_tiny", "layers": (1, 2)}, "one entry per stage"),
        ({"name": "accvit_tiny", "scale_mode": "depth"}, "scale_mode must be"),
        ({"name": "accvit_tiny", "out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
        ({"name": "accvit_tiny", "head_dim": 48}, "head_dim"),
        ({"name": "accvit_tiny", "drop_path": 1.0}, "drop path rate"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(**arguments)
