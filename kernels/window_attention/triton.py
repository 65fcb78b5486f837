"""Window attention in Triton: ``softmax(q kᵀ · scale) v`` over ``[t − left, t + right]`` of each packed sequence.

A block of queries walks over the blocks of keys inside its window, and a block of keys over the queries that see it:
time is O(T · window), and what is kept is one number per token and head. Queries and keys are turned (ROTE) as they are
loaded, and their gradients turned back as they are stored. Every gradient element is written by one program.

Legend: M queries of a block · N keys of a block · D head width · P width of a part, see :mod:`kernels.tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backends import contiguous_rows, on_device_of, triton_target
from kernels.rote import triton as rote
from kernels.tiles import (
    LOG2_E,
    NOWHERE,
    dot_parts,
    head_sizes,
    load_rows,
    load_turned,
    row_dot,
    store_rows,
    store_turned_back,
)

_RUNTIME = ["blocks", "left", "right"]


@triton.jit
def _place(OFFSETS, blocks, H, BLOCK: tl.constexpr):
    """Of the grid (samples · heads · blocks): first packed token and length of the sequence, head, first row."""
    program = tl.program_id(0)
    first = (program % blocks) * BLOCK
    h = (program // blocks) % H
    sample = (program // blocks // H).to(tl.int64)
    start = tl.load(OFFSETS + sample)
    length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
    return start, length, h.to(tl.int64), first


@triton.jit
def _seen(m, n, length, left, right):
    """(M, N): the key exists and lies in the window of the query; a row may see none."""
    distance_MN = n[None, :] - m[:, None]
    return (distance_MN >= -left) & (distance_MN <= right) & (n < length)[None, :]


@triton.jit(do_not_specialize=_RUNTIME)
def _forward(
    Q, K, V, COS, SIN, OFFSETS, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head, H, blocks, left, right, exponent,
    ROTATE: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (samples · heads · query blocks). OUT (N, H, D); LSE (N, H), to base 2. ``exponent`` = scale · log₂e."""
    start, length, h, first = _place(OFFSETS, blocks, H, BLOCK_M)
    if first >= length:
        return
    cos = COS
    sin = SIN
    if ROTATE:
        cos = COS + start * PART
        sin = SIN + start * PART
    m = first + tl.arange(0, BLOCK_M)
    k = K + start * k_row + h * k_head
    v = V + start * v_row + h * v_head
    q1_MP, q2_MP = load_turned(Q + start * q_row + h * q_head, q_row, cos, sin, m, length, ROTATE, PART, BLOCK_P)
    top_M = tl.full([BLOCK_M], NOWHERE, tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    out_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    low = tl.maximum(first - left, 0)
    high = tl.minimum(first + BLOCK_M + right, length)
    for j in range(low, high, BLOCK_N):
        n = j + tl.arange(0, BLOCK_N)
        k1_NP, k2_NP = load_turned(k, k_row, cos, sin, n, length, ROTATE, PART, BLOCK_P)
        v_ND = load_rows(v, v_row, n, length, D, BLOCK_D)
        seen_MN = _seen(m, n, length, left, right)
        s_MN = tl.where(seen_MN, dot_parts(q1_MP, q2_MP, k1_NP, k2_NP, ROTATE) * exponent, NOWHERE)
        high_M = tl.maximum(top_M, tl.max(s_MN, 1))
        # A row that has not met its window yet weighs its strangers 1; the first real score shrinks them to exactly 0.
        w_MN = tl.exp2(s_MN - high_M[:, None])
        shrink_M = tl.exp2(top_M - high_M)
        sum_M = sum_M * shrink_M + tl.sum(w_MN, 1)
        out_MD = tl.dot(w_MN.to(v_ND.dtype), v_ND, out_MD * shrink_M[:, None], input_precision="ieee")
        top_M = high_M
    tl.store(LSE + (start + m) * H + h, top_M + tl.log2(sum_M), mask=m < length)
    store_rows(OUT + (start * H + h) * D, H * D, m, length, out_MD / sum_M[:, None], D, BLOCK_D)


@triton.jit(do_not_specialize=_RUNTIME)
def _backward_queries(
    GRAD, Q, K, V, COS, SIN, OFFSETS, LSE, MEAN, DQ,
    q_row, q_head, k_row, k_head, v_row, v_head, H, blocks, left, right, scale, exponent,
    ROTATE: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (samples · heads · query blocks): ``dq = w (grad vᵀ − mean) k · scale``, turned back.

    MEAN (N, H): Σ_d grad · out.
    """
    start, length, h, first = _place(OFFSETS, blocks, H, BLOCK_M)
    if first >= length:
        return
    cos = COS
    sin = SIN
    if ROTATE:
        cos = COS + start * PART
        sin = SIN + start * PART
    m = first + tl.arange(0, BLOCK_M)
    k = K + start * k_row + h * k_head
    v = V + start * v_row + h * v_head
    row = start * H + h
    q1_MP, q2_MP = load_turned(Q + start * q_row + h * q_head, q_row, cos, sin, m, length, ROTATE, PART, BLOCK_P)
    grad_MD = load_rows(GRAD + row * D, H * D, m, length, D, BLOCK_D)
    lse_M = tl.load(LSE + row + m * H, mask=m < length, other=0.0)
    mean_M = tl.load(MEAN + row + m * H, mask=m < length, other=0.0)
    dq1_MP = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    dq2_MP = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    low = tl.maximum(first - left, 0)
    high = tl.minimum(first + BLOCK_M + right, length)
    for j in range(low, high, BLOCK_N):
        n = j + tl.arange(0, BLOCK_N)
        k1_NP, k2_NP = load_turned(k, k_row, cos, sin, n, length, ROTATE, PART, BLOCK_P)
        v_ND = load_rows(v, v_row, n, length, D, BLOCK_D)
        seen_MN = _seen(m, n, length, left, right)
        e_MN = dot_parts(q1_MP, q2_MP, k1_NP, k2_NP, ROTATE) * exponent - lse_M[:, None]
        w_MN = tl.exp2(tl.where(seen_MN, e_MN, NOWHERE))
        dw_MN = tl.dot(grad_MD, tl.trans(v_ND), input_precision="ieee")
        ds_MN = (w_MN * (dw_MN - mean_M[:, None])).to(k1_NP.dtype)
        dq1_MP = tl.dot(ds_MN, k1_NP, dq1_MP, input_precision="ieee")
        if ROTATE:
            dq2_MP = tl.dot(ds_MN, k2_NP, dq2_MP, input_precision="ieee")
    dq = DQ + row * D
    store_turned_back(dq, H * D, cos, sin, m, length, dq1_MP * scale, dq2_MP * scale, ROTATE, PART, BLOCK_P)


@triton.jit(do_not_specialize=_RUNTIME)
def _backward_keys(
    GRAD, Q, K, V, COS, SIN, OFFSETS, LSE, MEAN, DK, DV,
    q_row, q_head, k_row, k_head, v_row, v_head, H, blocks, left, right, scale, exponent,
    ROTATE: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (samples · heads · key blocks): ``dv = wᵀ grad`` and ``dk = (w (grad vᵀ − mean))ᵀ q · scale``, turned back.

    Transposed throughout, so that the products with grad and q take their left side from registers.
    """
    start, length, h, first = _place(OFFSETS, blocks, H, BLOCK_N)
    if first >= length:
        return
    cos = COS
    sin = SIN
    if ROTATE:
        cos = COS + start * PART
        sin = SIN + start * PART
    n = first + tl.arange(0, BLOCK_N)
    q = Q + start * q_row + h * q_head
    row = start * H + h
    k1_NP, k2_NP = load_turned(K + start * k_row + h * k_head, k_row, cos, sin, n, length, ROTATE, PART, BLOCK_P)
    v_ND = load_rows(V + start * v_row + h * v_head, v_row, n, length, D, BLOCK_D)
    dk1_NP = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    dk2_NP = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low = tl.maximum(first - right, 0)
    high = tl.minimum(first + BLOCK_N + left, length)
    for i in range(low, high, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        q1_MP, q2_MP = load_turned(q, q_row, cos, sin, m, length, ROTATE, PART, BLOCK_P)
        grad_MD = load_rows(GRAD + row * D, H * D, m, length, D, BLOCK_D)
        lse_M = tl.load(LSE + row + m * H, mask=m < length, other=0.0)
        mean_M = tl.load(MEAN + row + m * H, mask=m < length, other=0.0)
        # Seen from the key, left and right change places; a query that does not exist must not weigh.
        seen_NM = _seen(n, m, length, right, left)
        e_NM = dot_parts(k1_NP, k2_NP, q1_MP, q2_MP, ROTATE) * exponent - lse_M[None, :]
        w_NM = tl.exp2(tl.where(seen_NM, e_NM, NOWHERE))
        dv_ND = tl.dot(w_NM.to(grad_MD.dtype), grad_MD, dv_ND, input_precision="ieee")
        dw_NM = tl.dot(v_ND, tl.trans(grad_MD), input_precision="ieee")
        ds_NM = (w_NM * (dw_NM - mean_M[None, :])).to(q1_MP.dtype)
        dk1_NP = tl.dot(ds_NM, q1_MP, dk1_NP, input_precision="ieee")
        if ROTATE:
            dk2_NP = tl.dot(ds_NM, q2_MP, dk2_NP, input_precision="ieee")
    dk = DK + row * D
    store_turned_back(dk, H * D, cos, sin, n, length, dk1_NP * scale, dk2_NP * scale, ROTATE, PART, BLOCK_P)
    store_rows(DV + row * D, H * D, n, length, dv_ND, D, BLOCK_D)


@dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel: queries and keys of a block, and how Triton runs it."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Configuration:
    """The blocks of each kernel. widest_turned: wider heads are turned by a kernel of their own beforehand, as their
    halves do not fit in registers here."""

    forward: Blocks
    queries: Blocks
    keys: Blocks
    widest_turned: int


_INTERPRETED = Configuration(Blocks(16, 16, 4, 1), Blocks(16, 32, 4, 1), Blocks(32, 16, 4, 1), 32)

# By the widest head: forward, the gradient of queries, that of keys and values. Chosen by what the compiler says
# of registers and shared memory; none was tuned by measurement.
_HALF: dict[str, dict[int, Configuration]] = {
    "sm_80": {
        64: Configuration(Blocks(128, 64, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 64, 8, 2), 64),
        128: Configuration(Blocks(64, 64, 4, 1), Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2), 64),
        256: Configuration(Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 2), Blocks(16, 64, 8, 1), 64),
    },
    "sm_90": {
        64: Configuration(Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 2), Blocks(64, 128, 8, 2), 64),
        128: Configuration(Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2), 128),
        256: Configuration(Blocks(64, 64, 8, 1), Blocks(128, 32, 8, 2), Blocks(32, 64, 8, 2), 128),
    },
    "sm_100": {
        64: Configuration(Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 2), Blocks(64, 128, 8, 2), 64),
        128: Configuration(Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 2), Blocks(32, 128, 8, 2), 128),
        256: Configuration(Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 1), Blocks(32, 64, 8, 2), 128),
    },
    "gfx942": {
        64: Configuration(Blocks(128, 64, 4, 1), Blocks(128, 32, 4, 1), Blocks(16, 128, 4, 1), 64),
        128: Configuration(Blocks(128, 64, 4, 1), Blocks(128, 32, 4, 1), Blocks(32, 64, 4, 1), 64),
        256: Configuration(Blocks(128, 32, 8, 1), Blocks(128, 16, 8, 1), Blocks(16, 64, 8, 1), 64),
    },
    # Any other chip: 96 KB of shared memory or more.
    "other": {
        128: Configuration(Blocks(64, 32, 4, 1), Blocks(64, 32, 8, 1), Blocks(32, 64, 8, 1), 64),
        256: Configuration(Blocks(64, 32, 8, 1), Blocks(64, 16, 8, 1), Blocks(16, 64, 8, 1), 64),
    },
}
# Exact products without tensor cores, the same on every chip.
_FLOAT32: dict[int, Configuration] = {
    64: Configuration(Blocks(32, 32, 4, 1), Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1), 64),
    128: Configuration(Blocks(32, 16, 8, 2), Blocks(32, 16, 8, 1), Blocks(16, 32, 8, 1), 64),
    256: Configuration(Blocks(16, 16, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 16, 8, 1), 64),
}


