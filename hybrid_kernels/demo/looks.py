"""What each paper's attention looks at from one place of a photograph, as numbers to draw."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from python_ref.analysis import AttentionMap, Call, attention_maps, recorded_calls
from python_ref.analysis.attention import generated_logits

PANELS = 4  # in a strip

Place = tuple[float, float]
Found = TypeVar("Found", AttentionMap, Call)


@dataclass(frozen=True)
class Panel:
    """Numbers at the places of a map, (rows, columns); nan where there is nothing to show."""

    title: str
    values: np.ndarray
    marked: np.ndarray | None = None  # (rows, columns), whether a place is marked
    on_photo: bool = True  # over the photograph; otherwise by itself


@dataclass(frozen=True)
class Strip:
    """Panels that share a scale of colours, which is symmetric about zero."""

    title: str
    panels: list[Panel]
    label: str = "% above or below the mean weight"


@dataclass(frozen=True)
class Look:
    """A picture: the photograph under a grid, and strips of panels."""

    strips: list[Strip]
    grid: tuple[int, int] | None = None  # rows and columns of regions or windows
    caption: str = "the place that looks"


def mrl(model: nn.Module, image: Tensor, place: Place) -> Look:
    """Regional tokens: what that of the place attends to, and what all of them return."""
    maps = _first_by_stage(attention_maps(model, image, place))
    mixes = _first_by_stage(_calls(model, image, "region_mix"))
    tokens = [mix.arguments["g"][0].norm(dim=-1) for mix in mixes]
    lengths = [
        Panel(_name(mix.module), _percent(token / token.mean()))
        for mix, token in zip(mixes, tokens, strict=True)
    ]
    return Look(
        [
            Strip("Its region attends to regions, first block of each stage", _panels(maps)),
            Strip(
                "What the regions then return to pixels",
                lengths,
                "% above or below the mean length",
            ),
        ],
        tuple(tokens[0].shape),
        "the place, and the regions of the first stage",
    )


def mscsa(model: nn.Module, image: Tensor, place: Place) -> Look:
    """Cross-scale attention: the three scales of one softmax."""
    maps = [m for m in attention_maps(model, image, place) if m.label.startswith("scale")]
    by_attention = {m.module: [n for n in maps if n.module == m.module] for m in maps}
    strips = []
    for module, scales in by_attention.items():
        weights = [m.weights.mean(dim=0) for m in scales]
        keys = sum(w.numel() for w in weights)
        panels = [
            Panel(
                f"{w.shape[0]} x {w.shape[1]} keys, {w.sum():.0%} of the weight",
                _percent(w * keys),
            )
            for w in weights
        ]
        name = module.rpartition(".")[2].replace("_", " ")
        strips.append(Strip(f"{name.capitalize()}: one softmax over three scales", panels))
    return Look(strips, tuple(maps[0].weights.shape[1:]), "the place, and the pixels of the grid")


def emsnet(model: nn.Module, image: Tensor, place: Place) -> Look:
    """C-MHSA: the weights of the windows around the place, which no key decides; and G-MHSA."""
    calls = _calls(model, image, "conv_attention_fused")
    convolving = {call.module for call in calls}
    maps = attention_maps(model, image, place)
    local = [m for m in maps if m.module in convolving]
    others = [m for m in maps if m.module not in convolving]
    return Look(
        [
            Strip("C-MHSA: what it reads around it, first blocks", _panels(local[:PANELS])),
            Strip(
                "Generated weights of its window: each of 9 patches (row) reads the 9 (column)",
                [_window_weights(call, place) for call in calls[:PANELS]],
            ),
            Strip("G-MHSA: what it reads of the whole image", _panels(others[:PANELS])),
        ],
        tuple(local[0].weights.shape[1:]),
        "the place, and the patches of the first stage",
    )


def mat(model: nn.Module, image: Tensor, place: Place) -> Look:
    """Abstract tokens: each reads its window, they read each other, the pixel reads them."""
    maps = attention_maps(model, image, place)
    mixers = list(dict.fromkeys(m.module for m in maps if m.label == "abstract token"))[:PANELS]
    mixing = [m for m in maps if m.module in mixers and m.label == ""]
    fusion = [m for m in maps if m.module in mixers and m.label == "fusion"]
    windows = tuple(fusion[0].weights.shape[1:])
    return Look(
        [
            Strip(
                "Abstraction: every abstract token reads its window, first blocks",
                _panels(_of_all_windows(model, image, mixers, windows)),
            ),
            Strip("Mixing: its window's token reads the tokens", _panels(mixing)),
            Strip("Fusion: the pixel reads the tokens", _panels(fusion)),
        ],
        windows,
        "the place, and the windows",
    )


def partialformer(model: nn.Module, image: Tensor, place: Place) -> Look:
    """Foreground and background, and what the single query reads."""
    choices = _first_by_stage(_calls(model, image, "context_topk"))
    choosing = [choice.module for choice in choices]
    reads = [m for m in attention_maps(model, image, place) if m.module in choosing]
    foreground = [
        _chosen(choice, read.weights.shape[1:]) for choice, read in zip(choices, reads, strict=True)
    ]
    return Look(
        [
            Strip(
                "Foreground (marked): the tokens with the largest mean over channels",
                foreground,
                "standard deviations from the mean",
            ),
            Strip("What the single query reads of the background", _panels(reads)),
        ],
        caption="the photograph",
    )


def mcga(model: nn.Module, image: Tensor, place: Place) -> Look:
    """Group queries: what each of them reads of the whole map."""
    maps = attention_maps(model, image, place)
    queries = [Panel(m.label, _relative(m.weights)) for m in maps if m.module == maps[0].module]
    strips = [
        Strip("What the group queries of the first block read", queries[start : start + PANELS])
        for start in range(0, len(queries), PANELS)
    ]
    means = []
    for module in (m.module for m in _first_by_stage(maps)):
        weights = torch.stack([m.weights for m in maps if m.module == module])
        means.append(AttentionMap(module, "", weights.mean(dim=0)))
    strips.append(Strip("Mean over the queries, first block of each stage", _panels(means)))
    return Look(strips, caption="the photograph")


def _calls(model: nn.Module, image: Tensor, op: str) -> list[Call]:
    with torch.no_grad(), recorded_calls(model, [op]) as calls:
        model(image)
    return calls


def _first_by_stage(found: Iterable[Found]) -> list[Found]:
    """The first of every stage, by the names of the modules; of the first four stages."""
    stages: dict[str, Found] = {}
    for one in found:
        stages.setdefault(re.match(r".*?stages\.\d+", one.module)[0], one)
    return list(stages.values())[:PANELS]


def _name(module: str) -> str:
    """Words for a module such as "stages.0.blocks.1.mixer"."""
    stage, block = re.search(r"stages\.(\d+)\.(?:blocks\.)?(\d+)", module).groups()
    return f"stage {int(stage) + 1}, block {int(block) + 1}"


def _panels(maps: Sequence[AttentionMap]) -> list[Panel]:
    return [Panel(_name(m.module), _relative(m.weights)) for m in maps]


def _relative(weights: Tensor) -> np.ndarray:
    """Mean over heads, against the mean of the places that have any weight; nan elsewhere."""
    mean = weights.mean(dim=0)
    some = mean > 0
    return _percent(torch.where(some, mean / mean[some].mean(), torch.nan))


def _percent(ratio: Tensor) -> np.ndarray:
    """By how many per cent a ratio is above or below one."""
    return (100 * (ratio - 1)).numpy()


@torch.no_grad()
def _window_weights(call: Call, place: Place) -> Panel:
    """Weights (9, 9) of the window of C-MHSA that is nearest to a place."""
    logits = generated_logits(call.arguments)[0]
    row, column = (int(share * n) for share, n in zip(place, logits.shape[:2], strict=True))
    weights = (call.arguments["scale"] * logits[row, column]).softmax(dim=-1)
    return Panel(_name(call.module), _relative(weights), on_photo=False)


def _of_all_windows(
    model: nn.Module, image: Tensor, modules: Sequence[str], windows: tuple[int, int]
) -> list[AttentionMap]:
    """What the abstract tokens of all windows read, in one map for each of the modules."""
    rows, columns = windows
    weights: dict[str, Tensor] = {}
    for i, j in itertools.product(range(rows), range(columns)):
        for m in attention_maps(model, image, ((i + 0.5) / rows, (j + 0.5) / columns)):
            if m.module in modules and m.label == "abstract token":
                weights[m.module] = weights.get(m.module, 0) + m.weights
    return [AttentionMap(module, "", weights[module]) for module in modules]


def _chosen(choice: Call, size: Sequence[int]) -> Panel:
    """Scores of all tokens, as deviations from their average, and which are chosen."""
    scores = choice.arguments["u"][0].mean(dim=-1)
    marked = torch.zeros_like(scores, dtype=torch.bool)
    marked[choice.out[0].long()] = True
    values = (scores - scores.mean()) / scores.std()
    title = f"{_name(choice.module)}, {int(marked.sum())} tokens"
    return Panel(title, *(t.unflatten(0, tuple(size)).numpy() for t in (values, marked)))


# The operator that only a paper's models call, the paper, and how to look at it.
LOOKS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Place], Look]]] = {
    "region_mix": ("MRL", mrl),
    "pool_cat": ("MSCSA", mscsa),
    "conv_attention_fused": ("EMSNet", emsnet),
    "abstract_token_fork": ("MAT", mat),
    "mixed_head_attention": ("PartialFormer", partialformer),
    "group_propagate": ("MCGA", mcga),
}
