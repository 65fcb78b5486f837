"""ROTE in readable torch, twice differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def rote_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of ``x`` (N, H, D) by angles given as cos and sin (N, D/2).

    In float32 (float64 for float64 input), then rounded to the dtype of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos_N1h, sin_N1h = cos.to(dtype)[:, None], sin.to(dtype)[:, None]
    first, second = x.to(dtype).chunk(2, dim=-1)
    turned = [first * cos_N1h - second * sin_N1h, second * cos_N1h + first * sin_N1h]
    return torch.cat(turned, dim=-1).to(x.dtype)