def configuration(target: str, width: int, dtype: torch.dtype) -> Configuration:
    """By chip, head width and dtype."""
    if target == "interpreter":
        return _INTERPRETED
    table = _FLOAT32 if dtype == torch.float32 else _HALF.get(target, _HALF["other"])
    return table[min(widest for widest in table if width <= widest)]


def _launch(blocks: Blocks) -> dict[str, int]:
    return {"BLOCK_M": blocks.m, "BLOCK_N": blocks.n, "num_warps": blocks.warps, "num_stages": blocks.stages}


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (N, H, D) and the logarithm to base 2 of the sum of exponentials (N, H) float32."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    if not out.numel():
        return out, lse
    _, heads, width = q.shape
    with on_device_of(q):
        chosen = configuration(triton_target(), width, q.dtype)
        q, k, v = contiguous_rows(q, k, v)
        (q, k), cos, sin = rote.turn_wide(chosen.widest_turned, cos, sin, q, k)
        blocks = triton.cdiv(max_length, chosen.forward.m)
        _forward[((offsets.numel() - 1) * heads * blocks,)](
            *(q, k, v, cos, sin, offsets.contiguous(), out, lse),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *(heads, blocks, left, right, scale * LOG2_E.value),
            **head_sizes(width, cos is not None),
            **_launch(chosen.forward),
        )
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q and k (before they were turned) and v."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    if not dq.numel():
        return dq, dk, dv
    _, heads, width = q.shape
    samples = offsets.numel() - 1
    with on_device_of(q):
        chosen = configuration(triton_target(), width, q.dtype)
        q, k, v = contiguous_rows(q, k, v)
        (q, k), here_cos, here_sin = rote.turn_wide(chosen.widest_turned, cos, sin, q, k)
        grad = grad.contiguous()
        mean = row_dot(grad, out.contiguous())
        inputs = (grad, q, k, v, here_cos, here_sin, offsets.contiguous(), lse.contiguous(), mean)
        strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads)
        numbers = (left, right, scale, scale * LOG2_E.value)
        sizes = head_sizes(width, here_cos is not None)
        blocks = triton.cdiv(max_length, chosen.queries.m)
        _backward_queries[(samples * heads * blocks,)](
            *inputs, dq, *strides, blocks, *numbers, **sizes, **_launch(chosen.queries)
        )
        blocks = triton.cdiv(max_length, chosen.keys.n)
        _backward_keys[(samples * heads * blocks,)](
            *inputs, dk, dv, *strides, blocks, *numbers, **sizes, **_launch(chosen.keys)
        )
        if cos is not None and sin is not None and here_cos is None:
            dq, dk = rote.forward(dq, cos, -sin), rote.forward(dk, cos, -sin)
    return dq, dk, dv
