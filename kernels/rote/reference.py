"""ROTE in readable torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rote_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of ``x`` (N, H, D) by angles given as cos and sin (N, D/2)."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
