"""Interaction strength: how much two patches say together that neither says alone.

Thesis Sec. 3.7, Eq. 3.13 and 3.14, after "Discovering and Explaining the Representation Bottleneck
of DNNs" (Deng et al., 2022). Patches are players of a game, v(S) is what a network gets from the
patches S; the order m of an interaction is the number of other patches that are shown with the two.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from python_ref.analysis.masking import mask_patches

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
Value = Callable[[Tensor], Tensor]


def orders(players: int, shares: Sequence[float] = SHARES) -> list[int]:
    """Sizes m = int(share * (n - 2)) of the context, for n players."""
    return [int(share * (players - 2)) for share in shares]


def near_pairs(
    rows: int, columns: int, number: int, generator: torch.Generator, distance: int = 2
) -> Tensor:
    """Random pairs of different patches that are at most `distance` rows and columns apart.

    Args:
        rows, columns: of the grid of patches.
        number: of pairs; there may be equal ones.
        generator: of the random numbers.
        distance: largest difference of rows and of columns.

    Returns:
        (number, 2) int64, patches numbered row by row.

    Raises:
        ValueError: the grid has a single patch.
    """
    if rows * columns < 2:
        raise ValueError(f"a {rows} x {columns} grid of patches has no pairs")
    patch = torch.arange(rows * columns)
    row, column = patch // columns, patch % columns
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    pairs = ((apart > 0) & (apart <= distance)).nonzero()
    return pairs[torch.randint(len(pairs), (number,), generator=generator)]


def interactions(
    value: Value,
    players: int,
    pairs: Tensor,
    sizes: Sequence[int],
    contexts: int,
    generator: torch.Generator,
) -> Tensor:
    """I(m)(i, j) = mean over contexts S of v(S + i + j) - v(S + i) - v(S + j) + v(S), Eq. 3.13.

    Args:
        value: v, from shown players (K, n) bool to (K,).
        players: n.
        pairs: (P, 2), see `near_pairs`.
        sizes: the orders m; S has m of the n - 2 others.
        contexts: number of random S per pair and order.
        generator: of the random numbers.

    Returns:
        (P, orders).

    Raises:
        ValueError: an order is not in 0..n - 2.
    """
    if any(not 0 <= m <= players - 2 for m in sizes):
        raise ValueError(f"sizes must be in 0..{players - 2} for {players} players, got {sizes}")
    found = torch.stack(
        [
            torch.stack([_interaction(value, players, pair, m, contexts, generator) for m in sizes])
            for pair in pairs
        ]
    )
    return found


def strengths(found: Tensor) -> Tensor:
    """J(m), Eq. 3.14: mean |I(m)| over pairs, over the mean of these for all orders.

    Args:
        found: I(m)(i, j) of all pairs of all images, (P, orders).

    Returns:
        (orders,), with mean 1.
    """
    by_order = found.abs().mean(dim=0)
    return by_order / by_order.mean()


def log_odds(logits: Tensor, label: int) -> Tensor:
    """log(p / (1 - p)) of a class from logits (K, classes): its logit minus that of all others."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def value_of_patches(model: nn.Module, image: Tensor, label: int, patch: int = 14) -> Value:
    """v(S): the log-odds that a classifier gives to `label` if only the patches S are shown.

    Args:
        model: a classifier in eval mode.
        image: (1, C, H, W), normalised.
        label: class.
        patch: side of the patches in pixels.
    """

    @torch.no_grad()
    def value(shown: Tensor) -> Tensor:
        masked = mask_patches(image.expand(len(shown), -1, -1, -1), shown.to(image.device), patch)
        return log_odds(model(masked), label).cpu()

    return value


def _interaction(
    value: Value, players: int, pair: Tensor, m: int, contexts: int, generator: torch.Generator
) -> Tensor:
    others = torch.ones(players, dtype=torch.bool)
    others[pair] = False
    others = others.nonzero().flatten()
    shown = torch.zeros(4, contexts, players, dtype=torch.bool)
    for context in range(contexts):
        chosen = others[torch.randperm(len(others), generator=generator)[:m]]
        shown[:, context, chosen] = True
    shown[:2, :, pair[0]] = True  # S + i + j and S + i
    shown[::2, :, pair[1]] = True  # S + i + j and S + j
    both, first, second, neither = value(shown.flatten(0, 1)).unflatten(0, (4, contexts))
    return (both - first - second + neither).mean()
