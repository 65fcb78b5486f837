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

    *Assumptions (ours)*: pre-norm residual. Queries and keys have biases that begin at 1: rotated, their product falls
    with the distance in position and time, so that attention is local from the start, and "the event just after this
    one" can be found whatever the events are. Looking both ways leaks nothing: all events lie before the request.
    FLOPs ``8 T d² + 4 d · pairs``.
    """

    def __init__(self, width: int, heads: int, half_window: int | None) -> None:
        super().__init__()
        self.heads, self.width, self.half_window = heads, width, half_window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        nn.init.ones_(self.qkv.bias[: 2 * width])
        nn.init.zeros_(self.qkv.bias[2 * width :])
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
