"""Sliding-window attention in readable torch, O(T·w) in time and memory, twice differentiable.

Legend: H heads · D head width · b sequences of a bucket, P its padded length · m blocks of c queries,
each of which looks at one strip of s = left + c + right keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.packed import Bucket, layout_of, nothing


def window_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, left: int, right: int, scale: float
) -> Tensor:
    """See :func:`kernels.window_attention.window_attention`; q and k are already rotated."""
    layout = layout_of(offsets)
    if not layout.buckets:
        return nothing(tuple(v.shape), [q, k, v])
    parts = zip(layout.buckets, *(layout.split_tokens(x) for x in (q * scale, k, v)), strict=True)
    attended = [_attend(bucket, q_n, k_n, v_n, left, right) for bucket, q_n, k_n, v_n in parts]
    return layout.join_tokens(attended, q.shape[0])


def _attend(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    """(n, H, D): the tokens of one bucket."""
    length = bucket.length
    left, right = min(left, length - 1), min(right, length - 1)
    block = max(16, (left + right) // 2)
    if left + block + right >= length:  # strips would not be shorter than the sequence: one block, one strip
        block, before, after = length, 0, 0
    else:
        before, after = left, right
    fill = -length % block

    def strips(x_bP: Tensor) -> Tensor:
        """(b, P, …) → (b, m, …, s)"""
        padding = [0, 0] * (x_bP.ndim - 2) + [before, after + fill]
        return F.pad(x_bP, padding).unfold(1, before + block + after, block)

    k_bmHDs = strips(bucket.pad(k))
    v_bmHDs = strips(bucket.pad(v))
    real_bms = strips(bucket.mask)
    q_bmHcD = F.pad(bucket.pad(q), (0, 0, 0, 0, 0, fill)).unflatten(1, (-1, block)).transpose(2, 3)

    device = q.device
    distance_cs = torch.arange(before + block + after, device=device) - before
    distance_cs = distance_cs - torch.arange(block, device=device)[:, None]
    near_cs = (distance_cs >= -left) & (distance_cs <= right)
    seen_bm1cs = (real_bms[:, :, None, :] & near_cs)[:, :, None]
    scores = q_bmHcD @ k_bmHDs
    # Finite, so that a padded query with no key in sight gives no NaN.
    scores = scores.masked_fill(~seen_bm1cs, torch.finfo(scores.dtype).min)
    out_bmHcD = scores.softmax(-1) @ v_bmHDs.transpose(3, 4)
    return bucket.unpad(out_bmHcD.transpose(2, 3).flatten(1, 2)[:, :length])
