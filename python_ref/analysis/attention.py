"""Attention maps of any family: where a place of the image looks, operator by operator.

Every attention is linear in its values. Hence the weights that a query gives to the keys are the
gradient of one channel of its output with respect to that channel of the values, whatever windows,
dilations, biases and masks the operator has. Nothing of its insides is written down again here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.analysis.recording import Call, grid_of, recorded_calls
from python_ref.ops import (
    abstract_token_attention_out,
    atrous_attention_out,
    conv_attention,
    multiscale_attention_out,
    single_query_attention_out,
    token_fusion,
)
from python_ref.ops.depthwise import depthwise


@dataclass(frozen=True)
class AttentionMap:
    """What one place of the image looks at, in one attention.

    Attributes:
        module: name of the mixer.
        label: which branch, scale or query, if there are several.
        weights: (h, rows, columns) for every head: weight of every key.
    """

    module: str
    label: str
    weights: Tensor


@dataclass(frozen=True)
class _Segment:
    """Values (B, *keys, h, d), and the linear function from them to outputs (B, *queries, h, d)."""

    label: str
    values: Tensor
    attend: Callable[[Tensor], Tensor]
    has_place: bool = True  # queries lie on the map; otherwise they are learned


def attention_maps(
    model: nn.Module, image: Tensor, place: tuple[float, float] = (0.5, 0.5)
) -> list[AttentionMap]:
    """Attention weights of the query nearest to a place, for every attention of a model.

    Learned queries, which have no place, are all shown. Left out are tokens without a place (groups
    of tokens, several pooled maps in a row, pixels picked by content), and maps that are attended
    to piece by piece (shifted windows). Maps that a mixer fills up to whole windows are taken for
    the image: use a size that the windows tile.

    Args:
        model: any backbone whose mixers call their operators through `ops`.
        image: (1, C, H, W).
        place: row and column, as shares of the image's height and width, in [0, 1).

    Returns:
        One map for each attention, and for each branch or scale in it, in the order of the calls.

    Raises:
        ValueError: image is not one, place is outside, or the model has no attention to show.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"image must be (1, C, H, W), got {tuple(image.shape)}")
    if not all(0 <= share < 1 for share in place):
        raise ValueError(f"place must be two numbers in [0, 1), got {place}")
    with torch.no_grad(), recorded_calls(model, _SEGMENTS) as calls:
        model(image)
    found = []
    for call in _whole_maps(calls):
        for segment in _SEGMENTS[call.op](call.arguments):
            if (weights := _weights(segment, place, image.shape[2:])) is not None:
                found.append(AttentionMap(call.module, segment.label, weights))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention between places; the operators that can be "
            f"shown are {', '.join(_SEGMENTS)}"
        )
    return found


def _whole_maps(calls: Sequence[Call]) -> list[Call]:
    """Calls but for those of a mixer that cuts its map: more than one attention inside windows."""
    cut = [call.module for call in calls if call.op == "atrous_attention"]
    return [call for call in calls if cut.count(call.module) < 2]


def _weights(segment: _Segment, place: tuple[float, float], size: Sequence[int]) -> Tensor | None:
    """(h, rows, columns), or None if queries or keys have no place."""
    with torch.enable_grad():
        values = segment.values.detach().requires_grad_()
        out = segment.attend(values)
    query, queries = 0, (1, 1, 0)
    if segment.has_place:
        queries = grid_of(out.shape[1:-2], size)
        if queries is None or out.shape[0] != 1:
            return None
        rows, columns, query = queries
        query += int(place[0] * rows) * columns + int(place[1] * columns)
    keys = grid_of(values.shape[1:-2], size)
    if keys is None or keys[2] != queries[2]:
        return None
    (grad,) = torch.autograd.grad(out.flatten(1, -3)[0, query, :, 0].sum(), values)
    weights = grad[0].flatten(0, -3)[keys[2] :, :, 0]
    return weights.T.unflatten(-1, keys[:2])


