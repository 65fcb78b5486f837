"""Dot products of all pairs of tokens, the interaction of DLRM."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DotInteraction(nn.Module):
    """``⟨x_i, x_j⟩`` for all i < j: (B, n, d) → (B, n (n − 1) / 2) (DLRM, arXiv 1906.00091, section 2.2)."""

    first: Tensor
    second: Tensor

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        first, second = torch.triu_indices(tokens, tokens, offset=1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.outputs = first.numel()

    def forward(self, x_Bnd: Tensor) -> Tensor:
        return (x_Bnd @ x_Bnd.transpose(1, 2))[:, self.first, self.second]

    def flops(self) -> int:
        """Of the whole n × n product, of which half is kept."""
        return 2 * self.tokens**2 * self.width
