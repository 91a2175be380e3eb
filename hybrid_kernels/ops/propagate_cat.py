"""Full-size maps and tokens, spread over their pixels, side by side in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._maps import parameter_dtype, require_map, require_parameter, require_pixels, widened
from ._registration import register, require, require_tensor

MAX_MAPS = 8


def propagate_cat(
    maps: Sequence[Tensor], kernels: Sequence[Tensor | None], height: int, width: int
) -> Tensor:
    """Concatenate maps on channels, spreading those that are tokens of ``p x p`` pixels.

    Tokens ``z`` with a kernel give ``y[i, j] = z[i // p, j // p] * kernel[i % p, j % p]``, cropped
    to the map, and 0 where there is no token. The spread maps are not stored on their own.

    Args:
        maps: 1 to 8 maps ``(B, height, width, C_i)``, or tokens ``(B, h_i, w_i, C_i)`` with ``h_i``
            being ``height / p_i`` rounded up or down, ``w_i`` alike. One dtype of float32,
            bfloat16, float16, or float64 (CPU); any strides, so that channel slices of a larger map
            need no copy.
        kernels: For every map ``None``, or the kernel ``(p_i, p_i, C_i)`` of its tokens. float32
            (float64 beside float64); 16-bit ones are converted.
        height: Rows of the result, at least 1.
        width: Columns of the result, at least 1.

    Returns:
        ``(B, height, width, sum of C_i)``, contiguous, in the dtype of the maps.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: EMSNet ("Efficient Vision Transformers with Multi-Scale and Partial Attentions"), Sec.
        3.3: Prop and the concatenation of both branches. `hybrid_kernels.nn.propagate_conv` adds
        the convolution and the gate.
    """
    op = "propagate_cat"
    require(len(maps) > 0, f"{op}: maps has 0 entries; expected 1 to {MAX_MAPS}")
    require(
        len(kernels) == len(maps),
        f"{op}: kernels has {len(kernels)} entries; expected {len(maps)}, one for each map, None "
        "for those that are no tokens",
    )
    given = [widened(kernel) for kernel in kernels if kernel is not None]
    is_tokens = [kernel is not None for kernel in kernels]
    return torch.ops.hybrid.propagate_cat(maps, given, is_tokens, height, width)


def _fake(maps, kernels, is_tokens, height, width):
    channels = sum(z.shape[3] for z in maps)
    return maps[0].new_empty((maps[0].shape[0], height, width, channels))


def _fake_backward(grad, maps, kernels, is_tokens, height, width, need_maps, need_kernels):
    dtype = parameter_dtype(grad)
    return (
        [z.new_empty(z.shape if need else (0,)) for z, need in zip(maps, need_maps, strict=True)],
        [
            grad.new_empty(kernel.shape if need else (0,), dtype=dtype)
            for kernel, need in zip(kernels, need_kernels, strict=True)
        ],
    )


def _setup_context(ctx, inputs, output):
    maps, kernels, *ctx.constants = inputs
    ctx.count = len(maps)
    ctx.save_for_backward(*maps, *kernels)


def _backward(ctx, grad):
    maps, kernels = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    need_maps, need_kernels = ctx.needs_input_grad[:2]
    is_tokens = ctx.constants[0]
    need_tokens = [need and tokens for need, tokens in zip(need_maps, is_tokens, strict=True)]
    grad_maps, grad_kernels = torch.ops.hybrid.propagate_cat_backward(
        grad, maps, kernels, *ctx.constants, need_tokens, need_kernels
    )
    # That of a full-size map is there already, among the channels of grad.
    slices = grad.split([z.shape[3] for z in maps], dim=3)
    return (
        [
            (g if tokens else part) if need else None
            for g, part, tokens, need in zip(grad_maps, slices, is_tokens, need_maps, strict=True)
        ],
        [g if need else None for g, need in zip(grad_kernels, need_kernels, strict=True)],
        None,
        None,
        None,
    )


def _flops(maps, kernels, is_tokens, height, width, **_):
    """A product per pixel of what is spread."""
    channels = sum(kernel.shape[2] for kernel in kernels)
    return maps[0].shape[0] * height * width * channels


def _flops_backward(grad, maps, kernels, is_tokens, height, width, need_maps, need_kernels, **_):
    pixels = 2 * maps[0].shape[0] * height * width
    spread = [need for need, tokens in zip(need_maps, is_tokens, strict=True) if tokens]
    return pixels * sum(
        kernel.shape[2] * (need + need_kernel)
        for kernel, need, need_kernel in zip(kernels, spread, need_kernels, strict=True)
    )


def _check(maps, kernels, is_tokens, height, width):
    op = "propagate_cat"
    require(
        1 <= len(maps) <= MAX_MAPS,
        f"{op}: maps has {len(maps)} entries; expected 1 to {MAX_MAPS}; join further ones with "
        "torch.cat",
    )
    require(
        len(is_tokens) == len(maps),
        f"{op}: is_tokens has {len(is_tokens)} entries; expected one for each of the {len(maps)} "
        "maps",
    )
    require(
        len(kernels) == sum(is_tokens),
        f"{op}: kernels has {len(kernels)} entries; expected one for each of the {sum(is_tokens)} "
        "maps of tokens",
    )
    require(height >= 1, f"{op}: height = {height}; expected 1 or more")
    require(width >= 1, f"{op}: width = {width}; expected 1 or more")
    given = iter(enumerate(kernels))
    for i, (z, tokens) in enumerate(zip(maps, is_tokens, strict=True)):
        name = f"maps[{i}]"
        require_map(op, name, z)
        require_pixels(op, z, name)
        C = z.shape[3]
        require(C >= 1, f"{op}: {name} has shape {tuple(z.shape)}; expected at least one channel")
        size = z.shape[1:3] if tokens else (height, width)
        meaning = "(B, h, w, C)" if tokens else "(B, height, width, C)"
        shape = (maps[0].shape[0], *size, C)
        require_tensor(op, name, z, [shape], meaning, maps[0].dtype, ("maps[0]", maps[0]))
        if tokens:
            _check_spread(name, z, *next(given), height, width)


def _check_spread(name, z, index, kernel, height, width):
    op = "propagate_cat"
    p = kernel.shape[0] if kernel.dim() == 3 and kernel.shape[0] > 0 else 1
    require_parameter(op, f"kernels[{index}]", kernel, (p, p, z.shape[3]), "(p, p, C)", z)
    fits = all(
        count == (size + p - 1) // p or count == size // p
        for count, size in zip(z.shape[1:3], (height, width), strict=True)
    )
    require(
        fits,
        f"{op}: {name} has shape {tuple(z.shape)}; expected {height} / {p} rows and {width} / {p} "
        "columns, rounded up or down and at least one",
    )


def _check_backward(grad, maps, kernels, is_tokens, height, width, need_maps, need_kernels):
    _check(maps, kernels, is_tokens, height, width)
    shape = (maps[0].shape[0], height, width, sum(z.shape[3] for z in maps))
    require_tensor(
        "propagate_cat",
        "grad",
        grad,
        [shape],
        "(B, height, width, channels)",
        maps[0].dtype,
        ("maps[0]", maps[0]),
    )
    require(
        len(need_maps) == len(maps) and len(need_kernels) == len(kernels),
        f"propagate_cat_backward: need_maps and need_kernels have {len(need_maps)} and "
        f"{len(need_kernels)} entries; expected {len(maps)} and {len(kernels)}",
    )


register(
    "propagate_cat",
    module="propagate_cat",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("maps",),
    flops=_flops,
)
register(
    "propagate_cat_backward",
    module="propagate_cat",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
