"""Fused ops inside models: the same numbers, the same state dict, and back again."""

import copy

import pytest
import torch
from torch import Tensor, nn

import hybrid_kernels
import python_ref.layers
from hybrid_kernels import models
from hybrid_kernels.nn import FUSED, AtrousAttention
from python_ref.ops import REFERENCE

SMALL = {"num_classes": 10, "layers": (1, 1, 1, 1)}

# Small models of the families that call multiscale_attention or single_query_attention.
PYRAMID = {"depths": (1, 1, 1, 1), "widths": (16, 32, 40, 64)}
CVT = {"depths": (1, 1, 1), "widths": (16, 32, 48), "head_dim": 16}
SOFTMAX_FAMILIES = {
    "cq_cvt_13": CVT,
    "cvt_13": CVT,
    "emsnet_xxtiny": {"depths": (1, 1, 1, 1), "widths": (32, 32, 64, 64)},
    "mat_1": {"width": 16, "depths": (1, 1, 1, 1), "head_dim": 8},
    "mcga": {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (2, 2, 2, 2)},
    "mrl_cvt_13": CVT,
    "p2t_tiny": PYRAMID,
    "partialformer_b0": {
        "width": 16,
        "depths": (1, 1, 1, 1),
        "heads": (2, 2, 4, 4),
        "ratios": (64, 16, 4, None),
    },
    "pvt_v2_b0": PYRAMID,
    "pvt_v2_b0_mscsa": {"backbone": PYRAMID, "heads": 2, "head_dim": 7},
    "shunted_t": {"depths": (1, 1, 1, 1), "widths": (16, 32, 64, 96)},
    "topformer_t": {"depth": 1},
}


def pair(**options: object) -> tuple[nn.Module, nn.Module]:
    """A reference model and its accelerated copy. Gates and tables are far from their start."""
    torch.manual_seed(0)
    model = models.create_model("accvit_femto", **{**SMALL, **options})
    for name, parameter in model.named_parameters():
        if "gate" in name or name.endswith("attention.bias") or "norm" in name:
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.5)
    return model, models.accelerate(copy.deepcopy(model))


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits, and the gradients of all parameters and of the images."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # of drop path
    logits = model(x)
    logits.float().square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach(), "images": x.grad, **grads}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor agrees, relative to the root mean square of the expected one.

    Gradients that vanish but for rounding (a bias before a norm) count as 1e-4 of the largest.
    """
    assert found.keys() == expected.keys()
    scale = max(t.square().mean().sqrt() for t in expected.values())
    for name, tensor in expected.items():
        size = tensor.square().mean().sqrt() + 1e-4 * scale
        error = (found[name] - tensor).square().mean().sqrt() / size
        assert error < tolerance, f"{name}: {error:.2e} of {size:.2e}"


def check_as_accurate(
    found: dict[str, Tensor], reference: dict[str, Tensor], exact: dict[str, Tensor], floor: float
) -> None:
    """Root mean square errors at most twice the reference's, or `floor` of the exact values."""
    for name, tensor in exact.items():
        mine, theirs = ((o[name] - tensor).square().mean().sqrt() for o in (found, reference))
        least = floor * tensor.square().mean().sqrt() + 1e-6
        assert mine < 2 * theirs + least, f"{name}: {mine:.2e}, the reference {theirs:.2e}"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 36), (33, 70)])
def test_float64_outputs_and_gradients_equal_the_reference(height, width):
    reference, fused = (model.double() for model in pair(window_size=4))
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    check_equal(outputs(fused, x), outputs(reference, x), 1e-9)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (75, 101)])
def test_femto_in_float32_equals_the_reference(height, width):
    reference, fused = pair(layers=(1, 2, 4, 1))
    x = torch.randn(2, 3, height, width)
    check_equal(outputs(fused, x), outputs(reference, x), 2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"dw_dilations": (1,)},
        {"gate": False},
        {"shared_mlp": False},
        {"mlp": "convnext"},
        {"scale_mode": "width"},
        {"drop_path": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_equals_the_reference(options):
    reference, fused = (model.double() for model in pair(**options))
    x = torch.randn(3, 3, 40, 52, dtype=torch.float64)
    check_equal(outputs(fused, x), outputs(reference, x), 1e-9)


def test_inference_equals_the_reference():
    reference, fused = (model.eval() for model in pair())
    x = torch.randn(2, 3, 50, 36)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), reference(x), atol=1e-4, rtol=1e-4)


