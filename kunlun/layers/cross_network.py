"""The cross network of DCNv2: products of every degree up to layers + 1, one degree per layer."""

from __future__ import annotations

from torch import Tensor, nn

from kunlun.layers.head import linear_flops


class CrossNetwork(nn.Module):
    """``x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l`` (DCN V2, arXiv 2008.13535, "Cross Network").

    With a rank, ``W_l = U_l V_lᵀ``. *Deviation*: one low-rank term, no gated mixture of several.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()
        if layers < 1 or (rank is not None and rank < 1):
            raise ValueError(f"cross network: layers and rank must be ≥ 1, got {layers} and {rank}")
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) → (B, width)."""
        first = x
        for layer in self.layers:
            x = first * layer(x) + x
        return x

    def flops(self) -> int:
        return linear_flops(self)
