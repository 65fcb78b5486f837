"""Seed attention: S learned queries, the same for every sample, against each packed sequence (HSP and PMA)."""

from __future__ import annotations

from torch import Tensor

from kernels.backends import check_heads, check_offsets, choose_backend
from kernels.packed import check_layout
from kernels.rote import Rotation, rote
from kernels.seed_attention.reference import seed_attention_reference


def seed_attention(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    rotation: Rotation | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``softmax(seeds kᵀ · scale) v`` per sequence. Returns (B, S, H, D); zeros for an empty sequence.

    Args:
        seeds: (S, H, D) queries, shared by all samples.
        k, v: (N, H, D) packed.
        offsets: (B + 1,) int64.
        max_length: no sequence is longer.
        rotation: turns k before the scores; a seed sits at the request, position and log-time 0.
        scale: default D ** -0.5.
        backend: "torch", or None = by device.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    FLOPs forward: ``4 · H · D · S · Σ T_b``, see :func:`flops`.
    """
    backend = choose_backend(backend, seeds, "seed_attention")
    if seeds.ndim != 3:
        raise ValueError(f"seeds: shape (S, H, D) expected, got {(*seeds.shape,)}")
    check_heads("k", k, (None, *seeds.shape[1:]), seeds)
    check_heads("v", v, tuple(k.shape), seeds)
    check_offsets("offsets", offsets, k)
    check_layout("offsets", offsets, k.shape[0], max_length)
    if rotation is not None:
        k = rote(k, rotation)
    return seed_attention_reference(seeds, k, v, offsets, seeds.shape[-1] ** -0.5 if scale is None else scale)


def flops(length: int, seeds: int, width: int) -> int:
    """Forward FLOPs of one sample, all heads together ``width`` wide; projections not included."""
    return 4 * length * seeds * width
