"""The analysis tools, each by a property that it must have."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, random
from torch import Tensor, nn

from python_ref.analysis import (
    RandomPatchMask,
    branch_maps,
    grad_cam,
    interactions,
    layer_maps,
    layers,
    log_odds,
    log_spectrum,
    mask_patches,
    near_pairs,
    orders,
    recorded_calls,
    relative_log_amplitude,
    strengths,
    value_of_patches,
)
from python_ref.models import create_model
from python_ref.ops import REFERENCE

small = partial(create_model, "emsnet_xxtiny", widths=(32, 32, 64, 64), depths=(1, 1, 1, 1))


def seeded(build: Callable) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def test_recording_puts_the_operators_back():
    model = small()
    with pytest.raises(RuntimeError, match="stop"), recorded_calls(model, ("patch_embed",)):
        raise RuntimeError("stop")
    assert all(m.ops is REFERENCE for m in model.modules() if hasattr(m, "ops"))


def stretched(heat: Tensor, height: int, width: int) -> Tensor:
    """Every map (B, h, w) from its smallest to its largest value as 0 to 1, at the image's size."""
    heat = heat - heat.amin(dim=(1, 2), keepdim=True)
    heat = heat / heat.amax(dim=(1, 2), keepdim=True)
    return F.interpolate(heat[:, None], (height, width), mode="bilinear")[:, 0]


def test_grad_cam_of_a_linear_classifier_is_the_class_activation_map():
    """Zhou et al., 2016: with pooling and a linear layer, the weights are the classifier's."""
    model = seeded(small).double()
    images = random(2, 3, 64, 96)
    last = model.forward_features(images)[-1].detach()
    classifier = model.head[1].classifier.weight.detach()[[7, 3]]
    heat = torch.einsum("bchw,bc->bhw", last, classifier).relu()
    torch.testing.assert_close(
        grad_cam(model, images, [7, 3]), stretched(heat, 64, 96), **TOLERANCE
    )


def test_grad_cam_explains_the_likeliest_class_of_every_image():
    model, images = seeded(small), torch.randn(3, 3, 64, 64)
    likeliest = model(images).argmax(dim=1).tolist()
    torch.testing.assert_close(grad_cam(model, images), grad_cam(model, images, likeliest))


def test_grad_cam_of_a_class_token_looks_at_the_map_that_it_read_last():
    model, image = seeded(partial(create_model, "cvt_13", depths=(1, 1, 2))), random(1, 3, 64, 96)
    model.double()
    tokens: list[Tensor] = []
    hook = model.stages[2].blocks[0].register_forward_hook(lambda *seen: tokens.append(seen[2]))
    score = model(image)[0, 3]
    hook.remove()
    (grad,) = torch.autograd.grad(score, tokens)
    last, grad = (t[:, 1:].mT.unflatten(-1, (4, 6)) for t in (tokens[0].detach(), grad))
    heat = torch.einsum("bchw,bc->bhw", last, grad.mean(dim=(2, 3))).relu()
    torch.testing.assert_close(grad_cam(model, image, [3]), stretched(heat, 64, 96), **TOLERANCE)


def test_grad_cam_is_zero_where_nothing_speaks_for_a_class():
    model = seeded(small)
    nn.init.zeros_(model.head[1].classifier.weight)
    assert not grad_cam(model, torch.randn(1, 3, 64, 64), [0]).any()


