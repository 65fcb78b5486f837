"""The personalized feed-forward network of a tower: GDPA, what it replaced, and what is left when it is dropped.

All four share one block: ``q̂ = LN(S); g = f(q̂, X_sum) + q̂; S ← S + RMSNorm(g)``.
Legend: N packed tokens · B rows · d_e tower width · H heads · n_kv key/value tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kernels import gdpa, gdpa_block, segment_matmul
from kernels.activations import activate, per_head
from kernels.gdpa import flops as gdpa_flops
from kunlun.features import Jagged
from kunlun.layers.context import ContextKeyValue, TokenLinear

OUT_EPS = 1e-6


@dataclass(frozen=True)
class GDPAConfig:
    """The personalized feed-forward network."""

    kv_tokens: int = 32
    """n_kv, the hidden width of the personalized FFN of each head."""
    activation: str | list[str] = "gelu"
    """One name, or one per head (towers with other head counts take them in turn)."""
    tau_position: Literal["pre", "post"] = "pre"
    """``pre``: Act(QKᵀ/τ)V (the paper); ``post``: Act(QKᵀ)V/τ (Meta's kernel). τ = L_max."""
    key_gain: float = 1.0
    """Initial learned gain on K, in units of τ/√d_h: 1 gives scores of about unit size whatever τ is."""
    fused: bool = True
    """False: the same function as three plain matrix products on padded sequences (``unfused_gdpa``)."""

    def __post_init__(self) -> None:
        if self.kv_tokens < 1:
            raise ValueError(f"gdpa.kv_tokens must be ≥ 1, got {self.kv_tokens}")
        if not self.key_gain > 0:
            raise ValueError(f"gdpa.key_gain must be > 0, got {self.key_gain}")
        names = [self.activation] if isinstance(self.activation, str) else self.activation
        per_head(names, len(names))

    def activations(self, heads: int) -> tuple[str, ...]:
        names = [self.activation] if isinstance(self.activation, str) else self.activation
        return tuple(names[h % len(names)] for h in range(heads))


@dataclass(frozen=True)
class Context:
    """What a tower is personalized by: X_sum (B, n_sum, d), and the candidate encoded as an event (B, d_e) or None."""

    summary: Tensor
    candidate: Tensor | None


class PersonalizedMap(nn.Module, ABC):
    """What a block asks of its map f."""

    @abstractmethod
    def forward(self, sequence: Jagged, context: Context) -> Tensor:
        """Jagged of (N, d_e) → (N, d_e)."""

    @abstractmethod
    def flops(self, length: int) -> int:
        """Forward, of one sample with ``length`` events."""


class PersonalizedBlock(nn.Module):
    """The residual block around a personalized map f of the normalised tokens."""

    def __init__(self, inner: PersonalizedMap, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = inner
        self.out_norm = nn.RMSNorm(width, eps=OUT_EPS)

    def forward(self, sequence: Jagged, context: Context) -> Jagged:
        """Jagged of (N, d_e) → the same layout."""
        q = self.norm(sequence.values)
        g = self.inner(sequence.with_values(q), context) + q
        return sequence.with_values(sequence.values + self.out_norm(g))

    def flops(self, length: int) -> int:
        return self.inner.flops(length)


class GDPA(PersonalizedMap):
    """``Act_h(q̂ Kᵀ / τ) V`` with K and V generated from the context (Kunlun, GDPA-enhanced PFFN)."""

    def __init__(
        self,
        tokens_in: int,
        width_in: int,
        width: int,
        heads: int,
        max_length: int,
        candidate: bool,
        config: GDPAConfig,
    ) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.tau = float(max(max_length, 1))
        self.tau_position, self.fused = config.tau_position, config.fused
        self.activations = config.activations(heads)
        scale = self.tau if config.tau_position == "pre" else 1.0
        gain = config.key_gain * scale / (width // heads) ** 0.5
        self.context = ContextKeyValue(tokens_in, width_in, config.kv_tokens, width, heads, gain, candidate)
        self.kv_tokens = config.kv_tokens

    def forward(self, sequence: Jagged, context: Context) -> Tensor:
        k, v = self.context(context.summary, context.candidate)
        q = sequence.values.to(k.dtype).unflatten(1, (self.heads, -1))
        if self.fused:
            out = gdpa(
                q,
                k,
                v,
                sequence.offsets,
                sequence.max_length,
                tau=self.tau,
                activation=self.activations,
                tau_position=self.tau_position,
            )
        else:
            out = self._unfused(q, k, v, sequence)
        return out.flatten(1)

    def score_std(self, sequence: Jagged, context: Context) -> Tensor:
        """(H,): standard deviation of the activation's argument over all tokens; near 0 a GELU is linear."""
        k, _ = self.context(context.summary, context.candidate)
        scale = self.tau if self.tau_position == "pre" else 1.0
        q = sequence.values.to(k.dtype).unflatten(1, (self.heads, -1))
        k_bHDn = k.permute(0, 2, 3, 1) / scale
        per_head = [segment_matmul(q[:, h], k_bHDn[:, h], sequence.offsets) for h in range(self.heads)]
        return torch.stack([scores.float().std() for scores in per_head])

    def _unfused(self, q: Tensor, k: Tensor, v: Tensor, sequence: Jagged) -> Tensor:
        """Every sequence padded to the longest of the batch, the scores in memory: what the op saves."""
        inside, outside = (1 / self.tau, 1.0) if self.tau_position == "pre" else (1.0, 1 / self.tau)
        lengths = sequence.lengths()
        position = torch.arange(int(lengths.max()), device=q.device) if len(sequence) else lengths
        mask = position < lengths[:, None]
        rows = (sequence.offsets[:-1, None] + position)[mask]
        q_BTHD = q.new_zeros(*mask.shape, *q.shape[1:])
        q_BTHD[mask] = q[rows]
        weights = activate(torch.einsum("bthd,bnhd->bhtn", q_BTHD, k) * inside, self.activations)
        return (torch.einsum("bhtn,bnhd->bthd", weights, v) * outside)[mask]

    def flops(self, length: int) -> int:
        return self.context.flops() + gdpa_flops(length, self.kv_tokens, self.width)


class GDPABlock(PersonalizedBlock):
    """The same block around :class:`GDPA` as one op, norms and sums included (:func:`kernels.gdpa_block`)."""

    inner: GDPA
    norm: nn.LayerNorm

    def __init__(self, inner: GDPA, width: int) -> None:
        super().__init__(inner, width)

    def forward(self, sequence: Jagged, context: Context) -> Jagged:
        k, v = self.inner.context(context.summary, context.candidate)
        values = gdpa_block(
            sequence.values,
            k,
            v,
            sequence.offsets,
            sequence.max_length,
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            norm_eps=self.norm.eps,
            out_weight=self.out_norm.weight,
            out_eps=OUT_EPS,
            tau=self.inner.tau,
            activation=self.inner.activations,
            tau_position=self.inner.tau_position,
        )
        return sequence.with_values(values)


class LinearPFFN(PersonalizedMap):
    """What GDPA replaced (``no_gdpa``): InterFormer's linear PFFN, ``q̂ W`` with ``W = Aᵀ (X_sum P)`` per sample."""

    def __init__(self, tokens_in: int, width_in: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width_in, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.rows = TokenLinear(tokens_in, width)
        self.tokens_in, self.width = tokens_in, width

    def forward(self, sequence: Jagged, context: Context) -> Tensor:
        weight = self.rows(self.norm(self.project(context.summary))) * self.width**-0.5
        return segment_matmul(sequence.values.to(weight.dtype), weight, sequence.offsets)

    def flops(self, length: int) -> int:
        generate = 2 * self.tokens_in * self.project.weight.numel() + self.rows.flops(self.width)
        return generate + 2 * length * self.width**2


class SharedFFN(PersonalizedMap):
    """The ability gone (``drop_gdpa``): one FFN of the same hidden size, the same for every sample."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, sequence: Jagged, context: Context) -> Tensor:
        return self.down(nn.functional.gelu(self.up(sequence.values)))

    def flops(self, length: int) -> int:
        return 4 * length * self.up.weight.numel()
