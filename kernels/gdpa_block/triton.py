"""The GDPA block in Triton: the kernels of GDPA normalise queries as they load them; around them are passes over rows.

forward: statistics of s → GDPA(LN(s)) + LN(s) = g → s + RMSNorm(g). Backward the other way round. The gradients of the
norms' weights are sums over all rows: each program adds up a run of them, and the parts are added in a fixed order.
Legend: N tokens · W width of a token, in a block of BLOCK_W · R rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backends
from kernels.backends import on_device_of
from kernels.gdpa import triton as gdpa_kernels

# Elements of a step: about what the registers of four warps hold of the five tensors of the last pass.
_STEP = 4096


@triton.jit
def _rows(base, rows, count, W: tl.constexpr, BLOCK_W: tl.constexpr):
    """(R, BLOCK_W) in float32, zeros outside."""
    w = tl.arange(0, BLOCK_W)
    mask = (rows < count)[:, None] & (w < W)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * W + w[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put_rows(base, rows, count, x, W: tl.constexpr, BLOCK_W: tl.constexpr):
    w = tl.arange(0, BLOCK_W)
    mask = (rows < count)[:, None] & (w < W)[None, :]
    tl.store(base + rows.to(tl.int64)[:, None] * W + w[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _statistics(S, MEAN, RSTD, count, eps, W: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr):
    """Grid (rows / R,): mean and 1 / standard deviation of each row of S (N, W)."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    x = _rows(S, rows, count, W, BLOCK_W)
    mean = tl.sum(x, 1) / W
    away = tl.where((tl.arange(0, BLOCK_W) < W)[None, :], x - mean[:, None], 0.0)
    tl.store(MEAN + rows, mean, mask=rows < count)
    tl.store(RSTD + rows, 1 / tl.sqrt_rn(tl.sum(away * away, 1) / W + eps), mask=rows < count)


@triton.jit(do_not_specialize=["count"])
def _add_normed(S, G, WEIGHT, OUT, count, eps, W: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr):
    """Grid (rows / R,): ``OUT = S + G / rms(G) ⊙ WEIGHT``."""
    w = tl.arange(0, BLOCK_W)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    g = _rows(G, rows, count, W, BLOCK_W)
    weight = tl.load(WEIGHT + w, mask=w < W, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt_rn(tl.sum(g * g, 1) / W + eps)
    out = _rows(S, rows, count, W, BLOCK_W) + g * scale[:, None] * weight[None, :]
    _put_rows(OUT, rows, count, out, W, BLOCK_W)


@triton.jit(do_not_specialize=["count", "run"])
def _add_normed_backward(
    GRAD, G, WEIGHT, DG, DWEIGHT, count, run, eps, W: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr
):
    """Grid (programs,), ``run`` rows each: the gradient of G, and this program's part of that of WEIGHT."""
    w = tl.arange(0, BLOCK_W)
    weight = tl.load(WEIGHT + w, mask=w < W, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_W], tl.float32)
    first = tl.program_id(0) * run
    for row in range(first, tl.minimum(first + run, count), R):
        rows = row + tl.arange(0, R)
        g = _rows(G, rows, count, W, BLOCK_W)
        grad = _rows(GRAD, rows, count, W, BLOCK_W)
        scale = 1 / tl.sqrt_rn(tl.sum(g * g, 1) / W + eps)
        normed = g * scale[:, None]
        dnormed = grad * weight[None, :]
        dg = (dnormed - normed * (tl.sum(dnormed * normed, 1) / W)[:, None]) * scale[:, None]
        _put_rows(DG, rows, count, dg, W, BLOCK_W)
        dweight += tl.sum(grad * normed, 0)
    tl.store(DWEIGHT + tl.program_id(0) * W + w, dweight, mask=w < W)


