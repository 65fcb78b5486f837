"""The sequential transduction unit of HSTU (arXiv 2402.17152): pointwise attention without a softmax, and a gate.

Legend: N packed tokens · b sequences of a bucket · P its padded length · H heads · D head width · d = H · D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.packed import layout_of
from kunlun.features import Jagged

# Δt of 0 s, 1 s, 2–3 s, 4–7 s … and one bucket for all of 2³¹ s and more.
TIME_BUCKETS = 33
# AV / N is small where a history is short.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Places:
    """Where packed tokens stand, for the attention of all layers.

    position (N,) int64: number of events before · time (N,) int64 seconds, or None · candidate (N,) bool: true on the
    candidates, which come last in their sequence and see its events and themselves, never each other.
    """

    position: Tensor
    time: Tensor | None
    candidate: Tensor


class RelativeBias(nn.Module):
    """``rab^{p,t}``: a learned number per head for the distance in tokens, and one for the logarithm of that in time.

    *Assumption (ours)*: powers of two seconds bound the buckets of time.
    """

    edges: Tensor

    def __init__(self, heads: int, max_length: int, timed: bool) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(heads, max_length))
        self.time = nn.Parameter(0.02 * torch.randn(heads, TIME_BUCKETS)) if timed else None
        self.register_buffer("edges", 2 ** torch.arange(TIME_BUCKETS - 1), persistent=False)

    def forward(self, position_bP: Tensor, time_bP: Tensor | None) -> Tensor:
        """Of each query (rows) to each key: (b, H, P, P). What comes later than a query counts as at no distance."""
        apart = (position_bP[:, :, None] - position_bP[:, None]).clamp(0, self.position.shape[1] - 1)
        bias = _look_up(self.position, apart)
        if self.time is not None and time_bP is not None:
            seconds = (time_bP[:, :, None] - time_bP[:, None]).clamp(min=0)
            bias = bias + _look_up(self.time, torch.bucketize(seconds, self.edges, right=True))
        return bias.transpose(0, 1)


def _look_up(table_Hn: Tensor, index: Tensor) -> Tensor:
    """(H, n) at index (…) → (H, …). On a CPU the gradient of a gather is far cheaper than that of an embedding."""
    return table_Hn.gather(1, index.flatten().expand(table_Hn.shape[0], -1)).unflatten(1, index.shape)


def pointwise_attention(
    q: Tensor, k: Tensor, v: Tensor, sequence: Jagged, places: Places, bias: RelativeBias, size: int
) -> Tensor:
    """``SiLU(Q Kᵀ + rab) V / N``, causal, and candidates see no other candidate. q, k, v (N, H, D) → (N, H, D).

    Sequences are padded to the longest of their bucket (:mod:`kernels.packed`), whose edges grow by about a third, and
    the scores are kept for the gradient: memory O(Σ b · H · P²).
    """
    layout = layout_of(sequence.offsets)
    split = layout.split_tokens
    columns = [split(x) for x in (q, k, v, places.position, places.candidate)]
    times = split(places.time) if places.time is not None else [None] * len(layout.buckets)
    parts = []
    for bucket, q_n, k_n, v_n, position, candidate, time in zip(layout.buckets, *columns, times, strict=True):
        q_b, k_b, v_b = (bucket.pad(x).transpose(1, 2) for x in (q_n, k_n, v_n))
        rab = bias(bucket.pad(position), None if time is None else bucket.pad(time))
        own = torch.eye(bucket.length, dtype=torch.bool, device=q.device)
        event = bucket.mask & ~bucket.pad(candidate)
        seen = (event[:, None] | own).tril()
        weights = F.silu(q_b @ k_b.transpose(2, 3) + rab) * seen[:, None] / size
        parts.append(bucket.unpad((weights.to(v_b.dtype) @ v_b).transpose(1, 2)))
    return layout.join_tokens(parts, q.shape[0])


class STU(nn.Module):
    """``U, V, Q, K = SiLU(f₁(LN(X)))``, ``X + f₂(LN(A V) ⊙ U)`` with ``A = SiLU(Q Kᵀ + rab) / N`` (equations 1 to 3).

    N is the longest sequence there can be, the same for all samples.
    """

    def __init__(self, width: int, heads: int, max_length: int, timed: bool) -> None:
        super().__init__()
        self.heads, self.width, self.size = heads, width, max_length
        self.norm = nn.LayerNorm(width)
        self.uvqk = nn.Linear(width, 4 * width)
        self.bias = RelativeBias(heads, max_length, timed)
        self.out_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.out = nn.Linear(width, width)

    def forward(self, sequence: Jagged, places: Places) -> Jagged:
        """Jagged of (N, d) → the same layout."""
        u, v, q, k = F.silu(self.uvqk(self.norm(sequence.values))).chunk(4, dim=1)
        q, k, v = (x.unflatten(1, (self.heads, -1)) for x in (q, k, v))
        pooled = pointwise_attention(q, k, v, sequence, places, self.bias, self.size).flatten(1)
        return sequence.with_values(sequence.values + self.out(self.out_norm(pooled) * u))

    def flops(self, length: int) -> int:
        """Of one sequence of ``length`` tokens, the candidate among them; pairs counted are those that are seen."""
        return 10 * length * self.width**2 + 2 * self.width * length * (length + 1)
