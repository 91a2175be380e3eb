"""Weights on disk: what is saved comes back, and what does not fit says why."""

import pytest
import torch
from torch import nn

from python_ref.models.weights import load_weights, save_weights


def small_model(hidden: int = 4) -> nn.Module:
    """Two names for one layer, as in models whose stages share modules."""
    torch.manual_seed(hidden)
    model = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 3))
    model.append(model[0])
    return model


def test_a_round_trip_keeps_every_bit(tmp_path):
    saved, loaded = small_model(), small_model()
    with torch.no_grad():
        for p in saved.parameters():
            p.uniform_()
    save_weights(saved, tmp_path / "w.safetensors")
    load_weights(loaded, tmp_path / "w.safetensors")
    expected = saved.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())


def test_files_of_torch_save_load_too(tmp_path):
    saved, loaded = small_model(), small_model()
    nn.init.ones_(saved[0].weight)
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    load_weights(loaded, tmp_path / "w.pt")
    assert torch.equal(loaded[0].weight, torch.ones(4, 3))


def test_channels_last_weights_are_saved(tmp_path):
    saved, loaded = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    saved.to(memory_format=torch.channels_last)
    save_weights(saved, tmp_path / "w.safetensors")
    load_weights(loaded, tmp_path / "w.safetensors")
    assert torch.equal(loaded.weight, saved.weight)


def chain(*widths: int) -> nn.Module:
    return nn.Sequential(*map(nn.Linear, widths, widths[1:]))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 4, 3, 2), "the model has no 2.bias, 2.weight"),
        ((3, 4), "the file lacks 1.weight, 1.bias"),
        ((3, 4, 5), r"1.weight is \(5, 4\) in the file and \(3, 4\) here"),
    ],
    ids=["too much", "too little", "other shapes"],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, widths, message):
    save_weights(chain(*widths), tmp_path / "w.safetensors")
    model = chain(3, 4, 3)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, before)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_weights(small_model(), tmp_path / "w.safetensors")
