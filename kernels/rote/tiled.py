"""ROTE on the torch backend: in pieces of tokens that stay in the cache, written where they belong."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of one piece; with its temporaries it stays in a core's caches.
PIECE = 1 << 17


def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See :func:`kernels.rote.reference.rote_reference`."""
    tokens, heads, width = x.shape
    out = x.new_empty(x.shape)
    if not x.numel():
        return out
    dtype = torch.promote_types(x.dtype, torch.float32)
    step = max(PIECE // (heads * width), 1)
    for i in range(0, tokens, step):
        part = slice(i, i + step)
        x_nH2h = x[part].to(dtype).unflatten(2, (2, width // 2))
        cos_n1h, sin_n1h = cos[part, None].to(dtype), sin[part, None].to(dtype)
        turned = out[part].unflatten(2, (2, width // 2)) if dtype == x.dtype else torch.empty_like(x_nH2h)
        torch.mul(x_nH2h, cos_n1h[:, None], out=turned)
        turned[:, :, 0].addcmul_(x_nH2h[:, :, 1], sin_n1h, value=-1)
        turned[:, :, 1].addcmul_(x_nH2h[:, :, 0], sin_n1h)
        if dtype != x.dtype:
            out[part] = turned.flatten(2)
    return out
