"""ROTE: rotation of query and key heads by position and log-time (Kunlun, rotary temporal embedding).

Pair i of a token turns by ``position · θ_i + log_time · φ_i``. Pairs are (i, i + D/2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.packed import check_backend, check_heads
from kernels.rote.reference import rote_reference


@dataclass(frozen=True)
class Rotation:
    """What turns each token: position (N,) and log_time (N,) float32 or None, theta and phi (D/2,) rad per unit."""

    position: Tensor
    log_time: Tensor | None
    theta: Tensor
    phi: Tensor

    @cached_property
    def cos_sin(self) -> tuple[Tensor, Tensor]:
        """(N, D/2) each; computed once however many layers use it."""
        angle = self.position[:, None] * self.theta
        if self.log_time is not None:
            angle = angle + self.log_time[:, None] * self.phi
        return torch.cos(angle), torch.sin(angle)


def rote(x: Tensor, rotation: Rotation, *, backend: str | None = None) -> Tensor:
    """Rotate ``x`` (N, H, D), D even. Norms of heads are unchanged; differentiable in x.

    Raises ValueError where a shape does not fit.
    """
    check_backend(backend, "rote")
    if x.ndim != 3 or x.shape[2] % 2:
        raise ValueError(f"x: shape (N, H, D) with even D expected, got {(*x.shape,)}")
    check_heads("rotation.position", rotation.position, (x.shape[0],), rotation.position)
    check_heads("rotation.theta", rotation.theta, (x.shape[2] // 2,), rotation.theta)
    return rote_reference(x, *rotation.cos_sin)
