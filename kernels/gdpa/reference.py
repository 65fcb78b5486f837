"""GDPA in readable torch: any device, any dtype, twice differentiable.

Legend: N query tokens · B samples · G key/value sets · n key/value tokens · H heads · D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.activations import activate
from kernels.packed import Bucket, buckets, join_tokens


def gdpa_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    names: Sequence[str],
    tau: float,
    tau_position: str,
    kv_offsets: Tensor | None,
    kv_index: Tensor | None,
    window: tuple[int, int] | None,
) -> Tensor:
    """See :func:`kernels.gdpa.gdpa`; ``names`` holds one activation per head."""
    inside, outside = (1 / tau, 1.0) if tau_position == "pre" else (1.0, 1 / tau)
    parts = []
    for bucket in buckets(offsets):
        source = bucket.samples if kv_index is None else kv_index[bucket.samples]
        if kv_offsets is None:
            k_bnHD, v_bnHD, kv_mask = k[source], v[source], None
        else:
            k_bnHD, v_bnHD, kv_mask = _dense(k, v, kv_offsets, source)
        groups = q.shape[1] // k_bnHD.shape[2]
        k_bHnD = k_bnHD.transpose(1, 2).repeat_interleave(groups, dim=1)
        v_bHnD = v_bnHD.transpose(1, 2).repeat_interleave(groups, dim=1)
        q_bHPD = bucket.pad(q).transpose(1, 2)
        weights = activate((q_bHPD @ k_bHnD.transpose(2, 3)) * inside, names)
        mask = _mask(bucket, kv_mask, k_bHnD.shape[2], window)
        if mask is not None:
            weights = weights * mask[:, None]
        out_bPHD = ((weights @ v_bHnD) * outside).transpose(1, 2)
        parts.append((bucket.tokens, bucket.unpad(out_bPHD)))
    return join_tokens(parts, (*q.shape[:2], v.shape[-1]), [q, k, v])


def _dense(k: Tensor, v: Tensor, kv_offsets: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed keys and values of the sets ``source`` as (b, n, H, D), and the mask (b, n) of real ones."""
    lengths = kv_offsets.diff()[source]
    position = torch.arange(int(lengths.max()), device=k.device)
    mask = position < lengths[:, None]
    rows = (kv_offsets[:-1][source, None] + position).clamp(max=max(k.shape[0] - 1, 0))
    if k.shape[0] == 0:
        empty = (*rows.shape, *k.shape[1:])
        return k.new_zeros(empty), v.new_zeros(empty), mask
    return k[rows], v[rows], mask


def _mask(bucket: Bucket, kv_mask: Tensor | None, n: int, window: tuple[int, int] | None) -> Tensor | None:
    """(b, P or 1, n): which pairs count; None = all."""
    mask = None if kv_mask is None else kv_mask[:, None, :]
    if window is not None:
        device = bucket.mask.device
        distance = torch.arange(n, device=device) - torch.arange(bucket.length, device=device)[:, None]
        near = ((distance >= -window[0]) & (distance <= window[1]))[None]
        mask = near if mask is None else mask & near
    return mask
