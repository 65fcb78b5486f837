"""Rows of one head, as the Triton kernels load them, turn them, multiply them and store them.

A head that is turned (ROTE) is held as its two halves, its parts: pair i is (i, i + D/2), so turning needs no shuffle,
and the scores of the parts add up. A head that is not turned is one part.

Legend: R rows of a block · D head width · P width of a part, D/2 or D; both in blocks of a power of two.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))
# The score of what does not count, and the largest so far before there is any: finite, so that no difference is NaN.
NOWHERE: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def load_rows(base, row_stride, rows, last, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of ``WIDTH`` elements as (R, BLOCK); zeros at ``last`` and beyond."""
    d = tl.arange(0, BLOCK)
    mask = (rows < last)[:, None]
    if BLOCK != WIDTH:
        mask = mask & (d < WIDTH)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * row_stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, row_stride, rows, last, x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse, in the dtype of ``base``."""
    d = tl.arange(0, BLOCK)
    mask = (rows < last)[:, None]
    if BLOCK != WIDTH:
        mask = mask & (d < WIDTH)[None, :]
    tl.store(base + rows.to(tl.int64)[:, None] * row_stride + d[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_parts(base, row_stride, rows, last, ROTATE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):
    """A head as its two halves, or as it is (then twice: the second is not used)."""
    first = load_rows(base, row_stride, rows, last, PART, BLOCK)
    second = first
    if ROTATE:
        second = load_rows(base + PART, row_stride, rows, last, PART, BLOCK)
    return first, second


@triton.jit
def load_turned(
    x, x_row, cos, sin, rows, last, ROTATE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A head in parts, turned; rounded as :func:`kernels.rote.rote` rounds it."""
    first, second = load_parts(x, x_row, rows, last, ROTATE, PART, BLOCK)
    if ROTATE:
        cos_RP = load_rows(cos, PART, rows, last, PART, BLOCK).to(tl.float32)
        sin_RP = load_rows(sin, PART, rows, last, PART, BLOCK).to(tl.float32)
        a = first.to(tl.float32)
        b = second.to(tl.float32)
        first = (a * cos_RP - b * sin_RP).to(first.dtype)
        second = (b * cos_RP + a * sin_RP).to(second.dtype)
    return first, second


@triton.jit
def store_turned_back(
    base, row_stride, cos, sin, rows, last, first, second, ROTATE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The gradient of a head that was turned, given for its turned parts."""
    if ROTATE:
        cos_RP = load_rows(cos, PART, rows, last, PART, BLOCK).to(tl.float32)
        sin_RP = load_rows(sin, PART, rows, last, PART, BLOCK).to(tl.float32)
        store_rows(base + PART, row_stride, rows, last, second * cos_RP - first * sin_RP, PART, BLOCK)
        first = first * cos_RP + second * sin_RP
    store_rows(base, row_stride, rows, last, first, PART, BLOCK)


@triton.jit
def dot_parts(left_1, left_2, right_1, right_2, ROTATE: tl.constexpr):
    """``left rightᵀ`` of heads in parts, in float32."""
    scores = tl.dot(left_1, tl.trans(right_1), input_precision="ieee")
    if ROTATE:
        scores = tl.dot(left_2, tl.trans(right_2), scores, input_precision="ieee")
    return scores


@triton.jit(do_not_specialize=["rows"])
def _row_dot(A, B, OUT, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """Grid (row blocks)."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    a_RD = load_rows(A, D, r, rows, D, BLOCK_D).to(tl.float32)
    b_RD = load_rows(B, D, r, rows, D, BLOCK_D).to(tl.float32)
    tl.store(OUT + r, tl.sum(a_RD * b_RD, 1), mask=r < rows)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """``Σ_d a · b`` over the last dimension of two contiguous (…, D): (…), float32.

    Of an attention's output and its gradient: what the softmax takes from the gradient of every weight of that row.
    """
    out = a.new_empty(a.shape[:-1], dtype=torch.float32)
    block_d = triton.next_power_of_2(a.shape[-1])
    block = max(2048 // block_d, 1)
    _row_dot[(triton.cdiv(out.numel(), block),)](
        *(a, b, out, out.numel()), D=a.shape[-1], BLOCK_D=block_d, BLOCK_R=block
    )
    return out


def head_sizes(width: int, rotate: bool) -> dict[str, int | bool]:
    """Compile-time sizes of a head of ``width`` for the functions above; a matrix product wants 16 at least."""
    part = width // 2 if rotate else width
    return {
        "D": width,
        "PART": part,
        "BLOCK_D": triton.next_power_of_2(max(width, 16)),
        "BLOCK_P": triton.next_power_of_2(max(part, 16)),
        "ROTATE": rotate,
    }
