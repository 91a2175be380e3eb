"""MHVN: sizes, shapes, options, and a training step with the loss and targets of nuclei."""

import numpy as np
import pytest
import torch
from model_checks import check_lists_its_ops

from python_ref.counting import count
from python_ref.models import create_model, load_weights, save_weights
from python_ref.nuclei import central, hover_loss, label_nuclei, make_targets, predict_image

SMALL = {
    "depths": (1, 1, 1),
    "widths": (16, 32, 48),
    "head_dim": 16,
    "decoder_depths": (1, 1, 1),
    "hidden": 8,
}


def small(name="mhvn", **options):
    torch.manual_seed(0)
    return create_model(name, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs", "printed"),
    [
        # Parameters, MACs at 256 x 256, and both in M and G.
        ("mhvn", {}, 49_298_916, 25_850_404_864, (49.3, 25.9)),
        ("gc_mhvn", {}, 49_388_676, 26_151_215_104, (49.4, 26.2)),
        ("mhvn", {"common_qkv": True}, 41_612_484, 25_334_861_824, (41.6, 25.3)),
    ],
    ids=["mhvn", "gc_mhvn", "common_qkv"],
)
def test_sizes(name, options, parameters, macs, printed):
    with torch.device("meta"):
        counted = count(create_model(name, **options).eval(), torch.empty(1, 3, 256, 256))
    assert (counted.parameters, counted.total()) == (parameters, macs)
    assert (round(parameters / 1e6, 1), round(macs / 1e9, 1)) == printed


def test_size_of_the_parts():
    with torch.device("meta"):
        model = create_model("mhvn")
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (model.encoder, model.nucleus, model.distance)
    ]
    assert [round(size / 1e6, 2) for size in sizes] == [44.02, 2.64, 2.64]


@pytest.mark.parametrize("name", ["mhvn", "gc_mhvn"])
@pytest.mark.parametrize(("batch", "size"), [(1, (224, 224)), (2, (75, 101)), (2, (33, 47))])
def test_outputs_have_the_size_of_the_image_and_train(name, batch, size):
    model = small(name)
    logits, distances = model(torch.randn(batch, 3, *size))
    assert logits.shape == distances.shape == (batch, 2, *size)
    (logits.square().sum() + distances.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"common_qkv": True},
        {"gc": "replace"},
        {"gc": "append", "gc_group": "p4m"},
        {"gc": "append", "gc_reduce": "mean"},
        {"decoder_depths": (0, 2, 0)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_trains(options):
    model = small(**options)
    logits, distances = model(torch.randn(2, options.get("in_chans", 3), 40, 52))
    (logits.sum() + distances.square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_are_the_maps_of_the_encoder():
    model = small(features_only=True, out_indices=(0, 2)).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, 16, 16, 24), (1, 48, 4, 6)]
    assert [(info.channels, info.stride) for info in model.feature_info] == [(16, 4), (48, 16)]


def test_the_two_decoders_are_independent():
    model = small()
    logits, distances = model(torch.randn(1, 3, 64, 64))
    logits.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.distance.parameters())
    distances.sum().backward()
    assert all(p.grad is not None for p in model.distance.parameters())


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    model, other = small("gc_mhvn").eval(), create_model("gc_mhvn", **SMALL).eval()
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    x = torch.randn(2, 3, 50, 36)
    with torch.no_grad():
        expected = model(x)
        for run in (model, other):
            assert all(torch.equal(a, b) for a, b in zip(run(x), expected, strict=True))


@pytest.mark.parametrize("gc", [None, "append", "replace"])
def test_mixers_call_the_ops_that_they_list(gc):
    check_lists_its_ops(lambda num_classes: small(gc=gc))


def test_compiled_model_equals_eager():
    torch._dynamo.reset()
    model = small().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        for a, b in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(a, b)


def picture_of_nuclei():
    """Dark discs on a bright ground: image (1, 3, 64, 64) and label map (64, 64)."""
    rows, columns = np.indices((64, 64))
    labels = np.zeros((64, 64), dtype=np.int64)
    for index, (row, column) in enumerate([(16, 16), (20, 44), (44, 18), (46, 42)], start=1):
        labels[np.hypot(rows - row, columns - column) < 9] = index
    image = torch.from_numpy(np.where(labels > 0, 0.3, 0.8)).float()
    return image.expand(1, 3, 64, 64).contiguous(), labels


def test_training_on_one_picture_finds_its_nuclei():
    image, labels = picture_of_nuclei()
    crop = 48
    foreground, distances = (torch.from_numpy(t)[None] for t in make_targets(labels, crop))
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        outputs = (central(x, crop) for x in model(image))
        loss = hover_loss(*outputs, foreground, distances)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    probability, found = predict_image(model.eval(), image[0], window=64, crop=crop)
    nuclei = label_nuclei(central(probability, crop), central(found, crop))
    assert len(np.unique(nuclei)) == 5  # four and the background


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": 3}, "mhvn has no option 'branches'; .*decoder_depths"),
        ({"decoder_regions": (4, 4)}, "decoder_regions must have three entries"),
        ({"widths": (96, 288)}, "widths must have one entry for each of the 3 stages"),
        ({"head_dim": 64}, "head_dim must divide the widths"),
        ({"gc": "prepend"}, "gc must be one of"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("mhvn", **options)
