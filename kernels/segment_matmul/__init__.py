"""Each packed sequence times a matrix of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backends import autocast, check_offsets, no_second_derivative
from kernels.packed import check_layout, pieces_of
from kernels.segment_matmul.reference import segment_matmul_reference

# Padded tokens of a piece.
PLACES = 1 << 14


def segment_matmul(x: Tensor, weight: Tensor, offsets: Tensor, *, backend: str | None = None) -> Tensor:
    """Sequence b of ``x`` (N, i) times ``weight[b]`` of (B, i, o): (N, o). 2·N·i·o FLOPs.

    In torch on every device: ``backend`` is "torch", "reference" (differentiable twice) or None.

    Raises ValueError where a shape, dtype or device does not fit.
    """
    if backend not in (None, "torch", "reference"):
        raise ValueError(f"segment_matmul: unknown backend {backend!r}; known: 'reference', 'torch'")
    x, weight = autocast(x, weight)
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"segment_matmul: x (N, i) and weight (B, i, o) expected, got {(*x.shape,)} and {(*weight.shape,)}"
        )
    check_offsets("offsets", offsets, x)
    if weight.shape[0] != offsets.shape[0] - 1:
        raise ValueError(f"weight: one matrix for each of {offsets.shape[0] - 1} sequences, got {weight.shape[0]}")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"weight: {x.dtype} on {x.device} expected, got {weight.dtype} on {weight.device}")
    if backend == "reference":
        return segment_matmul_reference(x, weight, offsets)
    return _segment_matmul(x, weight, offsets)


@torch.library.custom_op("kunlun::segment_matmul", mutates_args=())
def _segment_matmul(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    check_layout("offsets", offsets, x.shape[0], None)
    out = x.new_empty(x.shape[0], weight.shape[2])
    for piece in pieces_of(offsets, PLACES):
        piece.write(out, torch.bmm(piece.pad(x), weight[piece.samples]))
    return out


@torch.library.custom_op("kunlun::segment_matmul_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    dx, dweight = x.new_empty(x.shape), weight.new_zeros(weight.shape)
    for piece in pieces_of(offsets, PLACES):
        grad_bPo = piece.pad(grad)
        piece.write(dx, torch.bmm(grad_bPo, weight[piece.samples].transpose(1, 2)))
        dweight[piece.samples] = torch.bmm(piece.pad(x).transpose(1, 2), grad_bPo)
    return dx, dweight


@_segment_matmul.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors), None


_segment_matmul.register_autograd(_differentiate, setup_context=_setup)
no_second_derivative(_backward, "segment_matmul")


@register_flop_formula(torch.ops.kunlun.segment_matmul)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], offsets: Any, **_: Any) -> int:
    return 2 * x[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.kunlun.segment_matmul_backward)
def _backward_flops(grad: Any, x: tuple[int, ...], weight: tuple[int, ...], offsets: Any, **_: Any) -> int:
    return 4 * x[0] * weight[1] * weight[2]
