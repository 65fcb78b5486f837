"""Sliding-window attention: softmax over ``[t − left, t + right]`` inside each packed sequence."""

from __future__ import annotations

from torch import Tensor

from kernels.backends import check_heads, check_offsets, choose_backend
from kernels.packed import check_layout
from kernels.rote import Rotation, rote
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
        scale: default D ** -0.5.
        backend: "torch", or None = by device.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    Time and memory O(T · (left + right)). FLOPs forward: ``4 · H · D · pairs``, see :func:`pairs`.
    """
    backend = choose_backend(backend, q, "window_attention")
    if q.ndim != 3:
        raise ValueError(f"q: shape (N, H, D) expected, got {(*q.shape,)}")
    check_heads("k", k, tuple(q.shape), q)
    check_heads("v", v, tuple(q.shape), q)
    check_offsets("offsets", offsets, q)
    check_layout("offsets", offsets, q.shape[0], max_length)
    for name, side in (("left", left), ("right", right)):
        if side is not None and side < 0:
            raise ValueError(f"{name}: ≥ 0 or None expected, got {side}")
    if rotation is not None:
        q, k = rote(q, rotation), rote(k, rotation)
    left = max_length if left is None else left
    right = max_length if right is None else right
    return window_attention_reference(q, k, v, offsets, left, right, q.shape[-1] ** -0.5 if scale is None else scale)


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