@pytest.mark.parametrize("side", [8, 9])
def test_a_wave_has_its_amplitude_at_its_frequency(side):
    index, frequency = torch.arange(side, dtype=torch.float64), 3
    phase = 2 * math.pi * frequency * (index[:, None] + index) / side
    frequencies, amplitude = relative_log_amplitude(1 + phase.cos()[None, None])
    assert len(amplitude) == len(frequencies) == -(-side // 2)
    assert amplitude[0] == 0
    assert (frequencies[0], frequencies[-1]) == (0, pytest.approx(math.pi))
    # The wave's power is split between the frequency and its negative.
    assert amplitude[frequency] == pytest.approx(math.log(0.5), abs=1e-5)
    others = [k for k in range(1, len(amplitude)) if k != frequency]
    assert (amplitude[others] < -10).all()


def test_noise_is_flat_and_blurred_noise_is_not():
    torch.manual_seed(0)
    noise = torch.randn(16, 32, 16, 16)
    blurred = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)
    _, flat = relative_log_amplitude(noise)
    _, damped = relative_log_amplitude(blurred)
    assert (flat[1:] - flat[1:].mean()).abs().max() < 0.1
    assert damped[-1] < flat[-1] - 1


def test_relative_amplitude_does_not_depend_on_scale():
    maps = 100 * random(2, 3, 9, 12)
    torch.testing.assert_close(relative_log_amplitude(maps), relative_log_amplitude(5 * maps))
    assert torch.equal(log_spectrum(maps), log_spectrum(maps[:, :, :, 1:10]))


@pytest.mark.parametrize(
    ("name", "number"),
    [("emsnet_tiny", 18 + 4), ("accvit_tiny", 2 * 13 + 1), ("pvt_v2_b0", 8 + 4)],
)
def test_layers_are_blocks_stem_and_downsamplings(name, number):
    with torch.device("meta"):
        assert len(layers(create_model(name))) == number


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (50, 90)])  # 128: first 32 x 32 x 32
def test_layer_maps_have_channels_first(size):
    model, images = seeded(small), torch.randn(1, 3, *size)
    maps, stages = layer_maps(model, images), model.forward_features(images)
    torch.testing.assert_close(maps["stem"], model.stem(images))
    torch.testing.assert_close([maps[f"stages.{i}.0"] for i in range(4)], stages)


def test_branch_maps_are_what_the_branches_mix():
    model, images = seeded(small), torch.randn(1, 3, 50, 36)
    with torch.no_grad(), recorded_calls(model, ("propagate_conv",)) as calls:
        model(images)
    maps = branch_maps(model, images)
    for call in calls:
        parts = [found for name, found in maps.items() if name.startswith(f"{call.module},")]
        mixed = F.linear(torch.cat(parts, dim=1).permute(0, 2, 3, 1), call.arguments["weight"])
        if call.arguments["gate_x"] is not None:
            gate = F.linear(call.arguments["gate_x"], call.arguments["gate_weight"])
            mixed = gate * mixed.sigmoid()
        torch.testing.assert_close(mixed, call.out)
    assert len(maps) == 4 * 5


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_players_that_add_up_do_not_interact():
    share = random(10)
    found = interactions(
        lambda shown: shown.double() @ share,
        10,
        torch.tensor([[0, 3], [7, 8]]),
        [0, 4, 8],
        5,
        generator(),
    )
    torch.testing.assert_close(found, torch.zeros_like(found), **TOLERANCE)


def test_interaction_of_a_game_of_pairs_is_their_worth_at_every_order():
    worth = random(10, 10).triu(diagonal=1)
    pairs = torch.tensor([[0, 3], [7, 8], [2, 9]])

    def value(shown: Tensor) -> Tensor:
        return torch.einsum("ka,ab,kb->k", shown.double(), worth, shown.double())

    found = interactions(value, 10, pairs, orders(10), 4, generator())
    expected = worth[pairs[:, 0], pairs[:, 1]]
    torch.testing.assert_close(found, expected[:, None].expand_as(found), **TOLERANCE)
    torch.testing.assert_close(strengths(found), torch.ones(13, dtype=torch.float64))


def test_interaction_of_three_needs_the_third_in_the_context():
    found = interactions(
        lambda shown: shown[:, [1, 4, 6]].all(dim=1).double(),
        10,
        torch.tensor([[1, 4]]),
        [0, 4, 8],
        2000,
        generator(),
    )[0]
    assert (found[0], found[2]) == (0, 1)
    assert found[1] == pytest.approx(4 / 8, abs=0.05)


