"""Seed attention: S learned queries, the same for every sample, against each packed sequence (HSP and PMA)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backends import autocast, check_heads, check_offsets, choose_backend, no_second_derivative, own_precision
from kernels.packed import check_layout
from kernels.rote import Rotation, check_rotation, rote
from kernels.seed_attention import tiled
from kernels.seed_attention.reference import seed_attention_reference


def seed_attention(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    rotation: Rotation | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``softmax(seeds kᵀ · scale) v`` per sequence. Returns (B, S, H, D); zeros for an empty sequence.

    Args:
        seeds: (S, H, D) queries, shared by all samples.
        k, v: (N, H, D) packed.
        offsets: (B + 1,) int64.
        max_length: no sequence is longer.
        rotation: turns k before the scores; a seed sits at the request, position and log-time 0.
        scale: > 0, default D ** -0.5.
        backend: "reference", "torch", "triton", or None = by device; see :mod:`kernels.backends`.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    Gradients for seeds, k, v and the rotation's theta and phi; the scores are never kept.
    FLOPs forward ``4 · H · D · S · Σ T_b``, see :func:`flops`; backward 2.5 times that.
    """
    seeds, k, v = autocast(seeds, k, v)
    if seeds.ndim != 3 or 0 in seeds.shape:
        raise ValueError(f"seeds: shape (S, H, D) with none of them 0 expected, got {(*seeds.shape,)}")
    backend = choose_backend(backend, seeds, "seed_attention")
    width = seeds.shape[2]
    if backend == "triton" and width > 256:
        raise ValueError(f"seeds: backend 'triton' takes heads of up to 256, got {width}; backend 'torch' takes any")
    check_heads("k", k, (None, *seeds.shape[1:]), seeds)
    check_heads("v", v, tuple(k.shape), seeds)
    check_offsets("offsets", offsets, seeds)
    scale = width**-0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale: > 0 expected, got {scale}")
    cos = sin = None
    if rotation is not None:
        check_rotation(rotation, k)
        # The Triton kernels turn k as they load it; they have no gradient for angles that learn.
        if backend == "triton" and not rotation.cos_sin[0].requires_grad:
            cos, sin = rotation.cos_sin
        else:
            k = rote(k, rotation, backend=backend)
    if backend == "reference":
        check_layout("offsets", offsets, k.shape[0], max_length)
        return seed_attention_reference(seeds, k, v, offsets, scale)
    out, _ = _seed_attention(seeds, k, v, offsets, cos, sin, max_length, scale, backend)
    return out


def flops(length: int, seeds: int, width: int) -> int:
    """Forward FLOPs of one sample, all heads together ``width`` wide; projections not included."""
    return 4 * length * seeds * width


def _triton() -> Any:
    return import_module("kernels.seed_attention.triton")


@torch.library.custom_op("kunlun::seed_attention", mutates_args=())
def _seed_attention(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm of the sum of exponentials; on the torch backend k is already rotated."""
    check_layout("offsets", offsets, k.shape[0], max_length)
    with own_precision(seeds):
        if backend == "triton":
            return _triton().forward(seeds, k, v, offsets, cos, sin, max_length, scale)
        return tiled.forward(seeds, k, v, offsets, scale)


@torch.library.custom_op("kunlun::seed_attention_backward", mutates_args=())
def _seed_attention_backward(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with own_precision(seeds):
        if backend == "triton":
            return _triton().backward(grad, seeds, k, v, out, lse, offsets, cos, sin, max_length, scale)
        return tiled.backward(grad, seeds, k, v, out, lse, offsets, scale)


@_seed_attention.register_fake
def _(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch = offsets.shape[0] - 1
    lse = seeds.new_empty(batch, *seeds.shape[:2], dtype=torch.promote_types(seeds.dtype, torch.float32))
    return seeds.new_empty(batch, *seeds.shape), lse


@_seed_attention_backward.register_fake
def _(grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return seeds.new_empty(seeds.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    seeds, k, v, offsets, cos, sin, *ctx.options = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(seeds, k, v, out, lse, offsets, cos, sin)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_seed_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *[None] * 6


_seed_attention.register_autograd(_differentiate, setup_context=_setup)
no_second_derivative(_seed_attention_backward, "seed_attention")


@register_flop_formula(torch.ops.kunlun.seed_attention)
def _flops(seeds: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    return flops(k[0], seeds[0], seeds[1] * seeds[2])


@register_flop_formula(torch.ops.kunlun.seed_attention_backward)
def _backward_flops(grad: Any, *arguments: Any, **_: Any) -> int:
    return _flops(*arguments) * 5 // 2
