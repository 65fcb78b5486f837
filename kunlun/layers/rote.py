"""ROTE: the rotation each event's keys and queries get from its position and its age."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kernels import Rotation
from kunlun.features import Jagged


@dataclass(frozen=True)
class RoteConfig:
    """Rotary temporal embedding."""

    mode: Literal["time", "position"] = "time"
    """``time``: position and log-time (ROTE); ``position``: plain rotary position."""
    delta: Literal["request", "adjacent"] = "request"
    """The Δt: age at the request (ours, monotone), or the gap to the event before."""
    t_scale: float = 60.0
    """Seconds; Δt well under it is "now"."""
    theta_base: float = 10_000.0
    """Base of the position frequencies θ."""

    def __post_init__(self) -> None:
        if not self.t_scale > 0:
            raise ValueError(f"rote.t_scale must be > 0 seconds, got {self.t_scale}")
        if not self.theta_base > 1:
            raise ValueError(f"rote.theta_base must be > 1, got {self.theta_base}")


# τ = log(1 + Δt / t_scale) is about 0.7 at a minute, 4.1 at an hour, 7.3 at a day and 10.7 at a month. The slowest φ
# alone keeps these over 0.5 rad apart and does not wrap in a year; the fastest resolves minutes.
PHI_MIN, PHI_MAX = 0.2, 2.0


class Rote(nn.Module):
    """Makes the :class:`kernels.Rotation` of one event type.

    θ falls with the pair (rotary position embedding) and φ rises: the pairs that turn slowly with position are
    the ones that tell the time. *Assumption (ours)*: the newest event has position 1, the request position 0.
    """

    theta: Tensor
    phi: Tensor

    def __init__(self, head_width: int, config: RoteConfig) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"ROTE turns pairs: the head width must be even, got {head_width}")
        self.config = config
        pairs = head_width // 2
        pair = torch.arange(pairs, dtype=torch.float32)
        self.register_buffer("theta", config.theta_base ** (-pair / pairs), persistent=False)
        ratio = math.log(PHI_MAX / PHI_MIN)
        steps = pair / max(pairs - 1, 1)
        self.register_buffer("phi", PHI_MIN * torch.exp(ratio * steps), persistent=False)

    def forward(self, sequence: Jagged, times: Tensor | None, request_time: Tensor | None) -> Rotation:
        """``sequence`` gives the layout; times (N,) and request_time (G,) are int64 seconds, or None: position only."""
        lengths = sequence.lengths()
        segments = sequence.segments()
        ends = sequence.offsets[1:][segments]
        position = (ends - torch.arange(segments.numel(), device=segments.device)).to(self.theta.dtype)
        log_time = None
        if self.config.mode == "time" and times is not None and request_time is not None:
            # In int64 before any float: a float32 unix time steps by 128 seconds.
            if self.config.delta == "request":
                delta = request_time[segments] - times
            else:
                delta = torch.diff(times, prepend=times[:1])
                delta = delta.index_fill(0, sequence.offsets[:-1][lengths > 0], 0)
            log_time = torch.log1p(delta.clamp(min=0).to(self.theta.dtype) / self.config.t_scale)
        return Rotation(position, log_time, self.theta, self.phi)