def test_contexts_have_their_order_and_leave_the_pair_out():
    seen = []

    def value(shown: Tensor) -> Tensor:
        seen.append(shown)
        return torch.zeros(len(shown))

    interactions(value, 12, torch.tensor([[2, 5]]), [3], 7, generator())
    both, first, second, neither = seen[0].unflatten(0, (4, 7))
    assert (neither.sum(dim=1) == 3).all()
    assert not neither[:, [2, 5]].any()
    for shown, players in ((both, [2, 5]), (first, [2]), (second, [5])):
        assert torch.equal(shown, neither.index_fill(1, torch.tensor(players), True))


def test_pairs_are_near_each_other():
    first, second = near_pairs(6, 5, 500, generator()).unbind(dim=1)
    rows, columns = (first // 5 - second // 5).abs(), (first % 5 - second % 5).abs()
    distance = torch.maximum(rows, columns)
    assert distance.unique().tolist() == [1, 2]


def test_orders_run_from_no_to_all_others():
    assert orders(256)[:3] == [0, 12, 25]
    assert orders(256)[-1] == 254


def test_log_odds_are_those_of_the_softmax():
    logits = random(5, 4)
    p = logits.softmax(dim=1)[:, 2]
    torch.testing.assert_close(log_odds(logits, 2), (p / (1 - p)).log())


def test_value_of_all_patches_is_that_of_the_image():
    model, image = seeded(small), torch.randn(1, 3, 32, 48)
    value = value_of_patches(model, image, 3, 14)
    shown = torch.stack([torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)])
    with torch.no_grad():
        expected = model(torch.cat([image, torch.zeros_like(image)]))
    torch.testing.assert_close(value(shown), log_odds(expected, 3))


def test_masked_patches_are_zero_and_the_others_untouched():
    images, keep = torch.randn(2, 3, 30, 17), torch.rand(2, 6) < 0.5
    masked = mask_patches(images, keep, 14)
    for b, row, column in ((b, r, c) for b in range(2) for r in range(3) for c in range(2)):
        cut = (b, slice(None), slice(14 * row, 14 * row + 14), slice(14 * column, 14 * column + 14))
        expected = images[cut] if keep[b, 2 * row + column] else torch.zeros_like(images[cut])
        assert torch.equal(masked[cut], expected)


def test_random_masks_are_for_training_only():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 28, 28)
    augment = RandomPatchMask(14)
    shown = (augment(images) == images).unflatten(2, (2, 14)).unflatten(4, (2, 14))
    whole = shown.all(dim=(1, 3, 5))
    assert torch.equal(whole, shown.any(dim=5).any(dim=3).any(dim=1))
    assert set(whole.sum(dim=(1, 2)).tolist()) == {0, 1, 2, 3, 4}
    assert augment.eval()(images) is images
    assert RandomPatchMask(14, enabled=False)(images) is images


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: recorded_calls(m, ("softmax",)).__enter__(), "no operator .* 'softmax'"),
        (lambda m, x: grad_cam(m, x, [1, 2]), "one index below 1000 for each of 1 images"),
        (lambda m, x: grad_cam(m, x, [1000]), "one index below 1000"),
        (lambda m, x: grad_cam(small(num_classes=0), x), "needs a classifier"),
        (lambda m, x: branch_maps(small(row="baseline"), x), "needs an EMSNet"),
        (lambda m, x: mask_patches(x, torch.ones(1, 3)), r"keep must be .* \(1, 16\)"),
        (lambda m, x: near_pairs(1, 1, 1, generator()), "no pairs"),
        (
            lambda m, x: interactions(len, 4, torch.tensor([[0, 1]]), [3], 1, generator()),
            r"sizes must be in 0\.\.2",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(small().eval(), torch.randn(1, 3, 50, 50))
