"""Self-attention of a tower over its packed events: windowed, or full where the toggle is off.

Legend: N packed tokens · d_e tower width · H heads.
"""

from __future__ import annotations

from torch import nn

from kernels import Rotation, window_attention
from kernels.window_attention import flops as window_flops
from kunlun.features import Jagged


class SelfAttention(nn.Module):
    """``S + W_O · softmax(R(Q) R(K)ᵀ/√d_h) V`` over ``[t − w, t + w]`` inside each sample, R the ROTE rotation.

    *Assumption (ours)*: pre-norm residual. Looking both ways leaks nothing: all events lie before the request.
    FLOPs ``8 T d² + 4 d · pairs``.
    """

    def __init__(self, width: int, heads: int, half_window: int | None) -> None:
        super().__init__()
        self.heads, self.width, self.half_window = heads, width, half_window
        self.norm = nn.LayerNorm(width)
        # No bias: in a softmax a constant on the keys has no effect, so no gradient either.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, sequence: Jagged, rotation: Rotation | None) -> Jagged:
        q, k, v = self.qkv(self.norm(sequence.values)).unflatten(1, (3, self.heads, -1)).unbind(1)
        out = window_attention(
            q,
            k,
            v,
            sequence.offsets,
            sequence.max_length,
            left=self.half_window,
            right=self.half_window,
            rotation=rotation,
        )
        return sequence.with_values(sequence.values + self.out(out.flatten(1)))

    def flops(self, length: int) -> int:
        return 8 * length * self.width**2 + window_flops(length, self.half_window, self.half_window, self.width)
