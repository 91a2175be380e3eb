"""What every backbone is checked for, see `model_suite`.

Models come as a function of keyword arguments, for example
`lambda **more: create_model("mat_1", depths=(1, 1, 1, 1), **more)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybrid_kernels.count import markdown_line
from hybrid_kernels.folding import fold_norms
from python_ref.models.weights import load_weights, save_weights
from python_ref.ops import OpTable
from python_ref.ops.swap import swapped_ops
from python_ref.published import Row, agrees

Build = Callable[..., nn.Module]
RAGGED = (75, 101)
TABLES = (Path(__file__).parent.parent / "python_ref/published/TABLES.md").read_text().splitlines()


def row_id(row: Row) -> str:
    """Readable name of a parametrised row."""
    return f"{row.table} {row.name} {row.under} {row.size[0]}".replace("  ", " ")


def check_row(row: Row) -> None:
    """The exact integers, the figures that the paper prints, and the line of TABLES.md."""
    figures = row.count()
    if row.params is not None:
        assert figures.parameters == row.params
    if row.macs is not None:
        assert figures.macs == row.macs
    if row.checked and row.paper_params is not None:
        millions = figures.parameters / 1e6
        assert agrees(row.paper_params, millions, row.params_within), (millions, row.paper_params)
    if row.checked and row.paper_macs is not None:
        giga = figures.operations / 1e9
        assert agrees(row.paper_macs, giga, row.macs_within), (giga, row.paper_macs)
    assert markdown_line(row) in TABLES, "TABLES.md is old; its first lines say how it is made"


def check_trains(build: Build, batch: int, size: tuple[int, int], channels: int = 3) -> None:
    """Logits of the right shape, and a finite gradient for every parameter."""
    torch.manual_seed(0)
    model = build(num_classes=10)
    logits = model(torch.randn(batch, channels, *size))
    assert logits.shape == (batch, 10)
    logits.square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters())


def check_features(build: Build, size: tuple[int, int], out_indices: Sequence[int]) -> None:
    """Maps as `feature_info` says, every stride rounding up, channels-last in memory."""
    model = build(features_only=True, out_indices=out_indices).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    height, width = size
    expected = [
        (1, info.channels, -(-height // info.stride), -(-width // info.stride))
        for info in model.feature_info
    ]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


def check_round_trip(build: Build, folder: Path, size: tuple[int, int] = (64, 48)) -> None:
    """Saved and loaded weights give the same bits, and so does a second run in eval mode."""
    torch.manual_seed(0)
    model, other = build(num_classes=10).eval(), build(num_classes=10).eval()
    save_weights(model, folder / "weights.safetensors")
    load_weights(other, folder / "weights.safetensors")
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(expected, model(x))
        assert torch.equal(expected, other(x))


def check_folds(build: Build, size: tuple[int, int] = (64, 48)) -> None:
    """Norms that blocks declare as foldable are gone afterwards, and nothing else has changed."""
    torch.manual_seed(0)
    model = build(num_classes=10).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):  # far from the identity that it starts as
            for values, low in ((norm.weight, -2), (norm.bias, -1), (norm.running_mean, -1)):
                nn.init.uniform_(values, low, 1)
            nn.init.uniform_(norm.running_var, 0.2, 2)
    declared = [fold for block in model.modules() for fold in getattr(block, "folds", ())]
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(x)
        folded = fold_norms(model)
        torch.testing.assert_close(model(x), expected, atol=1e-9, rtol=1e-9)
    assert len(folded) <= len(declared)
    for name in folded:
        assert not model.get_submodule(name).state_dict()
    if folded:
        with pytest.raises(RuntimeError, match="folded into its weights"):
            model.train()


def check_batches_do_not_mix(build: Build, size: tuple[int, int] = (64, 48)) -> None:
    """In eval mode an image's logits do not depend on the other images."""
    torch.manual_seed(0)
    model = build(num_classes=10).eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def check_pooled_features(build: Build, size: tuple[int, int] = (64, 48)) -> None:
    """Without classes a model returns one vector per image."""
    model = build(num_classes=0).eval()
    with torch.no_grad():
        pooled: Tensor = model(torch.randn(2, 3, *size))
    assert pooled.ndim == 2
    assert pooled.shape[0] == 2


def check_compiles(build: Build, size: tuple[int, int] = (64, 48)) -> None:
    """The whole model is one graph, and computes the same."""
    torch.manual_seed(0)
    model = build(num_classes=10).eval()
    torch._dynamo.reset()  # it gives up on a function that many families share
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def check_lists_its_ops(build: Build, channels: int = 3, size: tuple[int, int] = (64, 48)) -> None:
    """Every mixer calls exactly the operators that its `used_ops` names."""
    model = build(num_classes=10).eval()
    called: dict[str, set[str]] = {}

    def spying(mixer: str, table: OpTable) -> OpTable:
        def spy(op: str) -> Callable:
            def call(*args):
                called[mixer].add(op)
                return getattr(table, op)(*args)

            return call

        called[mixer] = set()
        return replace(table, **{op: spy(op) for op in vars(table)})

    with swapped_ops(model, spying), torch.no_grad():
        model(torch.randn(1, channels, *size))
    assert called == {name: set(model.get_submodule(name).used_ops) for name in called}


def tensors_of(output: object) -> list[Tensor]:
    """All tensors of nested lists and tuples, as detectors return them."""
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output if part is not None for t in tensors_of(part)]
