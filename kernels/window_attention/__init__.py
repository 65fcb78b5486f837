"""Sliding-window attention: softmax over ``[t − left, t + right]`` inside each packed sequence."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backends import autocast, check_heads, check_offsets, choose_backend, no_second_derivative, own_precision
from kernels.packed import check_layout, known_lengths
from kernels.rote import Rotation, check_rotation, rote
from kernels.window_attention.reference import window_attention_reference


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    left: int | None,
    right: int | None,
    rotation: Rotation | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``softmax(q kᵀ · scale) v`` over the window of each token. Returns (N, H, D).

    Args:
        q, k, v: (N, H, D) packed.
        offsets: (B + 1,) int64.
        max_length: no sequence is longer.
        left, right: how far back and ahead a token looks, in tokens; None = to the end of its sequence.
        rotation: turns q and k before the scores (ROTE); None = none.
        scale: > 0, default D ** -0.5.
        backend: "reference", "torch" (on a CPU; elsewhere the reference), "triton" (D up to 256), or None = by
            device; see :mod:`kernels.backends`.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    Gradients for q, k, v and the rotation's theta and phi; the scores are never kept.
    Time O(T · (left + right)), memory O(T). FLOPs forward ``4 · H · D · pairs``, see :func:`pairs`; backward 2.5 times
    that.
    """
    q, k, v = autocast(q, k, v)
    if q.ndim != 3 or 0 in q.shape[1:]:
        raise ValueError(f"q: shape (N, H, D) with H and D ≥ 1 expected, got {(*q.shape,)}")
    backend = choose_backend(backend, q, "window_attention")
    if backend == "torch" and q.device.type != "cpu":
        backend = "reference"  # the fused attention that the torch backend cuts into blocks is a CPU's
    if backend == "triton" and q.shape[2] > 256:
        raise ValueError(f"q: backend 'triton' takes heads of up to 256, got {q.shape[2]}; backend 'torch' takes any")
    check_heads("k", k, tuple(q.shape), q)
    check_heads("v", v, tuple(q.shape), q)
    check_offsets("offsets", offsets, q)
    for name, side in (("left", left), ("right", right)):
        if side is not None and side < 0:
            raise ValueError(f"{name}: ≥ 0 or None expected, got {side}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale: > 0 expected, got {scale}")
    cos = sin = None
    if rotation is not None:
        check_rotation(rotation, q)
        # The kernels turn q and k as they load them; they have no gradient for angles that learn.
        if backend != "reference" and not rotation.cos_sin[0].requires_grad:
            cos, sin = rotation.cos_sin
        else:
            q, k = rote(q, rotation, backend=backend), rote(k, rotation, backend=backend)
    left = max_length if left is None else min(left, max_length)
    right = max_length if right is None else min(right, max_length)
    if backend == "reference":
        check_layout("offsets", offsets, q.shape[0], max_length)
        return window_attention_reference(q, k, v, offsets, left, right, scale)
    return _window_attention(q, k, v, offsets, cos, sin, max_length, left, right, scale, backend)[0]


def pairs(length: int, left: int | None, right: int | None) -> int:
    """How many (query, key) pairs a sequence of T = ``length`` has: T(2w + 1) − w(w + 1) for left = right = w < T."""
    left = length if left is None else min(left, length)
    right = length if right is None else min(right, length)
    return length * (left + right + 1) - _missing(length, left) - _missing(length, right)


def _missing(length: int, side: int) -> int:
    """Pairs that would lie before the start (or after the end) of the sequence."""
    full = min(side, length)
    return full * (full + 1) // 2 + (side - full) * length


def flops(length: int, left: int | None, right: int | None, width: int) -> int:
    """Forward FLOPs of one sample, all heads together ``width`` wide; projections not included."""
    return 4 * width * pairs(length, left, right)


def _implementation(backend: str) -> Any:
    return import_module("kernels.window_attention.triton" if backend == "triton" else "kernels.window_attention.tiled")


@torch.library.custom_op("kunlun::window_attention", mutates_args=())
def _window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    left: int,
    right: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_layout("offsets", offsets, q.shape[0], max_length)
    with own_precision(q):
        return _implementation(backend).forward(q, k, v, offsets, cos, sin, max_length, left, right, scale)


@torch.library.custom_op("kunlun::window_attention_backward", mutates_args=())
def _window_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    left: int,
    right: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = (max_length, left, right, scale)
    with own_precision(q):
        return _implementation(backend).backward(grad, q, k, v, out, lse, offsets, cos, sin, *options)


@_window_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=dtype)


@_window_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, cos, sin, *ctx.options = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, offsets, cos, sin)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_window_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *[None] * 8


_window_attention.register_autograd(_differentiate, setup_context=_setup)
no_second_derivative(_window_attention_backward, "window_attention")


@register_flop_formula(torch.ops.kunlun.window_attention, get_raw=True)
def _flops(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *rest: Any, out_val: Any = None) -> int:
    _, _, _, left, right, _, _ = rest
    width = q.shape[1] * q.shape[2]
    return sum(flops(length, left, right, width) for length in known_lengths(offsets, q.shape[0]))


@register_flop_formula(torch.ops.kunlun.window_attention_backward, get_raw=True)
def _backward_flops(grad: Tensor, *arguments: Any, out_val: Any = None) -> int:
    q, k, v, _, _, offsets, *rest = arguments
    return _flops(q, k, v, offsets, *rest) * 5 // 2
