"""ROTE: rotation of query and key heads by position and log-time (Kunlun, rotary temporal embedding).

Pair i of a token turns by ``position · θ_i + log_time · φ_i``. Pairs are (i, i + D/2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernels.backends import choose_backend
from kernels.rote.reference import rote_reference


@dataclass(frozen=True)
class Rotation:
    """What turns each token: position (N,) and log_time (N,) float32 or None, theta and phi (D/2,) rad per unit."""

    position: Tensor
    log_time: Tensor | None
    theta: Tensor
    phi: Tensor
    cos_sin: tuple[Tensor, Tensor] = field(init=False, repr=False)
    """(N, D/2) each, at least float32; computed once however many layers use it, differentiable in theta and phi."""

    def __post_init__(self) -> None:
        _check_rotation(self)
        dtype = torch.promote_types(self.position.dtype, torch.float32)
        angle = self.position.to(dtype)[:, None] * self.theta.to(dtype)
        if self.log_time is not None:
            angle = angle + self.log_time.to(dtype)[:, None] * self.phi.to(dtype)
        # Not a cached_property: torch.compile cannot trace its lock.
        object.__setattr__(self, "cos_sin", (torch.cos(angle), torch.sin(angle)))


def _check_rotation(rotation: Rotation) -> None:
    """Shapes that fit each other."""
    if rotation.position.ndim != 1:
        raise ValueError(f"rotation.position: shape (N,) expected, got {(*rotation.position.shape,)}")
    if rotation.log_time is not None and rotation.log_time.shape != rotation.position.shape:
        raise ValueError(
            f"rotation.log_time: shape {(*rotation.position.shape,)} expected, got {(*rotation.log_time.shape,)}"
        )
    if rotation.theta.ndim != 1:
        raise ValueError(f"rotation.theta: shape (D/2,) expected, got {(*rotation.theta.shape,)}")
    if rotation.phi.shape != rotation.theta.shape:
        raise ValueError(f"rotation.phi: shape {(*rotation.theta.shape,)} expected, got {(*rotation.phi.shape,)}")


def check_rotation(rotation: Rotation, x: Tensor) -> None:
    """``rotation`` must fit the heads ``x`` (N, H, D)."""
    tokens, _, width = x.shape
    if width % 2:
        raise ValueError(f"rotation: turns pairs, so an even D is expected, got shape {(*x.shape,)}")
    for name, tensor, size in (("position", rotation.position, tokens), ("theta", rotation.theta, width // 2)):
        if tensor.shape != (size,):
            raise ValueError(f"rotation.{name}: shape ({size},) expected, got {(*tensor.shape,)}")
    if rotation.cos_sin[0].device != x.device:
        raise ValueError(f"rotation: on {x.device} expected, got {rotation.cos_sin[0].device}")


def rote(x: Tensor, rotation: Rotation, *, backend: str | None = None) -> Tensor:
    """Rotate ``x`` (N, H, D), D even. Norms of heads are unchanged; differentiable in x, theta and phi, and twice.

    Computed in float32 (float64 for float64) and rounded to the dtype of ``x``, which autocast leaves alone.
    ``backend``: "reference", "torch", "triton", or None = by device; see :mod:`kernels.backends`.

    Raises ValueError where a shape does not fit.
    """
    backend = choose_backend(backend, x, "rote")
    if x.ndim != 3 or x.shape[2] % 2:
        raise ValueError(f"x: shape (N, H, D) with even D expected, got {(*x.shape,)}")
    check_rotation(rotation, x)
    if backend == "reference":
        return rote_reference(x, *rotation.cos_sin)
    return _rote(x, *rotation.cos_sin, backend)


@torch.library.custom_op("kunlun::rote", mutates_args=())
def _rote(x: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    return import_module("kernels.rote.triton" if backend == "triton" else "kernels.rote.tiled").forward(x, cos, sin)


@_rote.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, ctx.backend = inputs
    # The angles rarely learn: x is kept for them only.
    ctx.save_for_backward(x if any(ctx.needs_input_grad[1:3]) else None, cos, sin)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, cos, sin = ctx.saved_tensors
    dx = _rote(grad, cos, -sin, ctx.backend) if ctx.needs_input_grad[0] else None
    return dx, *(_angle_gradients(grad, x, cos) if x is not None else (None, None)), None


def _angle_gradients(grad: Tensor, x: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of cos and sin: ``Σ_h g₁x₁ + g₂x₂`` and ``Σ_h g₂x₁ − g₁x₂``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    g1, g2 = grad.to(dtype).chunk(2, dim=-1)
    x1, x2 = x.to(dtype).chunk(2, dim=-1)
    return (g1 * x1 + g2 * x2).sum(1).to(cos.dtype), (g2 * x1 - g1 * x2).sum(1).to(cos.dtype)


_rote.register_autograd(_differentiate, setup_context=_setup)