def test_autocast_is_as_accurate_as_the_reference():
    reference, fused = (model.eval() for model in pair())
    x = torch.randn(2, 3, 50, 36)
    exact = outputs(copy.deepcopy(reference).double(), x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = outputs(fused, x), outputs(reference, x)
    check_as_accurate(found, expected, exact, floor=1e-3)


def test_compiled_model_equals_eager():
    _, fused = pair(dilations=((1, 2), (1,), (1,), (1,)))
    compiled = copy.deepcopy(fused)
    compiled.compile(fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 50, 36)
    check_equal(outputs(compiled, x), outputs(fused, x), 1e-4)


def test_state_dict_is_unchanged_and_fits_both():
    reference, fused = pair()
    before, after = reference.state_dict(), fused.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fused.load_state_dict(before)


def test_accelerate_works_in_place_and_can_be_undone():
    reference, _ = pair()
    model = copy.deepcopy(reference)
    assert models.accelerate(model) is model
    assert models.accelerate(model, "reference") is model
    assert models.accelerated_ops(model) == {}
    x = torch.randn(1, 3, 50, 36)
    assert torch.equal(model.eval()(x), reference.eval()(x))


def test_report_names_what_was_swapped():
    reference, fused = pair()
    assert models.accelerated_ops(reference) == {}
    report = models.accelerated_ops(fused)
    assert len(report) == 8
    assert report["stages.3.0.conv"] == ("atrous_dwconv", "gated_fuse")
    assert report["stages.0.0.attention.attention"] == (
        "atrous_attention",
        "gated_fuse",
        "branch_project_in",
        "branch_project_out",
    )


def test_a_concrete_backend_is_set_for_the_process():
    with hybrid_kernels.use_backend("auto"):
        model = models.create_model("accvit_femto", backend="cpu", **SMALL)
        assert hybrid_kernels.get_backend() == "cpu"
        models.accelerate(model, "auto")
        assert hybrid_kernels.get_backend() == "cpu"
    assert all(m.ops is FUSED for m in model.modules() if hasattr(m, "ops"))


def test_models_without_mixers_are_refused():
    with pytest.raises(ValueError, match=r"Linear holds no block of python_ref\.layers"):
        models.accelerate(nn.Linear(2, 2))


def test_unknown_backends_are_refused_before_anything_changes():
    reference, _ = pair()
    with pytest.raises(ValueError, match="'gpu'"):
        models.accelerate(reference, "gpu")
    assert models.accelerated_ops(reference) == {}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_checkpoints_are_loaded(tmp_path, suffix):
    from safetensors.torch import save_file

    reference, _ = pair()
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(reference.state_dict(), path)
    loaded = models.create_model("accvit_femto", checkpoint=path, **SMALL).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in reference.state_dict().items())


def test_attention_module_is_a_drop_in():
    torch.manual_seed(0)
    reference = python_ref.layers.AtrousAttention(32, 2, (1, 2, 4)).double()
    fused = AtrousAttention(32, 2, (1, 2, 4)).double()
    fused.load_state_dict(reference.state_dict())
    x = torch.randn(2, 15, 20, 32, dtype=torch.float64)
    check_equal(outputs(fused, x), outputs(reference, x), 1e-10)


