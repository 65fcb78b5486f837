"""GDPA, generalised dot-product attention: ``Act_h(Q Kᵀ / τ) V``, no softmax, an activation per head.

Kunlun's personalized feed-forward network written as attention: K and V come from the sample's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from kernels.activations import per_head
from kernels.gdpa.reference import gdpa_reference
from kernels.packed import check_backend, check_heads, check_offsets


def gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    tau: float,
    activation: str | Sequence[str] = "gelu",
    tau_position: Literal["pre", "post"] = "pre",
    kv_offsets: Tensor | None = None,
    kv_index: Tensor | None = None,
    window: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """``Act_h(q Kᵀ / τ) V`` for every token of every packed sequence. Returns (N, H, D).

    Args:
        q: (N, H, D) packed queries.
        k: keys, dense (G, n, H_kv, D), one set per sample (the Kunlun case), or packed (N_kv, H_kv, D)
            with ``kv_offsets``; H_kv divides H (grouped heads).
        v: values, as ``k``.
        offsets: (B + 1,) int64, the sequences of ``q``.
        max_length: no sequence of ``q`` is longer.
        tau: the scale; ``pre`` divides the scores (the paper), ``post`` the result (Meta's kernel).
        activation: one name, or one per head; see :data:`kernels.activations.ACTIVATIONS`.
        kv_offsets: (G + 1,) int64 where keys and values are packed.
        kv_index: (B,) int64, the key/value set each sample uses (shared context); None = its own.
        window: token i sees keys i − left … i + right only; None = all.
        backend: "torch", or None = by device.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    FLOPs forward: ``4 · H · D · Σ_b T_b · n_b``, see :func:`flops`.
    """
    check_backend(backend, "gdpa")
    if q.ndim != 3:
        raise ValueError(f"q: shape (N, H, D) expected, got {(*q.shape,)}")
    _, heads, width = q.shape
    names = per_head(activation, heads)
    check_offsets(offsets, q.shape[0], "offsets")
    check_heads("k", k, (None, None, width) if kv_offsets is not None else (None, None, None, width), q)
    check_heads("v", v, tuple(k.shape), q)
    if heads % k.shape[-2]:
        raise ValueError(f"k: its {k.shape[-2]} heads must divide the {heads} heads of q")
    if kv_offsets is not None:
        check_offsets(kv_offsets, k.shape[0], "kv_offsets")
    sets = k.shape[0] if kv_offsets is None else kv_offsets.numel() - 1
    batch = offsets.numel() - 1
    if kv_index is None and sets != batch:
        raise ValueError(f"k: {sets} sets for {batch} samples; give kv_index where samples share them")
    if kv_index is not None and kv_index.shape != (batch,):
        raise ValueError(f"kv_index: shape ({batch},) expected, got {(*kv_index.shape,)}")
    if not tau > 0:
        raise ValueError(f"tau: must be > 0, got {tau}")
    if tau_position not in ("pre", "post"):
        raise ValueError(f"tau_position: 'pre' or 'post' expected, got {tau_position!r}")
    if window is not None and min(window) < 0:
        raise ValueError(f"window: (left, right) ≥ 0 expected, got {window}")
    return gdpa_reference(q, k, v, offsets, names, tau, tau_position, kv_offsets, kv_index, window)


def flops(length: int, kv_tokens: int, width: int) -> int:
    """Forward FLOPs of one sample: T tokens, n key/value tokens, all heads together ``width`` wide."""
    return 4 * length * kv_tokens * width
