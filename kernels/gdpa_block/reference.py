"""The GDPA block put together from torch's norms and :func:`kernels.gdpa.gdpa`: any device, any backend of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kernels.gdpa import gdpa


def gdpa_block_reference(
    s: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    out_weight: Tensor,
    tau: float,
    names: Sequence[str],
    tau_position: Literal["pre", "post"],
    norm_eps: float,
    out_eps: float,
    backend: str,
) -> Tensor:
    """See :func:`kernels.gdpa_block.gdpa_block`; ``backend`` is that of the GDPA inside."""
    width = s.shape[1:]
    q = F.layer_norm(s, width, norm_weight.to(s.dtype), norm_bias.to(s.dtype), norm_eps)
    heads = q.to(k.dtype).unflatten(1, k.shape[2:])
    out = gdpa(
        heads, k, v, offsets, max_length, tau=tau, activation=names, tau_position=tau_position, backend=backend
    )  # fmt: skip
    g = out.flatten(1) + q
    return s + F.rms_norm(g, width, out_weight.to(g.dtype), out_eps)