def _atrous_attention(call: Mapping) -> Iterator[_Segment]:
    qkv, bias, window, scale = (call[name] for name in ("qkv", "bias", "window", "scale"))
    for k, dilation in enumerate(call["dilations"]):
        query, key, value = qkv[:, :, :, k].unbind(dim=3)
        table = None if bias is None else bias[k : k + 1]

        def attend(v, query=query, key=key, table=table, dilation=dilation):
            branch = torch.stack([query, key, v], dim=3).unsqueeze(3)
            return atrous_attention_out(branch, table, (dilation,), window, scale).squeeze(3)

        yield _Segment(f"dilation {dilation}" if qkv.shape[3] > 1 else "", value, attend)


def _multiscale_attention(call: Mapping) -> Iterator[_Segment]:
    q, ks, vs, scale = (call[name] for name in ("q", "ks", "vs", "scale"))
    for i, value in enumerate(vs):

        def attend(v, i=i):
            values = [v if i == j else other for j, other in enumerate(vs)]
            return multiscale_attention_out(q, ks, values, scale)

        yield _Segment(f"scale {i + 1}" if len(vs) > 1 else "", value, attend)


def _abstract_token_attention(call: Mapping) -> Iterator[_Segment]:
    query, key, value = call["qkv"].unbind(dim=3)

    def attend(v):
        arguments = dict(call) | {"qkv": torch.stack([query, key, v], dim=3)}
        return abstract_token_attention_out(**arguments)

    yield _Segment("window", value, lambda v: attend(v)[0])
    yield _Segment("abstract token", value, lambda v: attend(v)[1])


def _token_fusion(call: Mapping) -> Iterator[_Segment]:
    key, value = call["kv"].unbind(dim=2)
    nothing = torch.zeros_like(call["y"])

    def attend(v):
        return token_fusion(call["q"], torch.stack([key, v], dim=2), nothing, call["scale"])

    yield _Segment("fusion", value, attend)


def _conv_attention(call: Mapping) -> Iterator[_Segment]:
    heads = call["logits"].shape[3]

    def attend(v):
        return conv_attention(**dict(call) | {"v": v.flatten(-2)}).unflatten(-1, (heads, -1))

    yield _Segment("", call["v"].unflatten(-1, (heads, -1)), attend)


def generated_logits(call: Mapping) -> Tensor:
    """Logits (B, H', W', h, 9, 9) of the windows of a call of `conv_attention_fused`."""
    pooled = depthwise(call["x"], call["dw_weight"], stride=2)
    logits = F.linear(pooled, call["logit_weight"], call["logit_bias"])
    return logits.unflatten(-1, (call["heads"], 9, 9))


def _conv_attention_fused(call: Mapping) -> Iterator[_Segment]:
    value = F.linear(call["x"], call["value_weight"])
    logits, scale = generated_logits(call), call["scale"]
    yield from _conv_attention({"v": value, "logits": logits, "scale": scale})


def _single_query_attention(call: Mapping) -> Iterator[_Segment]:
    queries = call["query"].shape[-3]
    for g in range(queries):
        query = call["query"][..., g : g + 1, :, :]

        def attend(v, query=query):
            return single_query_attention_out(**dict(call) | {"query": query, "v": v})

        label = f"query {g + 1}" if queries > 1 else ""
        yield _Segment(label, call["v"], attend, has_place=False)


def _single_query_attention_absorbed(call: Mapping) -> Iterator[_Segment]:
    heads = call["query"].shape[-2]
    key, value = (
        F.linear(call["x"], call[name]).unflatten(-1, (heads, -1))
        for name in ("key_weight", "value_weight")
    )
    names = ("query", "scale", "exclude")
    yield from _single_query_attention(
        {name: call[name] for name in names} | {"k": key, "v": value}
    )


_SEGMENTS: dict[str, Callable[[Mapping], Iterator[_Segment]]] = {
    "abstract_token_fork": _abstract_token_attention,
    "atrous_attention": _atrous_attention,
    "conv_attention": _conv_attention,
    "conv_attention_fused": _conv_attention_fused,
    "multiscale_attention": _multiscale_attention,
    "single_query_attention": _single_query_attention,
    "single_query_attention_absorbed": _single_query_attention_absorbed,
    "token_fusion": _token_fusion,
}
