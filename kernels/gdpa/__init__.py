"""GDPA, generalised dot-product attention: ``Act_h(Q Kᵀ / τ) V``, no softmax, an activation per head.

Kunlun's personalized feed-forward network written as attention: K and V come from the sample's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.activations import per_head
from kernels.backends import autocast, check_heads, check_offsets, choose_backend, no_second_derivative
from kernels.gdpa.reference import gdpa_reference
from kernels.packed import check_layout, known_lengths


def gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    tau: float,
    activation: str | Sequence[str] = "gelu",
    tau_position: Literal["pre", "post"] = "pre",
    kv_offsets: Tensor | None = None,
    kv_max_length: int | None = None,
    kv_index: Tensor | None = None,
    window: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """``Act_h(q Kᵀ / τ) V`` for every token of every packed sequence. Returns (N, H, D).

    Args:
        q: (N, H, D) packed queries.
        k: keys, dense (G, n, H_kv, D), one set per sample (the Kunlun case), or packed (N_kv, H_kv, D)
            with ``kv_offsets``; H_kv divides H (grouped heads).
        v: values, as ``k``.
        offsets: (B + 1,) int64, the sequences of ``q``.
        max_length: no sequence of ``q`` is longer.
        tau: the scale; ``pre`` divides the scores (the paper), ``post`` the result (Meta's kernel).
        activation: one name, or one per head; see :data:`kernels.activations.ACTIVATIONS`.
        kv_offsets: (G + 1,) int64 where keys and values are packed.
        kv_max_length: no key/value set is longer; given with ``kv_offsets``.
        kv_index: (B,) int64, the key/value set each sample uses (shared context); None = its own.
        window: token i sees keys i − left … i + right only; None = all.
        backend: "reference", "torch", "triton", or None = by device; see :mod:`kernels.backends`.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    Gradients for q, k and v; the scores are never kept. FLOPs forward ``4 · H · D · Σ pairs``, backward 2.5 times that.
    """
    q, k, v = autocast(q, k, v)
    if q.ndim != 3:
        raise ValueError(f"q: shape (N, H, D) expected, got {(*q.shape,)}")
    backend = choose_backend(backend, q, "gdpa")
    _, heads, width = q.shape
    if backend == "triton" and width > 256:
        raise ValueError(f"q: backend 'triton' takes heads of up to 256, got {width}; backend 'torch' takes any")
    names = per_head(activation, heads)
    check_offsets("offsets", offsets, q)
    packed = kv_offsets is not None
    check_heads("k", k, (None, None, width) if packed else (None, None, None, width), q)
    check_heads("v", v, tuple(k.shape), q)
    if heads % k.shape[-2]:
        raise ValueError(f"k: its {k.shape[-2]} heads must divide the {heads} heads of q")
    if kv_offsets is not None:
        check_offsets("kv_offsets", kv_offsets, q)
        if kv_max_length is None:
            raise ValueError("kv_max_length: give the longest key/value set together with kv_offsets")
    elif kv_max_length is not None:
        raise ValueError("kv_max_length: only with kv_offsets; dense keys and values are all equally long")
    sets = k.shape[0] if kv_offsets is None else kv_offsets.shape[0] - 1
    batch = offsets.shape[0] - 1
    if kv_index is None and sets != batch:
        raise ValueError(f"k: {sets} sets for {batch} samples; give kv_index where samples share them")
    if kv_index is not None and (kv_index.shape != (batch,) or kv_index.dtype != torch.int64):
        raise ValueError(f"kv_index: int64 ({batch},) expected, got {kv_index.dtype} {(*kv_index.shape,)}")
    if not tau > 0:
        raise ValueError(f"tau: must be > 0, got {tau}")
    if tau_position not in ("pre", "post"):
        raise ValueError(f"tau_position: 'pre' or 'post' expected, got {tau_position!r}")
    if window is not None and (len(window) != 2 or min(window) < 0):
        raise ValueError(f"window: (left, right) ≥ 0 expected, got {window}")
    if backend == "reference":
        return gdpa_reference(q, k, v, offsets, names, tau, tau_position, kv_offsets, kv_index, window)
    inside, outside = (1 / tau, 1.0) if tau_position == "pre" else (1.0, 1 / tau)
    kv_tokens = k.shape[1] if kv_max_length is None else kv_max_length
    return _gdpa(
        *(q, k, v, offsets, kv_offsets, kv_index, max_length, kv_tokens),
        *(",".join(names), inside, outside, None if window is None else list(window), backend),
    )


def pairs(length: int, kv_tokens: int, window: tuple[int, int] | None) -> int:
    """How many (query, key) pairs one sample has."""
    if window is None:
        return length * kv_tokens
    left, right = window
    return sum(max(min(i + right, kv_tokens - 1) - max(i - left, 0) + 1, 0) for i in range(length))


def flops(length: int, kv_tokens: int, width: int) -> int:
    """Forward FLOPs of one sample: T tokens, n key/value tokens, all heads together ``width`` wide."""
    return 4 * length * kv_tokens * width


def _implementation(backend: str) -> Any:
    return import_module("kernels.gdpa.triton" if backend == "triton" else "kernels.gdpa.tiled")


@torch.library.custom_op("kunlun::gdpa", mutates_args=())
def _gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    kv_offsets: Tensor | None,
    kv_index: Tensor | None,
    max_length: int,
    kv_tokens: int,
    activation: str,
    inside: float,
    outside: float,
    window: list[int] | None,
    backend: str,
) -> Tensor:
    check_layout("offsets", offsets, q.shape[0], max_length)
    if kv_offsets is not None:
        check_layout("kv_offsets", kv_offsets, k.shape[0], kv_tokens)
    if kv_index is not None:
        _check_index(kv_index, k.shape[0] if kv_offsets is None else kv_offsets.numel() - 1)
    shape = (max_length, kv_tokens, activation.split(","), inside, outside, window)
    return _implementation(backend).forward(q, k, v, offsets, kv_offsets, kv_index, *shape)


@torch.library.custom_op("kunlun::gdpa_backward", mutates_args=())
def _gdpa_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    kv_offsets: Tensor | None,
    kv_index: Tensor | None,
    max_length: int,
    kv_tokens: int,
    activation: str,
    inside: float,
    outside: float,
    window: list[int] | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (max_length, kv_tokens, activation.split(","), inside, outside, window)
    return _implementation(backend).backward(grad, q, k, v, offsets, kv_offsets, kv_index, *shape)


def _check_index(kv_index: Tensor, sets: int) -> None:
    right = (kv_index >= 0) & (kv_index < sets)
    if kv_index.device.type != "cpu":
        torch._assert_async(right.all(), f"kv_index: 0 … {sets - 1} expected")
    elif not bool(right.all()):
        raise ValueError(f"kv_index: 0 … {sets - 1} expected, got {int(kv_index.min())} … {int(kv_index.max())}")


@_gdpa.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@_gdpa_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gdpa_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *[None] * 10


_gdpa.register_autograd(_differentiate, setup_context=_setup)
no_second_derivative(_gdpa_backward, "gdpa")


@register_flop_formula(torch.ops.kunlun.gdpa, get_raw=True)
def _flops(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *rest: Any, out_val: Any = None) -> int:
    kv_offsets, kv_index, _, kv_tokens, _, _, _, window, _ = rest
    lengths = known_lengths(offsets, q.shape[0])
    sets = [kv_tokens] * k.shape[0] if kv_offsets is None else known_lengths(kv_offsets, k.shape[0])
    index = range(len(lengths)) if kv_index is None else kv_index.tolist()
    edges = None if window is None else (window[0], window[1])
    count = sum(pairs(length, sets[g], edges) for length, g in zip(lengths, index, strict=True))
    return 4 * q.shape[1] * q.shape[2] * count


@register_flop_formula(torch.ops.kunlun.gdpa_backward, get_raw=True)
def _backward_flops(grad: Tensor, *arguments: Any, out_val: Any = None) -> int:
    return _flops(*arguments) * 5 // 2
