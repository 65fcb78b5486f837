"""GDPA in readable torch: any device, any dtype, twice differentiable.

Legend: N query tokens · B samples · G key/value sets · n key/value tokens · H heads · D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kernels.activations import activate
from kernels.packed import Bucket, Layout, layout_of, nothing


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
    layout, groups = layout_of(offsets), q.shape[1] // k.shape[-2]
    if not layout.buckets:
        return nothing((*q.shape[:2], v.shape[-1]), [q, k, v])
    sets = _sets(k, v, layout, kv_offsets, kv_index)
    parts = []
    for bucket, q_nHD, (k_bnHD, v_bnHD, kv_mask) in zip(layout.buckets, layout.split_tokens(q), sets, strict=True):
        k_bHDn, v_bHnD = k_bnHD.permute(0, 2, 3, 1), v_bnHD.transpose(1, 2)
        if groups > 1:
            k_bHDn, v_bHnD = k_bHDn.repeat_interleave(groups, dim=1), v_bHnD.repeat_interleave(groups, dim=1)
        scores = bucket.pad(q_nHD).transpose(1, 2) @ k_bHDn
        weights = activate(scores if inside == 1 else scores * inside, names)
        mask = _mask(bucket, kv_mask, k_bnHD.shape[1], window)
        if mask is not None:
            weights = weights * mask[:, None]
        out = weights @ v_bHnD
        parts.append(bucket.unpad((out if outside == 1 else out * outside).transpose(1, 2)))
    return layout.join_tokens(parts, q.shape[0])


def _sets(
    k: Tensor, v: Tensor, layout: Layout, kv_offsets: Tensor | None, kv_index: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Keys, values (b, n, H, D) and mask (b, n) of each bucket."""
    if kv_offsets is None and kv_index is None:
        for k_bnHD, v_bnHD in zip(layout.split_samples(k), layout.split_samples(v), strict=True):
            yield k_bnHD, v_bnHD, None
        return
    for samples in layout.samples.split([b.mask.shape[0] for b in layout.buckets]):
        source = samples if kv_index is None else kv_index[samples]
        yield (k[source], v[source], None) if kv_offsets is None else _dense(k, v, kv_offsets, source)


def _dense(k: Tensor, v: Tensor, kv_offsets: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed keys and values of the sets ``source`` as (b, n, H, D), and the mask (b, n) of real ones."""
    lengths = kv_offsets.diff()[source]
    position = torch.arange(int(lengths.max()), device=k.device)
    mask = position < lengths[:, None]
    rows = (kv_offsets[:-1][source, None] + position).clamp(max=max(k.shape[0] - 1, 0))
    if k.shape[0] == 0:
        empty = (*rows.shape, *k.shape[1:])
        return nothing(empty, [k]), nothing(empty, [v]), mask
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
