"""Attention of a few learned queries over packed sequences, in readable torch, twice differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packed import buckets, nothing


def seed_attention_reference(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """See :func:`kernels.seed_attention.seed_attention`; k is already rotated."""
    shape = (offsets.numel() - 1, *seeds.shape)
    seeds_HSD = (seeds * scale).transpose(0, 1)
    samples, parts = [], []
    for bucket in buckets(offsets):
        k_bHDP = bucket.pad(k).permute(0, 2, 3, 1)
        v_bHPD = bucket.pad(v).transpose(1, 2)
        scores = (seeds_HSD @ k_bHDP).masked_fill(~bucket.mask[:, None, None], float("-inf"))
        parts.append((scores.softmax(-1) @ v_bHPD).transpose(1, 2))
        samples.append(bucket.samples)
    if not parts:
        return nothing(shape, [seeds, k, v])
    return seeds.new_zeros(shape).index_copy(0, torch.cat(samples), torch.cat(parts))
