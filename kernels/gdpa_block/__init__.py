"""The residual block around GDPA as one op: ``s + RMSNorm(g)`` with ``g = GDPA(q̂, K, V) + q̂`` and ``q̂ = LN(s)``.

Two norms, two sums and the attention read and write the tokens eleven times when done apart, six times here.
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
from kernels.gdpa_block.reference import gdpa_block_reference
from kernels.packed import check_layout

# The widest heads whose kernels have registers left for the norms.
_FUSED_WIDTH = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 32}


def gdpa_block(
    s: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    norm_weight: Tensor,
    norm_bias: Tensor,
    out_weight: Tensor,
    tau: float,
    activation: str | Sequence[str] = "gelu",
    tau_position: Literal["pre", "post"] = "pre",
    norm_eps: float = 1e-5,
    out_eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """``s + RMSNorm(gdpa(LN(s), k, v) + LN(s))`` for every token (Kunlun, GDPA block). Returns (N, H · D).

    Args:
        s: (N, H · D) packed tokens. Wider than k and v in a mixed-precision run: sums and norms keep its precision.
        k, v: (B, n, H, D), one set per sample; ``H · D`` is the width of ``s``.
        offsets: (B + 1,) int64.
        max_length: no sequence is longer.
        norm_weight, norm_bias: (H · D,), of the layer norm; ``norm_eps`` its ε.
        out_weight: (H · D,), of the RMS norm; ``out_eps`` its ε.
        tau, activation, tau_position: as in :func:`kernels.gdpa.gdpa`.
        backend: "reference", "torch" (norms by torch, GDPA in pieces), "triton" (all fused up to D = 128, in
            float32 to 32; the norms by torch over that), or None = by device.

    Raises:
        ValueError: names the argument that does not fit and what was expected.

    Gradients for s, k, v and the three weights. FLOPs as :func:`kernels.gdpa.gdpa`.
    """
    k, v = autocast(k, v)
    if s.ndim != 2:
        raise ValueError(f"s: shape (N, H · D) expected, got {(*s.shape,)}")
    if k.ndim != 4 or k.shape[2] * k.shape[3] != s.shape[1] or k.shape[0] != offsets.shape[0] - 1:
        raise ValueError(f"k: (B, n, H, D) expected with H · D = {s.shape[1]} and B = {offsets.shape[0] - 1}, "
                         f"got {(*k.shape,)}")  # fmt: skip
    check_heads("v", v, tuple(k.shape), k)
    if k.device != s.device:
        raise ValueError(f"k: on {s.device} expected, got {k.device}")
    check_offsets("offsets", offsets, s)
    for name, weight in (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("out_weight", out_weight)):
        if weight.shape != s.shape[1:] or weight.device != s.device:
            raise ValueError(
                f"{name}: ({s.shape[1]},) on {s.device} expected, got {(*weight.shape,)} on {weight.device}"
            )
    if not tau > 0:
        raise ValueError(f"tau: must be > 0, got {tau}")
    if tau_position not in ("pre", "post"):
        raise ValueError(f"tau_position: 'pre' or 'post' expected, got {tau_position!r}")
    names = per_head(activation, k.shape[2])
    backend = choose_backend(backend, k, "gdpa_block")
    weights = (norm_weight, norm_bias, out_weight)
    if backend != "triton" or s.dtype == torch.float64 or k.shape[3] > _FUSED_WIDTH[k.dtype]:
        return gdpa_block_reference(
            s, k, v, offsets, max_length, *weights, tau, names, tau_position, norm_eps, out_eps, backend
        )
    inside, outside = (1 / tau, 1.0) if tau_position == "pre" else (1.0, 1 / tau)
    options = (max_length, ",".join(names), inside, outside, norm_eps, out_eps)
    return _gdpa_block(s, k, v, *weights, offsets, *options)[0]


def _implementation() -> Any:
    return import_module("kernels.gdpa_block.triton")


@torch.library.custom_op("kunlun::gdpa_block", mutates_args=())
def _gdpa_block(
    s: Tensor,
    k: Tensor,
    v: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    out_weight: Tensor,
    offsets: Tensor,
    max_length: int,
    activation: str,
    inside: float,
    outside: float,
    norm_eps: float,
    out_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block's output, and what its backward needs: g (N, H · D), mean and rstd (N,) of the layer norm."""
    check_layout("offsets", offsets, s.shape[0], max_length)
    names = activation.split(",")
    return _implementation().forward(
        s, k, v, norm_weight, norm_bias, out_weight, offsets, max_length, names, inside, outside, norm_eps, out_eps
    )


@torch.library.custom_op("kunlun::gdpa_block_backward", mutates_args=())
def _gdpa_block_backward(
    grad: Tensor,
    s: Tensor,
    k: Tensor,
    v: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    out_weight: Tensor,
    offsets: Tensor,
    g: Tensor,
    mean: Tensor,
    rstd: Tensor,
    max_length: int,
    activation: str,
    inside: float,
    outside: float,
    out_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (grad, s, k, v, norm_weight, norm_bias, out_weight, offsets, g, mean, rstd)
    return _implementation().backward(*tensors, max_length, activation.split(","), inside, outside, out_eps)


@_gdpa_block.register_fake
def _(s: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistic = s.new_empty(s.shape[0], dtype=torch.float32)
    return s.new_empty(s.shape), s.new_empty(s.shape), statistic, torch.empty_like(statistic)


@_gdpa_block_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:6])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output[1:])
    max_length, activation, inside, outside, _, out_eps = inputs[7:]
    ctx.options = (max_length, activation, inside, outside, out_eps)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_gdpa_block_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *[None] * 7


_gdpa_block.register_autograd(_differentiate, setup_context=_setup)
no_second_derivative(_gdpa_block_backward, "gdpa_block")


@register_flop_formula(torch.ops.kunlun.gdpa_block)
def _flops(s: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 4 * s[0] * k[1] * s[1]


@register_flop_formula(torch.ops.kunlun.gdpa_block_backward)
def _backward_flops(grad: Any, *arguments: Any, **_: Any) -> int:
    return _flops(*arguments) * 5 // 2
