"""Attention of a few learned queries over packed sequences, in readable torch, twice differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packed import layout_of, nothing


def seed_attention_reference(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """See :func:`kernels.seed_attention.seed_attention`; k is already rotated."""
    layout, batch = layout_of(offsets), offsets.numel() - 1
    if not layout.buckets:
        return nothing((batch, *seeds.shape), [seeds, k, v])
    # The seeds are the same for all: the scores of all tokens are one product, before any padding.
    scores_NHS = torch.einsum("nhd,shd->nhs", k, seeds * scale)
    parts = []
    for bucket, scores_nHS, v_nHD in zip(
        layout.buckets, layout.split_tokens(scores_NHS), layout.split_tokens(v), strict=True
    ):
        scores_bHSP = bucket.pad(scores_nHS).permute(0, 2, 3, 1)
        weights = scores_bHSP.masked_fill(~bucket.mask[:, None, None], float("-inf")).softmax(-1)
        parts.append((weights @ bucket.pad(v_nHD).transpose(1, 2)).transpose(1, 2))
    return layout.join_samples(parts, batch)
