"""GDPA in Triton: ``O_h = Act_h(Q Kᵀ · inside) V · outside`` over packed sequences, forward and backward.

A program holds the keys and values of one (set, head) in shared memory while queries stream past them; more keys than
fit are walked in blocks. No softmax, so blocks of keys simply add up. Nothing is summed by atomics: every gradient
element is written by one program, or by a fixed number of them into slices that are added afterwards.

Padding needs no masks on scores: a row that is not there is loaded as zeros, and its value or its incoming gradient,
being zero, takes whatever the activation makes of it to zero (also where act(0) ≠ 0).

One launch has one activation, so none is chosen inside a loop; heads with different ones are launched apart.
Legend: M query rows of a block · N key rows of a block · D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import triton_activation
from kernels.backends import INTERPRETED, contiguous_rows, multiprocessors, on_device_of, triton_target
from kernels.gdpa.blocks import PLANS, Blocks, configuration
from kernels.tiles import load_rows, store_rows

_RUNTIME = ["kv_tokens", "chunk", "chunks", "blocks", "splits", "group", "left", "right"]


@triton.jit
def _load_queries(
    q, q_row, rows, last, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS, start, h,
    NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Query rows (M, D); with NORM they are tokens, layer-normalised here from their statistics (N,), in float32."""
    x = load_rows(q, q_row, rows, last, D, BLOCK_D)
    if NORM:
        d = tl.arange(0, BLOCK_D)
        inside = (rows < last)[:, None] & (d < D)[None, :]
        mean = tl.load(MEAN + start + rows, mask=rows < last, other=0.0)
        rstd = tl.load(RSTD + start + rows, mask=rows < last, other=0.0)
        weight = tl.load(NORM_WEIGHT + h * D + d, mask=d < D, other=0.0).to(tl.float32)
        bias = tl.load(NORM_BIAS + h * D + d, mask=d < D, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
        x = tl.where(inside, x, 0.0)
    return x


@triton.jit
def _near(rows_M, rows_N, left, right):
    """(M, N): whether query i sees key j, i − left ≤ j ≤ i + right."""
    distance = rows_N[None, :] - rows_M[:, None]
    return (distance >= -left) & (distance <= right)


@triton.jit
def _key_set(sample, KV_OFFSETS, KV_INDEX, kv_tokens, PACKED: tl.constexpr, SHARED: tl.constexpr):
    """The number of the sample's key/value set, its first row (packed) and its length."""
    g = sample
    if SHARED:
        g = tl.load(KV_INDEX + sample)
    first = g * 0
    tokens = kv_tokens
    if PACKED:
        first = tl.load(KV_OFFSETS + g)
        tokens = (tl.load(KV_OFFSETS + g + 1) - first).to(tl.int32)
    return g, first, tokens


@triton.jit(do_not_specialize=_RUNTIME)
def _forward(
    Q, K, V, OUT, OFFSETS, KV_OFFSETS, KV_INDEX, HEADS, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS,
    q_row, q_head, k_set, k_row, k_head, v_set, v_row, v_head, o_row, o_head,
    kv_tokens, chunk, chunks, group, left, right, inside, outside,
    ACT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RESIDENT: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, SHARED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Grid (samples · chunks, heads): ``chunk`` queries of one sample and head. NORM: Q is LN(tokens), and is added.

    RESIDENT: all keys in one block, loaded once. Otherwise, and with a window, blocks of keys stream past the queries.
    """
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    h = tl.program_id(1)
    if HEADS is not None:
        h = tl.load(HEADS + h)
    start = tl.load(OFFSETS + sample)
    length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
    first = (tl.program_id(0) % chunks) * chunk
    if first >= length:
        return
    last = tl.minimum(first + chunk, length)
    g, kv_first, tokens = _key_set(sample, KV_OFFSETS, KV_INDEX, kv_tokens, PACKED, SHARED)
    q = Q + start * q_row + h * q_head
    out = OUT + start * o_row + h * o_head
    k = K + g * k_set + kv_first * k_row + (h // group) * k_head
    v = V + g * v_set + kv_first * v_row + (h // group) * v_head
    dtype = K.dtype.element_ty
    n = tl.arange(0, BLOCK_N)
    if RESIDENT:
        k_ND = load_rows(k, k_row, n, tokens, D, BLOCK_D)
        v_ND = load_rows(v, v_row, n, tokens, D, BLOCK_D)
    for m in range(first, last, BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        x_MD = _load_queries(q, q_row, rows, last, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS, start, h, NORM, D, BLOCK_D)
        q_MD = x_MD.to(dtype)
        if RESIDENT:
            s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * inside
            w_MN, _ = ACT(s_MN)
            o_MD = tl.dot(w_MN.to(dtype), v_ND, input_precision="ieee")
        else:
            o_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            low = 0
            high = tokens
            if WINDOW:
                low = tl.maximum(m - left, 0) // BLOCK_N * BLOCK_N
                high = tl.minimum(m + BLOCK_M + right, tokens)
            for j in range(low, high, BLOCK_N):
                kj_ND = load_rows(k, k_row, j + n, tokens, D, BLOCK_D)
                vj_ND = load_rows(v, v_row, j + n, tokens, D, BLOCK_D)
                s_MN = tl.dot(q_MD, tl.trans(kj_ND), input_precision="ieee") * inside
                w_MN, _ = ACT(s_MN)
                if WINDOW:
                    w_MN = tl.where(_near(rows, j + n, left, right), w_MN, 0.0)
                o_MD += tl.dot(w_MN.to(dtype), vj_ND, input_precision="ieee")
        o_MD = o_MD * outside
        if NORM:
            o_MD += x_MD
        store_rows(out, o_row, rows, last, o_MD, D, BLOCK_D)


@triton.jit(do_not_specialize=_RUNTIME)
def _backward_q(
    GRAD, Q, K, V, DQ, OFFSETS, KV_OFFSETS, KV_INDEX, HEADS, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS,
    g_row, g_head, q_row, q_head, k_set, k_row, k_head, v_set, v_row, v_head, dq_row, dq_head,
    kv_tokens, chunk, chunks, group, left, right, inside, scale,
    ACT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, PACKED: tl.constexpr, SHARED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Grid as the forward: ``dQ = (dO Vᵀ ⊙ act'(S)) K · inside · outside``."""
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    h = tl.program_id(1)
    if HEADS is not None:
        h = tl.load(HEADS + h)
    start = tl.load(OFFSETS + sample)
    length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
    first = (tl.program_id(0) % chunks) * chunk
    if first >= length:
        return
    last = tl.minimum(first + chunk, length)
    s, kv_first, tokens = _key_set(sample, KV_OFFSETS, KV_INDEX, kv_tokens, PACKED, SHARED)
    q = Q + start * q_row + h * q_head
    grad = GRAD + start * g_row + h * g_head
    dq = DQ + start * dq_row + h * dq_head
    k = K + s * k_set + kv_first * k_row + (h // group) * k_head
    v = V + s * v_set + kv_first * v_row + (h // group) * v_head
    dtype = K.dtype.element_ty
    n = tl.arange(0, BLOCK_N)
    for m in range(first, last, BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        x_MD = _load_queries(q, q_row, rows, last, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS, start, h, NORM, D, BLOCK_D)
        q_MD = x_MD.to(dtype)
        grad_MD = load_rows(grad, g_row, rows, last, D, BLOCK_D)
        g_MD = grad_MD.to(dtype)
        dq_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        low = 0
        high = tokens
        if WINDOW:
            low = tl.maximum(m - left, 0) // BLOCK_N * BLOCK_N
            high = tl.minimum(m + BLOCK_M + right, tokens)
        for j in range(low, high, BLOCK_N):
            k_ND = load_rows(k, k_row, j + n, tokens, D, BLOCK_D)
            v_ND = load_rows(v, v_row, j + n, tokens, D, BLOCK_D)
            _, slope_MN = ACT(tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * inside)
            ds_MN = tl.dot(g_MD, tl.trans(v_ND), input_precision="ieee") * slope_MN
            if WINDOW:
                ds_MN = tl.where(_near(rows, j + n, left, right), ds_MN, 0.0)
            dq_MD += tl.dot(ds_MN.to(dtype), k_ND, input_precision="ieee")
        dq_MD = dq_MD * scale
        if NORM:
            dq_MD += grad_MD.to(tl.float32)
        store_rows(dq, dq_row, rows, last, dq_MD, D, BLOCK_D)


@triton.jit(do_not_specialize=_RUNTIME)
def _backward_kv(
    GRAD, Q, K, V, DQ, DK, DV, OFFSETS, KV_OFFSETS, ORDER, RANGES, HEADS, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS,
    g_row, g_head, q_row, q_head, k_set, k_row, k_head, v_set, v_row, v_head, dq_row, dq_head,
    dk_split, dk_set, dk_row, dk_head,
    kv_tokens, blocks, splits, group, left, right, inside, outside, scale,
    ACT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, PACKED: tl.constexpr, SHARED: tl.constexpr, NORM: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, WANT_Q: tl.constexpr,
):  # fmt: skip
    """Grid (sets · key blocks · splits, key heads): what a block of keys and values gets from all queries that see it.

    ``dV = Wᵀ dO · outside``, ``dK = dSᵀ Q · scale`` with ``dS = dO Vᵀ ⊙ act'(S)``, transposed throughout so that the
    products with dO and Q take their left side from registers. With WANT_Q (all keys in one block) also dQ.
    """
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits % blocks
    g = (tl.program_id(0) // splits // blocks).to(tl.int64)
    kv_head = tl.program_id(1)
    if HEADS is not None:
        kv_head = tl.load(HEADS + kv_head)
    kv_first = g * 0
    tokens = kv_tokens
    if PACKED:
        kv_first = tl.load(KV_OFFSETS + g)
        tokens = (tl.load(KV_OFFSETS + g + 1) - kv_first).to(tl.int32)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype = K.dtype.element_ty
    k_ND = load_rows(K + g * k_set + kv_first * k_row + kv_head * k_head, k_row, n, tokens, D, BLOCK_D)
    if WANT_K:
        v_ND = load_rows(V + g * v_set + kv_first * v_row + kv_head * v_head, v_row, n, tokens, D, BLOCK_D)
        dk_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if WANT_V:
        dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low = g
    high = g + 1
    if SHARED:
        low = tl.load(RANGES + g)
        high = tl.load(RANGES + g + 1)
    for i in range(low, high):
        sample = i
        if SHARED:
            sample = tl.load(ORDER + i)
        start = tl.load(OFFSETS + sample)
        length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
        first_row = 0
        last_row = length
        if WINDOW and not WANT_Q:
            first_row = tl.maximum(block * BLOCK_N - right, 0) // BLOCK_M * BLOCK_M
            last_row = tl.minimum((block + 1) * BLOCK_N + left, length)
        # Splits take turns over the query blocks, each sample beginning with the next one.
        turn = (split + i % splits) % splits
        for hh in range(group):
            h = kv_head * group + hh
            q = Q + start * q_row + h * q_head
            grad = GRAD + start * g_row + h * g_head
            for m in range(first_row + turn.to(tl.int32) * BLOCK_M, last_row, BLOCK_M * splits):
                rows = m + tl.arange(0, BLOCK_M)
                x_MD = _load_queries(
                    q, q_row, rows, length, MEAN, RSTD, NORM_WEIGHT, NORM_BIAS, start, h, NORM, D, BLOCK_D
                )
                q_MD = x_MD.to(dtype)
                grad_MD = load_rows(grad, g_row, rows, length, D, BLOCK_D)
                g_MD = grad_MD.to(dtype)
                w_NM, slope_NM = ACT(tl.dot(k_ND, tl.trans(q_MD), input_precision="ieee") * inside)
                if WINDOW:
                    near_NM = _near(n, rows, right, left)
                if WANT_V:
                    if WINDOW:
                        w_NM = tl.where(near_NM, w_NM, 0.0)
                    dv_ND += tl.dot(w_NM.to(dtype), g_MD, input_precision="ieee")
                if WANT_K:
                    ds_NM = tl.dot(v_ND, tl.trans(g_MD), input_precision="ieee") * slope_NM
                    if WINDOW:
                        ds_NM = tl.where(near_NM, ds_NM, 0.0)
                    ds = ds_NM.to(dtype)
                    dk_ND += tl.dot(ds, q_MD, input_precision="ieee")
                    if WANT_Q:
                        dq_MD = tl.dot(tl.trans(ds), k_ND, input_precision="ieee") * scale
                        if NORM:
                            dq_MD += grad_MD.to(tl.float32)
                        dq = DQ + start * dq_row + h * dq_head
                        store_rows(dq, dq_row, rows, length, dq_MD, D, BLOCK_D)
    place = split * dk_split + g * dk_set + kv_first * dk_row + kv_head * dk_head
    if WANT_K:
        store_rows(DK + place, dk_row, n, tokens, dk_ND * scale, D, BLOCK_D)
    if WANT_V:
        store_rows(DV + place, dk_row, n, tokens, dv_ND * outside, D, BLOCK_D)


@dataclass(frozen=True)
class Norm:
    """The layer norm that turns tokens into queries: statistics (N,) in float32, weight and bias (H · D,)."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor


@cache
def _head_list(heads: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(heads, dtype=torch.int32, device=device)


def _launches(names: Sequence[str], device: torch.device) -> list[tuple[str, Tensor | None, int]]:
    """One launch for each activation: its name, its heads (None = all) and their number."""
    chosen = dict.fromkeys(names)
    if len(chosen) == 1:
        return [(names[0], None, len(names))]
    heads = {name: tuple(h for h, other in enumerate(names) if other == name) for name in chosen}
    return [(name, _head_list(of, device), len(of)) for name, of in heads.items()]


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of set, row and head; packed keys and values have no sets."""
    *of_set, of_row, of_head, _ = x.stride()
    return (of_set[0] if of_set else 0), of_row, of_head


@dataclass(frozen=True)
class _Problem:
    """One call, prepared for launches."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    kv_offsets: Tensor | None
    kv_index: Tensor | None
    max_length: int
    kv_tokens: int
    names: Sequence[str]
    inside: float
    outside: float
    window: Sequence[int] | None
    norm: Norm | None

    @property
    def batch(self) -> int:
        return self.offsets.numel() - 1

    @property
    def sets(self) -> int:
        return self.k.shape[0] if self.kv_offsets is None else self.kv_offsets.numel() - 1

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[-2]

    @property
    def norm_arguments(self) -> tuple[Tensor | None, ...]:
        n = self.norm
        return (None,) * 4 if n is None else (n.mean, n.rstd, n.weight, n.bias)

    @property
    def edges(self) -> tuple[int, int]:
        return (0, 0) if self.window is None else (self.window[0], self.window[1])

    def flags(self, name: str, blocks: Blocks) -> dict[str, object]:
        """The compile-time arguments all kernels share."""
        width = self.q.shape[2]
        return {
            "ACT": triton_activation(name),
            "D": width,
            "BLOCK_D": max(triton.next_power_of_2(width), 16),
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "WINDOW": self.window is not None,
            "PACKED": self.kv_offsets is not None,
            "SHARED": self.kv_index is not None,
            "NORM": self.norm is not None,
            **blocks.options(triton_target()),
        }

    def blocks(self, kind: str) -> Blocks | None:
        """As configured, with no more key rows than there are keys."""
        kind += ", norm" if self.norm is not None else ", window" if self.window is not None else ""
        found = configuration(kind, triton_target(), self.q.shape[2], self.k.dtype)
        if found is None:
            return None
        return replace(found, n=min(found.n, max(triton.next_power_of_2(self.kv_tokens), self._least_n())))

    def _least_n(self) -> int:
        # The transposed products of the backward have the keys as their rows: wgmma takes 64 of them a warp group.
        if INTERPRETED or self.k.dtype == torch.float32:
            return 16
        return 64 if self.q.shape[2] <= 128 else 128

    def chunks(self, heads: int, rows: int) -> tuple[int, int]:
        """Into how many programs a sample's queries go, and how many queries each takes: the fewer, the more often
        its keys serve; but every multiprocessor wants some programs."""
        wanted = triton.cdiv(8 * multiprocessors(self.q.device), max(self.batch * heads, 1))
        count = max(1, min(wanted, triton.cdiv(self.max_length, rows)))
        chunk = triton.cdiv(triton.cdiv(self.max_length, count), rows) * rows
        return chunk, triton.cdiv(self.max_length, chunk)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    kv_offsets: Tensor | None,
    kv_index: Tensor | None,
    max_length: int,
    kv_tokens: int,
    names: Sequence[str],
    inside: float,
    outside: float,
    window: Sequence[int] | None,
    norm: Norm | None = None,
) -> Tensor:
    """See :func:`kernels.gdpa.gdpa`. With ``norm``, q are tokens: ``GDPA(LN(q)) + LN(q)``."""
    q, k, v = contiguous_rows(q, k, v)
    out = q.new_empty(q.shape)
    p = _Problem(q, k, v, offsets, kv_offsets, kv_index, max_length, kv_tokens, names, inside, outside, window, norm)
    if out.numel() == 0:
        return out
    blocks = p.blocks("forward")
    assert blocks is not None
    resident = window is None and kv_tokens <= blocks.n
    if not resident:
        blocks = p.blocks("stream")
        assert blocks is not None
    with on_device_of(q):
        for name, heads, count in _launches(names, q.device):
            chunk, chunks = p.chunks(count, blocks.m)
            _forward[(p.batch * chunks, count)](
                *(q, k, v, out, offsets, kv_offsets, kv_index, heads, *p.norm_arguments),
                *(*q.stride()[:2], *_strides(k), *_strides(v), *out.stride()[:2]),
                *(kv_tokens, chunk, chunks, p.group, *p.edges, inside, outside),
                RESIDENT=resident,
                **p.flags(name, blocks),
            )
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    kv_offsets: Tensor | None,
    kv_index: Tensor | None,
    max_length: int,
    kv_tokens: int,
    names: Sequence[str],
    inside: float,
    outside: float,
    window: Sequence[int] | None,
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (with ``norm``: of LN(q), the ``+ LN(q)`` included), k and v."""
    grad, q, k, v = contiguous_rows(grad, q, k, v)
    group = q.shape[1] // k.shape[-2]
    if group > 1 and len(set(names)) > 1:
        # A launch has one activation, and all heads that share a key must be in it: give each head keys of its own.
        own_k, own_v = (x.repeat_interleave(group, dim=-2) for x in (k, v))
        dq, dk, dv = backward(
            *(grad, q, own_k, own_v, offsets, kv_offsets, kv_index, max_length, kv_tokens),
            *(names, inside, outside, window, norm),
        )
        return dq, *(x.unflatten(-2, (-1, group)).float().sum(-2).to(k.dtype) for x in (dk, dv))
    p = _Problem(q, k, v, offsets, kv_offsets, kv_index, max_length, kv_tokens, names, inside, outside, window, norm)
    dq = q.new_empty(q.shape)
    if q.numel() == 0 or k.numel() == 0:
        if norm is not None:
            dq.copy_(grad)
        return dq if norm is not None else dq.zero_(), torch.zeros_like(k), torch.zeros_like(v)
    dk, dv = k, v  # every plan writes both
    with on_device_of(q):
        for wanted, blocks in _plan(p):
            if wanted == "q":
                _launch_q(p, grad, dq, blocks)
                continue
            new_k, new_v = _launch_kv(p, grad, dq, blocks, wanted)
            dk, dv = new_k if "k" in wanted else dk, new_v if "v" in wanted else dv
    return dq, dk, dv


def _plan(p: _Problem) -> list[tuple[str, Blocks]]:
    """The launches of a backward: the first of the plans that the chip has room for."""
    for plan in PLANS:
        chosen = [(wanted, blocks) for wanted in plan if (blocks := p.blocks(wanted)) is not None]
        whole = all(p.kv_tokens <= blocks.n for wanted, blocks in chosen if "q" in wanted and len(wanted) > 1)
        if len(chosen) == len(plan) and whole:
            return chosen
    raise AssertionError("the last plan fits every chip")


def _launch_q(p: _Problem, grad: Tensor, dq: Tensor, blocks: Blocks) -> None:
    for name, heads, count in _launches(p.names, p.q.device):
        chunk, chunks = p.chunks(count, blocks.m)
        _backward_q[(p.batch * chunks, count)](
            *(grad, p.q, p.k, p.v, dq, p.offsets, p.kv_offsets, p.kv_index, heads, *p.norm_arguments),
            *(*grad.stride()[:2], *p.q.stride()[:2], *_strides(p.k), *_strides(p.v), *dq.stride()[:2]),
            *(p.kv_tokens, chunk, chunks, p.group, *p.edges, p.inside, p.inside * p.outside),
            **p.flags(name, blocks),
        )


def _launch_kv(p: _Problem, grad: Tensor, dq: Tensor, blocks: Blocks, wanted: str) -> tuple[Tensor, Tensor]:
    """The gradients of k and v (empty where not ``wanted``), each summed over splits in a fixed order."""
    count = triton.cdiv(p.kv_tokens, blocks.n)
    heads_kv = p.k.shape[-2]
    programs = p.sets * count * heads_kv
    work = triton.cdiv(p.max_length, blocks.m) * triton.cdiv(p.batch, p.sets)
    splits = max(1, min(triton.cdiv(2 * multiprocessors(p.q.device), programs), work))
    parts = [_parts(x, splits, name in wanted) for name, x in (("k", p.k), ("v", p.v))]
    order = ranges = None
    if p.kv_index is not None:
        order = torch.argsort(p.kv_index, stable=True)
        ranges = torch.searchsorted(p.kv_index[order], torch.arange(p.sets + 1, device=p.q.device))
    for name, heads, heads_here in _launches(p.names[:: p.group], p.q.device):
        _backward_kv[(p.sets * count * splits, heads_here)](
            *(grad, p.q, p.k, p.v, dq, *parts, p.offsets, p.kv_offsets, order, ranges, heads, *p.norm_arguments),
            *(*grad.stride()[:2], *p.q.stride()[:2], *_strides(p.k), *_strides(p.v), *dq.stride()[:2]),
            *(p.k.numel(), *_strides(torch.empty(p.k.shape, device="meta"))),
            *(p.kv_tokens, count, splits, p.group, *p.edges, p.inside, p.outside, p.inside * p.outside),
            WANT_K="k" in wanted,
            WANT_V="v" in wanted,
            WANT_Q="q" in wanted,
            **p.flags(name, blocks),
        )
    return tuple(x if splits == 1 else x.sum(0).to(p.k.dtype) for x in parts)  # type: ignore[return-value]


def _parts(x: Tensor, splits: int, wanted: bool) -> Tensor:
    """Where the gradient of ``x`` goes: itself, or one float32 slice for each split."""
    if not wanted:
        return x.new_empty(0)
    return x.new_empty(x.shape) if splits == 1 else x.new_empty((splits, *x.shape), dtype=torch.float32)