def test_wrapped_layers_are_called_not_folded():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    attention = AtrousAttention(32, 2, (1, 2))
    attention.qkvs[0], attention.projections[1] = Doubled(32, 96), Doubled(32, 32)
    x = torch.randn(1, 9, 9, 32)
    found = attention(x)
    attention.ops = REFERENCE
    torch.testing.assert_close(found, attention(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilations", [(1,), (1, 2, 3), (4, 2)])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (13, 8), (1, 2), (2, 9)])
def test_dilated_convolutions_equal_the_reference(height, width, dilations, stride):
    torch.manual_seed(0)
    x = torch.randn(2, height, width, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(dilations), 3, 3, 3, dtype=torch.float64, requires_grad=True)
    maps = [ops.atrous_dwconv(x, weight, dilations, stride) for ops in (FUSED, REFERENCE)]
    grads = [torch.randn_like(y) for y in maps[0]]
    found, expected = ([*ys, *torch.autograd.grad(ys, (x, weight), grads)] for ys in maps)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("with_query", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (1, 2), (2, 2), (1, 3)])
def test_projections_equal_the_reference(strides, with_query, affine):
    if not with_query:
        strides = (1, strides[1])
    torch.manual_seed(0)
    shapes = [(2, 5, 6, 4), *[(3, 3, 4)] * 3, *[(2, 4)] * 3, (2, 1, 4)]
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    x, *weights = leaves[:4]
    weights[0] = weights[0] if with_query else None
    affines = leaves[4:7] if affine else [None] * 3
    cls = leaves[7] if affine else None
    tokens = [ops.dwconv_qkv(x, *weights, *affines, *strides, cls) for ops in (FUSED, REFERENCE)]
    wanted = [t for t in (x, *weights, *affines, cls) if t is not None]
    grads = [torch.randn_like(y) for y in tokens[0]]
    found, expected = ([*ys, *torch.autograd.grad(ys, wanted, grads)] for ys in tokens)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize(("height", "width"), [(6, 7), (1, 2)])
def test_strip_convolutions_equal_the_reference(height, width, taps):
    torch.manual_seed(0)
    x = torch.randn(2, height, width, 5, dtype=torch.float64, requires_grad=True)
    strips = [torch.randn(taps, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ys = [ops.strip_dwconv(x, *strips) for ops in (FUSED, REFERENCE)]
    grad = torch.randn_like(ys[0])
    found, expected = ([y, *torch.autograd.grad(y, (x, *strips), grad)] for y in ys)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("axis", ["spatial", "channel"])
@pytest.mark.parametrize("convolves", [True, False])
@pytest.mark.parametrize(("height", "width"), [(6, 7), (1, 2)])
def test_whitening_equals_the_reference(height, width, convolves, axis):
    torch.manual_seed(0)
    shapes = [(2, height, width, 5), (6, 5), (3, 3, 6)][: 2 + convolves]
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    arguments = (*leaves, *[None] * (3 - len(leaves)), axis)
    ys = [ops.whiten_conv(*arguments) for ops in (FUSED, REFERENCE)]
    grad = torch.randn_like(ys[0])
    found, expected = ([y, *torch.autograd.grad(y, leaves, grad)] for y in ys)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("pool", [lambda n, p: -(-n // p), lambda n, p: n // p])
def test_gathering_of_scales_equals_the_reference(pool, gate):
    torch.manual_seed(0)
    height, width = 7, 9
    shapes = [*((2, pool(height, p), pool(width, p), 3) for p in (2, 1, 4)), (2, 2, 3), (4, 4, 3)]
    shapes += [(5, 9), *[(2, height, width, 6), (5, 6)][: 2 * gate]]
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    maps, (first, last), weight = leaves[:3], leaves[3:5], leaves[5]
    gates = leaves[6:] or [None, None]
    arguments = maps, [first, None, last], weight, height, width, *gates
    ys = [ops.propagate_conv(*arguments) for ops in (FUSED, REFERENCE)]
    grad = torch.randn_like(ys[0])
    found, expected = ([y, *torch.autograd.grad(y, leaves, grad)] for y in ys)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_a_gate_needs_both_its_parts():
    x, weight = torch.randn(1, 2, 2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="given together"):
        FUSED.propagate_conv([x], [None], weight, 2, 2, x, None)


@pytest.mark.parametrize("name", SOFTMAX_FAMILIES)
def test_every_family_is_as_accurate_as_the_reference(name):
    torch.manual_seed(0)
    reference = models.create_model(name, num_classes=10, **SOFTMAX_FAMILIES[name])
    fused = models.accelerate(copy.deepcopy(reference))
    exchanged = {op for ops in models.accelerated_ops(fused).values() for op in ops}
    assert exchanged & {"multiscale_attention", "single_query_attention"}
    x = torch.randn(2, 3, 70, 52)
    exact_fused, exact = (
        outputs(copy.deepcopy(m).double(), x.double()) for m in (fused, reference)
    )
    check_equal(exact_fused, exact, 1e-9)
    check_as_accurate(outputs(fused, x), outputs(reference, x), exact, floor=1e-5)


@pytest.mark.parametrize("name", ["mcga", "partialformer_b0"])
def test_absorbed_queries_are_exchanged_too(name):
    torch.manual_seed(0)
    options = SOFTMAX_FAMILIES[name] | {"num_classes": 10, "absorbed": True}
    reference = models.create_model(name, **options).double()
    fused = models.accelerate(copy.deepcopy(reference))
    exchanged = {op for ops in models.accelerated_ops(fused).values() for op in ops}
    assert "single_query_attention_absorbed" in exchanged
    x = torch.randn(1, 3, 70, 52, dtype=torch.float64)
    check_equal(outputs(fused, x), outputs(reference, x), 1e-9)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_group_convolutions_are_exchanged_too(reduce):
    torch.manual_seed(0)
    options = CVT | {"num_classes": 10, "gc": "append", "gc_reduce": reduce}
    reference = models.create_model("mrl_cvt_13", **options).double()
    fused = models.accelerate(copy.deepcopy(reference))
    exchanged = {op for ops in models.accelerated_ops(fused).values() for op in ops}
    assert "lift_pool" in exchanged
    x = torch.randn(1, 3, 70, 52, dtype=torch.float64)
    check_equal(outputs(fused, x), outputs(reference, x), 1e-9)


@pytest.mark.parametrize("name", SOFTMAX_FAMILIES)
def test_every_family_keeps_its_weights_and_returns_to_the_reference(name):
    torch.manual_seed(0)
    reference = models.create_model(name, num_classes=10, **SOFTMAX_FAMILIES[name]).eval()
    fused = models.accelerate(copy.deepcopy(reference))
    before, after = reference.state_dict(), fused.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    models.accelerate(fused, "reference")
    assert models.accelerated_ops(fused) == {}
    x = torch.randn(1, 3, 50, 36)
    assert torch.equal(fused(x), reference(x))


def test_folding_is_for_evaluation_only():
    model = models.create_model("accvit_femto", **SMALL)
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\) first"):
        models.accelerate(model, fold=True)
    torch.nn.init.uniform_(model.stem.norm1.running_mean)
    x = torch.randn(1, 3, 50, 36)
    before = model.eval()(x)
    models.accelerate(model, fold=True)
    assert "stem.norm1.weight" not in model.state_dict()
    assert "stem.conv1.bias" in model.state_dict()
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_folding_alone_is_worth_no_warning(recwarn):
    models.accelerate(models.create_model("resnet18").eval(), fold=True)
    assert not recwarn.list


def test_a_model_without_fused_ops_says_so():
    class Pointwise(nn.Module):
        used_ops = ("grouped_pointwise",)
        ops = REFERENCE

    with pytest.warns(UserWarning, match=r"Pointwise runs as before: .*\(grouped_pointwise\)"):
        models.accelerate(Pointwise())
    with pytest.warns(UserWarning, match="ResNet runs as before: it calls none of the ops"):
        models.create_model("resnet18", backend="auto")
