"""Samples of context_topk: few and all tokens, equal means, and strided tokens."""

import torch

from . import BadCall, Cost, Declaration, Maker, Sample


def _sample(name: str, batch: int, tokens: int, channels: int, n: int, cost=Cost.SMALL) -> Sample:
    return Sample(name, lambda make: (make.data(batch, tokens, channels), n), cost)


def _tied(make: Maker):
    """Tokens that hold one of three values, so that most means are equal."""
    levels = torch.arange(2 * 20, device=make.device).view(2, 20, 1) * 7 % 3
    return (levels - 1).to(make.dtype).expand(-1, -1, 5), 9


def _strided(make: Maker):
    """Every second token of a map with channels first."""
    return make.data(2, 6, 18).transpose(1, 2)[:, ::2], 4


SAMPLES = (
    _sample("stage1", 2, 3136, 64, 49, cost=Cost.LARGE),
    _sample("dense", 1, 20000, 32, 300, cost=Cost.HUGE),
    _sample("one_size", 2, 20, 24, 6),
    _sample("other_size", 3, 300, 24, 9, cost=Cost.MEDIUM),
    _sample("all_tokens", 2, 5, 8, 5),
    _sample("one_token", 2, 1, 8, 1),
    _sample("one_channel", 2, 9, 1, 3),
    _sample("channels_35", 1, 17, 35, 4),
    _sample("zero_batch", 0, 5, 8, 2),
    Sample("tied", _tied, cost=Cost.SMALL),
    Sample("strided", _strided, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    return BadCall(name, lambda make: change(make.data(2, 6, 8)), message)


BAD_CALLS = (
    _bad("rank", r"u has shape .*\(B, N, C\)", lambda u: (u[0], 2)),
    _bad("integers", "u has .*expected float32", lambda u: (u.int(), 2)),
    _bad("no_channel", "u has shape .*at least one channel", lambda u: (u[..., :0], 2)),
    _bad("too_many", "n = 7; expected 1 to the 6 tokens", lambda u: (u, 7)),
    _bad("none", "n = 0; expected 1 to the 6 tokens", lambda u: (u, 0)),
    _bad("no_token", "n = 1; expected 1 to the 0 tokens", lambda u: (u[:, :0], 1)),
)

DECLARATION = Declaration(
    op="context_topk",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    differentiable=0,
)
