"""Global interaction by Wukong layers: one expert, and several side by side on partitions of the tokens.

Legend: B rows · n tokens · d width · k rank of the factorization machine · n_F, n_L tokens of its two halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kunlun.layers.context import TokenLinear


@dataclass(frozen=True)
class WukongConfig:
    """The interaction side of a layer."""

    experts: int = 2
    """E, experts in parallel, each on its own partition of the tokens."""
    tokens: int = 16
    """Output tokens of all experts together; half come from the factorization machine, half are linear."""
    rank: int = 8
    """k, columns of Y in X(XᵀY)."""
    hidden: int = 128
    """Hidden width of the FMB's MLP."""
    dropout: float = 0.0
    """On the FMB's hidden layer."""

    def __post_init__(self) -> None:
        if self.experts < 1 or self.rank < 1 or self.hidden < 1:
            raise ValueError(f"wukong: experts, rank and hidden must be ≥ 1, got {self}")
        if self.tokens % (2 * self.experts):
            raise ValueError(
                f"wukong.tokens must be a multiple of 2 · experts ({2 * self.experts}), so that every expert has "
                f"as many factorized as linear ones; got {self.tokens}"
            )


class WukongExpert(nn.Module):
    """One Wukong layer: ``LN([FMB(X) ‖ LCB(X)] + residual)`` (Wukong, arXiv 2403.02545, section 3).

    FMB = reshape(MLP(LN(flatten(X(XᵀY))))) → n_F tokens; LCB = W_L X → n_L tokens; the residual is linear along the
    tokens where their number changes.
    """

    def __init__(self, tokens_in: int, tokens_out: int, width: int, config: WukongConfig) -> None:
        super().__init__()
        self.tokens_in, self.width, self.rank = tokens_in, width, config.rank
        self.factorized = tokens_out // 2
        self.project = nn.Parameter(torch.randn(tokens_in, config.rank) * tokens_in**-0.5)
        self.norm = nn.LayerNorm(tokens_in * config.rank)
        self.hidden = nn.Linear(tokens_in * config.rank, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.hidden, self.factorized * width)
        self.linear = TokenLinear(tokens_in, tokens_out - self.factorized)
        self.residual = TokenLinear(tokens_in, tokens_out) if tokens_in != tokens_out else None
        self.out_norm = nn.LayerNorm(width)

    def forward(self, x_Bnd: Tensor) -> Tensor:
        """(B, n, d) → (B, n_F + n_L, d)."""
        # Xᵀ Y first: the n × n products are never formed.
        fm_Bnk = x_Bnd @ (x_Bnd.transpose(1, 2) @ self.project.to(x_Bnd.dtype))
        hidden = self.dropout(torch.relu(self.hidden(self.norm(fm_Bnk.flatten(1)))))
        factorized = self.out(hidden).unflatten(1, (self.factorized, self.width))
        residual = x_Bnd if self.residual is None else self.residual(x_Bnd)
        return self.out_norm(torch.cat([factorized, self.linear(x_Bnd)], dim=1) + residual)

    def flops(self) -> int:
        machine = 4 * self.tokens_in * self.width * self.rank
        mlp = 2 * (self.hidden.weight.numel() + self.out.weight.numel())
        residual = 0 if self.residual is None else self.residual.flops(self.width)
        return machine + mlp + self.linear.flops(self.width) + residual


class LinearMix(nn.Module):
    """The ability gone (``drop_wukong``): tokens are mixed linearly and normalised, nothing is multiplied."""

    def __init__(self, tokens_in: int, width: int, config: WukongConfig) -> None:
        super().__init__()
        self.width = width
        self.mix = TokenLinear(tokens_in, config.tokens)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_Bnd: Tensor) -> Tensor:
        return self.norm(self.mix(x_Bnd))

    def flops(self) -> int:
        return self.mix.flops(self.width)


class WukongExperts(nn.Module):
    """E experts on interleaved partitions of the tokens, so that each sees context and summaries; no router."""

    def __init__(self, tokens_in: int, width: int, config: WukongConfig) -> None:
        super().__init__()
        if tokens_in < config.experts:
            raise ValueError(f"wukong.experts: {config.experts} experts cannot share {tokens_in} tokens")
        self.tokens = config.tokens
        experts = nn.ModuleList(
            WukongExpert(len(range(e, tokens_in, config.experts)), config.tokens // config.experts, width, config)
            for e in range(config.experts)
        )
        self.experts = cast("list[WukongExpert]", experts)

    def forward(self, x_Bnd: Tensor) -> Tensor:
        count = len(self.experts)
        return torch.cat([expert(x_Bnd[:, e::count]) for e, expert in enumerate(self.experts)], dim=1)

    def flops(self) -> int:
        return sum(expert.flops() for expert in self.experts)