@triton.jit(do_not_specialize=["count", "run"])
def _norm_backward(
    GRAD, DQ, S, MEAN, RSTD, WEIGHT, DS, DWEIGHT, DBIAS, count, run,
    W: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Grid (programs,), ``run`` rows each: ``DS = GRAD + LNᵀ(DQ)``, and parts of the gradients of weight and bias."""
    w = tl.arange(0, BLOCK_W)
    weight = tl.load(WEIGHT + w, mask=w < W, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_W], tl.float32)
    dbias = tl.zeros([BLOCK_W], tl.float32)
    first = tl.program_id(0) * run
    for row in range(first, tl.minimum(first + run, count), R):
        rows = row + tl.arange(0, R)
        mean = tl.load(MEAN + rows, mask=rows < count, other=0.0)
        rstd = tl.load(RSTD + rows, mask=rows < count, other=0.0)
        dq = _rows(DQ, rows, count, W, BLOCK_W)
        normed = (_rows(S, rows, count, W, BLOCK_W) - mean[:, None]) * rstd[:, None]
        dnormed = dq * weight[None, :]
        along = (tl.sum(dnormed * normed, 1) / W)[:, None]
        ds = (dnormed - (tl.sum(dnormed, 1) / W)[:, None] - normed * along) * rstd[:, None]
        _put_rows(DS, rows, count, ds + _rows(GRAD, rows, count, W, BLOCK_W), W, BLOCK_W)
        dweight += tl.sum(dq * normed, 0)
        dbias += tl.sum(dq, 0)
    tl.store(DWEIGHT + tl.program_id(0) * W + w, dweight, mask=w < W)
    tl.store(DBIAS + tl.program_id(0) * W + w, dbias, mask=w < W)


def _sizes(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"W": width, "BLOCK_W": block, "R": max(_STEP // block, 1), "num_warps": 4}


def forward(
    s: Tensor,
    k: Tensor,
    v: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    out_weight: Tensor,
    offsets: Tensor,
    max_length: int,
    names: Sequence[str],
    inside: float,
    outside: float,
    norm_eps: float,
    out_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`kernels.gdpa_block.gdpa_block`: the output, g, and the statistics of the layer norm."""
    s, norm_weight, norm_bias, out_weight = (x.contiguous() for x in (s, norm_weight, norm_bias, out_weight))
    count, width = s.shape
    out = s.new_empty(s.shape)
    mean, rstd = (s.new_empty(count, dtype=torch.float32) for _ in range(2))
    sizes = _sizes(width)
    grid = (triton.cdiv(count, sizes["R"]),)
    with on_device_of(s):
        if count:
            _statistics[grid](s, mean, rstd, count, norm_eps, **sizes)
        g = gdpa_kernels.forward(
            s.unflatten(1, k.shape[2:]), k, v, offsets, None, None, max_length, k.shape[1], names, inside, outside,
            None, gdpa_kernels.Norm(mean, rstd, norm_weight, norm_bias),
        ).flatten(1)  # fmt: skip
        if count:
            _add_normed[grid](s, g, out_weight, out, count, out_eps, **sizes)
    return out, g, mean, rstd


def backward(
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
    names: Sequence[str],
    inside: float,
    outside: float,
    out_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of s, k, v and of the three weights."""
    grad, s, norm_weight, norm_bias, out_weight = (
        x.contiguous() for x in (grad, s, norm_weight, norm_bias, out_weight)
    )
    count, width = s.shape
    sizes = _sizes(width)
    programs = max(min(4 * backends.multiprocessors(s.device), triton.cdiv(count, sizes["R"])), 1)
    run = triton.cdiv(triton.cdiv(count, programs), sizes["R"]) * sizes["R"]
    dg, ds = (s.new_empty(s.shape) for _ in range(2))
    parts = s.new_empty((3, programs, width), dtype=torch.float32)
    with on_device_of(s):
        _add_normed_backward[(programs,)](grad, g, out_weight, dg, parts[0], count, run, out_eps, **sizes)
        dq, dk, dv = gdpa_kernels.backward(
            dg.unflatten(1, k.shape[2:]), s.unflatten(1, k.shape[2:]), k, v, offsets, None, None, max_length,
            k.shape[1], names, inside, outside, None, gdpa_kernels.Norm(mean, rstd, norm_weight, norm_bias),
        )  # fmt: skip
        _norm_backward[(programs,)](
            grad, dq.flatten(1), s, mean, rstd, norm_weight, ds, parts[1], parts[2], count, run, **sizes
        )
    dout_weight, dnorm_weight, dnorm_bias = (part.sum(0) for part in parts)
    return (
        *(ds, dk, dv),
        *(dnorm_weight.to(norm_weight.dtype), dnorm_bias.to(norm_bias.dtype), dout_weight.to(out_weight.dtype)),
    )
