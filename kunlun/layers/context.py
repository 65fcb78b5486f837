"""Weight generation: the context summary X_sum, and the keys and values it makes for each tower.

Legend: B rows · n context tokens · n_sum summary tokens · d model width · d_e tower width · H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TokenLinear(nn.Module):
    """A linear map along the token axis: (B, n, d) → (B, m, d)."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens_out, tokens_in))
        nn.init.uniform_(self.weight, -(3**0.5) * tokens_in**-0.5, (3**0.5) * tokens_in**-0.5)

    def forward(self, x_Bnd: Tensor) -> Tensor:
        return torch.matmul(self.weight, x_Bnd)

    def flops(self, width: int) -> int:
        return 2 * self.weight.numel() * width


class Gate(nn.Module):
    """``x ⊙ σ(MLP(x))`` on the last axis.

    *Deviation (ours)*: the note prints σ around the whole; that leaves 1.4 % of the energy of K dependent on the
    sample.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.out(torch.relu(self.hidden(x))))

    def flops(self, tokens: int) -> int:
        return 2 * tokens * (self.hidden.weight.numel() + self.out.weight.numel())


class ContextSummary(nn.Module):
    """``X_sum = Gate(Lin_tokens(X))``: (B, n, d) → (B, n_sum, d) (InterFormer, Kunlun: weight generation)."""

    def __init__(self, tokens_in: int, tokens_out: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens_out, width
        self.linear = TokenLinear(tokens_in, tokens_out)
        self.gate = Gate(width)

    def forward(self, x_Bnd: Tensor) -> Tensor:
        return self.gate(self.linear(x_Bnd))

    def flops(self) -> int:
        return self.linear.flops(self.width) + self.gate.flops(self.tokens)


class ContextKeyValue(nn.Module):
    """``K = A₁ᵀ Z``, ``V = A₂ᵀ Z`` with ``Z = RMSNorm(X_sum P_e)``, split into heads, a learned gain on K per head.

    *Deviations (ours)*: the norm, and V scaled by n_kv^-½: without them the generated FFN starts at under one percent
    of its residual, because context tokens are small, and hardly learns. And where the candidate has the fields of an
    event, it joins Z as one more token, encoded like an event by the tower's own encoder, and a quarter of the keys
    begin as this token alone: "this event is like the candidate" is then a dot product of like things from the first
    step on, without the noise of the other tokens.

    Args:
        tokens_in, width_in: n_sum and d of X_sum.
        kv_tokens, width, heads: n_kv, d_e and H of the tower.
        gain: initial gain on K.
        candidate: whether the candidate joins.
    """

    def __init__(
        self, tokens_in: int, width_in: int, kv_tokens: int, width: int, heads: int, gain: float, candidate: bool
    ) -> None:
        super().__init__()
        self.project = nn.Linear(width_in, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.keys = TokenLinear(tokens_in + candidate, kv_tokens)
        self.values = TokenLinear(tokens_in + candidate, kv_tokens)
        if candidate:
            begin = self.keys.weight.data[: math.ceil(kv_tokens / 4)]
            begin.zero_()[:, -1] = 1.0
        self.gain = nn.Parameter(torch.full((heads, 1), float(gain)))
        self.heads, self.tokens_in, self.kv_tokens, self.candidate = heads, tokens_in, kv_tokens, candidate

    def forward(self, x_sum: Tensor, candidate_Bd: Tensor | None) -> tuple[Tensor, Tensor]:
        """X_sum (B, n_sum, d), the encoded candidate (B, d_e) → K and V, each (B, n_kv, H, d_e / H)."""
        z = self.project(x_sum)
        if self.candidate:
            assert candidate_Bd is not None
            z = torch.cat([z, candidate_Bd[:, None]], dim=1)
        z = self.norm(z)
        k, v = (m(z).unflatten(2, (self.heads, -1)) for m in (self.keys, self.values))
        return k * self.gain.to(k.dtype), v * self.kv_tokens**-0.5

    def flops(self) -> int:
        width = self.project.out_features
        return 2 * self.tokens_in * self.project.weight.numel() + self.keys.flops(width) + self.values.flops(width)
