"""Pooling a tower's events into a few summary tokens: HSP, PMA which it replaced, and the plain mean.

A pooling module takes ``(sequence: Jagged of (N, d_e), rotation)`` and gives (B, tokens, d_e); it has ``tokens`` and
``flops(length)``. An empty sequence gives a defined, finite summary.
Legend: S seeds · M summary tokens · k Kronecker rank · H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kernels import Rotation, seed_attention
from kernels.seed_attention import flops as seed_flops
from kunlun.features import Jagged


class Pooling(nn.Module, ABC):
    """What the model asks of a pooling module. Built by the model as ``cls(width, heads, tokens, …)``."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.width, self.heads, self.tokens = width, heads, tokens

    @abstractmethod
    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Tensor:
        """Jagged of (N, d_e) → (B, tokens, d_e)."""

    @abstractmethod
    def flops(self, length: int) -> int:
        """Forward, of one sample with ``length`` events."""


class SeedAttention(nn.Module):
    """``MHA(Norm(E), S, S)`` of learned seeds E (S, d_e).

    *Assumption (ours)*: no query projection; of free parameters it would be a reparameterisation.
    """

    def __init__(self, width: int, heads: int, seeds: int) -> None:
        super().__init__()
        self.heads, self.seeds, self.width = heads, seeds, width
        self.seed = nn.Parameter(torch.randn(seeds, width))
        self.seed_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Tensor:
        k, v = self.kv(self.norm(sequence.values)).unflatten(1, (2, self.heads, -1)).unbind(1)
        seeds = self.seed_norm(self.seed).to(k.dtype).unflatten(1, (self.heads, -1))
        out = seed_attention(seeds, k, v, sequence.offsets, sequence.max_length, rotation=rotation)
        return self.out(out.flatten(2))

    def flops(self, length: int) -> int:
        project = 2 * length * self.kv.weight.numel() + 2 * self.seeds * self.out.weight.numel()
        return project + seed_flops(length, self.seeds, self.width)


class SumKronLinear(nn.Module):
    """``Y = Σ_{i≤k} Z_iᵀ H W_i``: (B, S, d) → (B, M, d) with k(S·M + d²) parameters."""

    def __init__(self, seeds: int, tokens: int, width: int, rank: int) -> None:
        super().__init__()
        self.tokens_map = nn.Parameter(torch.randn(rank, seeds, tokens) * seeds**-0.5)
        self.width_map = nn.Parameter(torch.randn(rank, width, width) * (rank * width) ** -0.5)

    def forward(self, h_BSd: Tensor) -> Tensor:
        rank, seeds, tokens = self.tokens_map.shape
        # All k token maps in one product, then all k width maps in one.
        z_kMS = self.tokens_map.permute(0, 2, 1).reshape(rank * tokens, seeds)
        y_BMkd = torch.matmul(z_kMS, h_BSd).unflatten(1, (rank, tokens)).transpose(1, 2)
        return y_BMkd.flatten(2) @ self.width_map.flatten(0, 1)

    def flops(self) -> int:
        rank, seeds, tokens = self.tokens_map.shape
        width = self.width_map.shape[-1]
        return 2 * rank * tokens * width * (seeds + width)


class HSP(Pooling):
    """Hierarchical seed pooling: more seeds than summary tokens attend, SumKronLinear compresses them."""

    def __init__(self, width: int, heads: int, tokens: int, seeds: int = 32, rank: int = 4) -> None:
        super().__init__(width, heads, tokens)
        if seeds <= tokens:
            raise ValueError(f"hsp.seeds must exceed the summary tokens ({tokens}), got {seeds}: HSP is overcomplete")
        self.attention = SeedAttention(width, heads, seeds)
        self.compress = SumKronLinear(seeds, tokens, width, rank)

    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Tensor:
        return self.compress(self.attention(sequence, rotation))

    def flops(self, length: int) -> int:
        return self.attention.flops(length) + self.compress.flops()


class PMA(Pooling):
    """Pooling by multi-head attention (``no_hsp``): M learned queries, one cross-attention."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__(width, heads, tokens)
        self.attention = SeedAttention(width, heads, tokens)

    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Tensor:
        return self.attention(sequence, rotation)

    def flops(self, length: int) -> int:
        return self.attention.flops(length)


class MeanPooling(Pooling):
    """The ability gone (``drop_hsp``): the mean of the events, one token whatever ``tokens`` asks."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__(width, heads, 1)

    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Tensor:
        values = sequence.values
        total = values.new_zeros(sequence.count, self.width).index_add(0, sequence.segments(), values)
        return (total / sequence.lengths().clamp(min=1)[:, None])[:, None]

    def flops(self, length: int) -> int:
        return 0
