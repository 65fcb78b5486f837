"""Window attention on the torch backend, on a CPU: torch's fused attention on one block of queries at a time.

A block of queries sees one strip of keys, so time and memory are linear in the length; inside, torch keeps scores in
the cache and sums in float32, and its backward makes them again.
Legend: b sequences of a piece, P its padded length · H heads · D head width · c queries of a block, s keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernels.backends import contiguous_rows
from kernels.packed import Piece, pieces_of
from kernels.rote import tiled as rote

# Padded tokens of a piece.
PLACES = 1 << 13
# Queries of a block, at least; a sequence of two such blocks is one.
ROWS = 32

# What scaled_dot_product_attention runs on a CPU. The public function keeps no log-sum-exp for a backward of our own.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Block:
    """Queries ``rows`` and the keys ``strip`` they see. bias (1 or b, 1, c, s): low on pairs that do not count; None
    where all do."""

    rows: slice
    strip: slice
    bias: Tensor | None


def forward(
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
) -> tuple[Tensor, Tensor]:
    """Output (N, H, D) and the logarithm of the sum of exponentials (N, H)."""
    q, k, v = contiguous_rows(q, k, v)
    if cos is not None and sin is not None:
        q, k = rote.forward(q, cos, sin), rote.forward(k, cos, sin)
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for piece in pieces_of(offsets, PLACES):
        q_bHPD, k_bHPD, v_bHPD = (_by_head(piece.pad(x)) for x in (q, k, v))
        out_bPHD, lse_bPH = piece.room(out), piece.room(lse)
        for block in _blocks(piece, left, right, q.dtype):
            keys, values = k_bHPD[:, :, block.strip], v_bHPD[:, :, block.strip]
            attended, lse_bHc = _attend(q_bHPD[:, :, block.rows], keys, values, attn_mask=block.bias, scale=scale)
            out_bPHD[:, block.rows] = _by_head(attended)
            lse_bPH[:, block.rows] = _by_head(lse_bHc)
        piece.write(out, out_bPHD)
        piece.write(lse, lse_bPH)
    return out, lse


def backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q and k (before they were turned) and v."""
    q, k, v = contiguous_rows(q, k, v)
    if cos is not None and sin is not None:
        q, k = rote.forward(q, cos, sin), rote.forward(k, cos, sin)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    for piece in pieces_of(offsets, PLACES):
        grad_bHPD, q_bHPD, k_bHPD, v_bHPD, out_bHPD, lse_bHP = (
            _by_head(piece.pad(x)) for x in (grad, q, k, v, out, lse)
        )
        dq_bPHD = piece.room(dq)
        # Strips overlap, so keys and values sum up, in float32 also for half precision.
        sums = [piece.room(x).to(lse.dtype).zero_() for x in (dk, dv)]
        for block in _blocks(piece, left, right, q.dtype):
            rows, strip = (slice(None), slice(None), block.rows), (slice(None), slice(None), block.strip)
            dq_block, *of_strip = _attend_backward(
                *(grad_bHPD[rows], q_bHPD[rows], k_bHPD[strip], v_bHPD[strip], out_bHPD[rows], lse_bHP[rows]),
                *(0.0, False),
                attn_mask=block.bias,
                scale=scale,
            )
            dq_bPHD[:, block.rows] = _by_head(dq_block)
            for total, part in zip(sums, of_strip, strict=True):
                total[:, block.strip] += _by_head(part)
        piece.write(dq, dq_bPHD)
        piece.write(dk, sums[0].to(dk.dtype))
        piece.write(dv, sums[1].to(dv.dtype))
    if cos is not None and sin is not None:
        dq, dk = rote.forward(dq, cos, -sin), rote.forward(dk, cos, -sin)
    return dq, dk, dv


def _by_head(x: Tensor) -> Tensor:
    """(b, P, H, …) → (b, H, P, …), or back: a view."""
    return x.transpose(1, 2)


def _blocks(piece: Piece, left: int, right: int, dtype: torch.dtype) -> Iterator[_Block]:
    length, device = piece.length, piece.mask.device
    rows = max(ROWS, (left + right) // 4)
    if length <= 2 * rows or min(left, right) >= length - 1:
        rows = length
    nowhere_b11P = None
    if piece.span is None:
        nowhere = torch.zeros(piece.mask.shape, dtype=dtype, device=device)
        nowhere_b11P = nowhere.masked_fill_(~piece.mask, _low(dtype))[:, None, None]
    for i in range(0, length, rows):
        end = min(i + rows, length)
        first, last = max(i - left, 0), min(end + right, length)
        bias = _band(i - first, end - i, last - first, left, right, dtype, device)
        if nowhere_b11P is not None:
            padding = nowhere_b11P[..., first:last]
            bias = padding.expand(-1, -1, end - i, -1) if bias is None else torch.minimum(bias, padding)
        yield _Block(slice(i, end), slice(first, last), bias)


@lru_cache(maxsize=32)  # most blocks have one of a few
def _band(
    before: int, rows: int, keys: int, left: int, right: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """(1, 1, c, s) for queries of which the first sits ``before`` keys into the strip; None where all see all."""
    if left >= before + rows - 1 and right >= keys - 1 - before:
        return None
    key, query = torch.arange(keys, device=device), torch.arange(before, before + rows, device=device)
    distance_cs = key - query[:, None]
    far_cs = (distance_cs < -left) | (distance_cs > right)
    return torch.zeros(far_cs.shape, dtype=dtype, device=device).masked_fill_(far_cs, _low(dtype))[None, None]


def _low(dtype: torch.dtype) -> float:
    """Added to a score, its weight is 0; finite, so that a padded query, which sees nothing, has no NaN."""
    return torch.finfo(dtype).min / 2
