"""Seed attention in Triton: ``softmax(seeds kᵀ · scale) v`` of each packed sequence, forward and backward.

The keys are turned (ROTE) as they are loaded, and their gradient is turned back as it is stored: a head is then read
and multiplied as its two halves, whose scores add up. Long sequences are split over programs when the samples alone do
not fill the chip. Nothing is summed by atomics: the seeds' gradient, a sum over all tokens, is made in two stages.

Legend: S seeds of a block · N keys of a block · D head width · P width of a part: half a head if it is turned, else D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backends import contiguous_rows, multiprocessors, on_device_of, triton_target
from kernels.rote import triton as rote
from kernels.tiles import (
    LOG2_E,
    NOWHERE,
    dot_parts,
    head_sizes,
    load_parts,
    load_rows,
    load_turned,
    row_dot,
    store_rows,
    store_turned_back,
)


@triton.jit(do_not_specialize=["splits"])
def _forward(
    SEEDS, K, V, COS, SIN, OFFSETS, OUT, LSE,
    seed_row, seed_head, k_row, k_head, v_row, v_head, S, H, batch_rows, splits, exponent,
    ROTATE: tl.constexpr, SPLIT: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (samples · heads · splits · seed blocks): one part of a sequence for a block of seeds of one head.

    OUT (B, S, H, D) and LSE (B, S, H); with SPLIT float32 (splits, B, S, H, D) and the logarithm to base 2
    (splits, B, S, H).
    """
    blocks = tl.cdiv(S, BLOCK_S)
    program = tl.program_id(0)
    s = (program % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    program = program // blocks
    split = program % splits
    program = program // splits
    h = program % H
    sample = (program // H).to(tl.int64)
    start = tl.load(OFFSETS + sample)
    length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
    size = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    first = split * size
    last = tl.minimum(first + size, length)
    k = K + start * k_row + h.to(tl.int64) * k_head
    v = V + start * v_row + h.to(tl.int64) * v_head
    cos = COS
    sin = SIN
    if ROTATE:
        cos = COS + start * PART
        sin = SIN + start * PART
    seeds = SEEDS + h.to(tl.int64) * seed_head
    q1_SP, q2_SP = load_parts(seeds, seed_row, s, S, ROTATE, PART, BLOCK_P)
    top_S = tl.full([BLOCK_S], NOWHERE, tl.float32)
    sum_S = tl.zeros([BLOCK_S], tl.float32)
    out_SD = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for n in range(first, last, BLOCK_N):
        rows = n + tl.arange(0, BLOCK_N)
        k1_NP, k2_NP = load_turned(k, k_row, cos, sin, rows, last, ROTATE, PART, BLOCK_P)
        v_ND = load_rows(v, v_row, rows, last, D, BLOCK_D)
        w_SN = tl.where((rows < last)[None, :], dot_parts(q1_SP, q2_SP, k1_NP, k2_NP, ROTATE), NOWHERE)
        high_S = tl.maximum(top_S, tl.max(w_SN, 1) * exponent)
        w_SN = tl.exp2(w_SN * exponent - high_S[:, None])
        shrink_S = tl.exp2(top_S - high_S)
        sum_S = sum_S * shrink_S + tl.sum(w_SN, 1)
        out_SD = tl.dot(w_SN.to(v_ND.dtype), v_ND, out_SD * shrink_S[:, None], input_precision="ieee")
        top_S = high_S
    something = sum_S > 0
    sum_S = tl.where(something, sum_S, 1.0)
    out_SD = out_SD / sum_S[:, None]
    lse_S = top_S + tl.log2(sum_S)
    if SPLIT:
        sample += split.to(tl.int64) * batch_rows
    else:
        lse_S = tl.where(something, lse_S / LOG2_E, 0.0)
    out_row = sample * S * H + h
    tl.store(LSE + out_row + s * H, lse_S, mask=s < S)
    store_rows(OUT + out_row * D, H * D, s, S, out_SD, D, BLOCK_D)


@triton.jit(do_not_specialize=["rows", "splits"])
def _join(
    PARTS, PART_LSE, OUT, LSE, rows, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks): the splits of R rows (sample, seed, head), weighted by their share of the softmax's sum."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    top_R = tl.full([BLOCK_R], NOWHERE, tl.float32)
    sum_R = tl.zeros([BLOCK_R], tl.float32)
    out_RD = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for _ in range(splits):
        lse_R = tl.load(PART_LSE + r, mask=r < rows, other=NOWHERE)
        part_RD = load_rows(PARTS, D, r, rows, D, BLOCK_D)
        high_R = tl.maximum(top_R, lse_R)
        shrink_R = tl.exp2(top_R - high_R)
        w_R = tl.exp2(lse_R - high_R)
        sum_R = sum_R * shrink_R + w_R
        out_RD = out_RD * shrink_R[:, None] + part_RD * w_R[:, None]
        top_R = high_R
        PARTS += rows.to(tl.int64) * D
        PART_LSE += rows
    lse_R = tl.where(top_R > NOWHERE, (top_R + tl.log2(sum_R)) / LOG2_E, 0.0)
    tl.store(LSE + r, lse_R, mask=r < rows)
    store_rows(OUT, D, r, rows, out_RD / sum_R[:, None], D, BLOCK_D)


@triton.jit(do_not_specialize=["blocks"])
def _backward_keys(
    GRAD, SEEDS, K, V, COS, SIN, OFFSETS, LSE, MEAN, DK, DV,
    seed_row, seed_head, k_row, k_head, v_row, v_head, S, H, blocks, scale, exponent,
    ROTATE: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (samples · heads · key blocks): ``dv = wᵀ grad``, ``dk = (w (grad vᵀ − mean))ᵀ seeds · scale``, turned back.

    A padded seed has a gradient of zeros and adds nothing; a padded key spoils only its own row, which is not stored.
    """
    program = tl.program_id(0)
    first = (program % blocks) * BLOCK_N
    program = program // blocks
    h = program % H
    sample = (program // H).to(tl.int64)
    start = tl.load(OFFSETS + sample)
    length = (tl.load(OFFSETS + sample + 1) - start).to(tl.int32)
    if first >= length:
        return
    n = first + tl.arange(0, BLOCK_N)
    cos = COS
    sin = SIN
    if ROTATE:
        cos = COS + start * PART
        sin = SIN + start * PART
    k = K + start * k_row + h.to(tl.int64) * k_head
    k1_NP, k2_NP = load_turned(k, k_row, cos, sin, n, length, ROTATE, PART, BLOCK_P)
    v_ND = load_rows(V + start * v_row + h.to(tl.int64) * v_head, v_row, n, length, D, BLOCK_D)
    seeds = SEEDS + h.to(tl.int64) * seed_head
    rows = sample * S * H + h
    dk1_NP = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    dk2_NP = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for m in range(0, S, BLOCK_S):
        s = m + tl.arange(0, BLOCK_S)
        q1_SP, q2_SP = load_parts(seeds, seed_row, s, S, ROTATE, PART, BLOCK_P)
        grad_SD = load_rows(GRAD + rows * D, H * D, s, S, D, BLOCK_D)
        lse_S = tl.load(LSE + rows + s * H, mask=s < S, other=0.0) * LOG2_E
        mean_S = tl.load(MEAN + rows + s * H, mask=s < S, other=0.0)
        w_NS = tl.exp2(dot_parts(k1_NP, k2_NP, q1_SP, q2_SP, ROTATE) * exponent - lse_S[None, :])
        dv_ND = tl.dot(w_NS.to(grad_SD.dtype), grad_SD, dv_ND, input_precision="ieee")
        dw_NS = tl.dot(v_ND, tl.trans(grad_SD), input_precision="ieee")
        ds_NS = (w_NS * (dw_NS - mean_S[None, :])).to(q1_SP.dtype)
        dk1_NP = tl.dot(ds_NS, q1_SP, dk1_NP, input_precision="ieee")
        if ROTATE:
            dk2_NP = tl.dot(ds_NS, q2_SP, dk2_NP, input_precision="ieee")
    dk1_NP *= scale
    dk = DK + (start * H + h) * D
    store_turned_back(dk, H * D, cos, sin, n, length, dk1_NP, dk2_NP * scale, ROTATE, PART, BLOCK_P)
    store_rows(DV + (start * H + h) * D, H * D, n, length, dv_ND, D, BLOCK_D)


@triton.jit(do_not_specialize=["batch", "chunk"])
def _backward_seeds(
    GRAD, SEEDS, K, V, COS, SIN, OFFSETS, LSE, MEAN, DSEEDS,
    seed_row, seed_head, k_row, k_head, v_row, v_head, S, H, batch, chunk, scale, exponent,
    ROTATE: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (chunks · heads · seed blocks): ``dseeds = Σ w (grad vᵀ − mean) k · scale`` over a range of packed tokens.

    DSEEDS (chunks, S, H, D) float32. A chunk of ``chunk`` tokens is walked in order, across the samples it touches.
    """
    blocks = tl.cdiv(S, BLOCK_S)
    program = tl.program_id(0)
    s = (program % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    program = program // blocks
    h = program % H
    c = (program // H).to(tl.int64)
    k = K + h.to(tl.int64) * k_head
    v = V + h.to(tl.int64) * v_head
    q1_SP, q2_SP = load_parts(SEEDS + h.to(tl.int64) * seed_head, seed_row, s, S, ROTATE, PART, BLOCK_P)
    dseeds1_SP = tl.zeros([BLOCK_S, BLOCK_P], tl.float32)
    dseeds2_SP = tl.zeros([BLOCK_S, BLOCK_P], tl.float32)
    token = c * chunk
    last = tl.minimum(token + chunk, tl.load(OFFSETS + batch))
    # The sample that the first token belongs to is the last that does not start after it.
    sample = token * 0
    above = sample + batch
    while above - sample > 1:
        middle = (sample + above) // 2
        before = tl.load(OFFSETS + middle) <= token
        sample = tl.where(before, middle, sample)
        above = tl.where(before, above, middle)
    while token < last:
        end = tl.minimum(tl.load(OFFSETS + sample + 1), last)
        length = (end - token).to(tl.int32)
        rows = sample * S * H + h
        grad_SD = load_rows(GRAD + rows * D, H * D, s, S, D, BLOCK_D)
        lse_S = tl.load(LSE + rows + s * H, mask=s < S, other=0.0) * LOG2_E
        mean_S = tl.load(MEAN + rows + s * H, mask=s < S, other=0.0)
        cos = COS
        sin = SIN
        if ROTATE:
            cos = COS + token * PART
            sin = SIN + token * PART
        for first in range(0, length, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            k1_NP, k2_NP = load_turned(k + token * k_row, k_row, cos, sin, n, length, ROTATE, PART, BLOCK_P)
            v_ND = load_rows(v + token * v_row, v_row, n, length, D, BLOCK_D)
            e_SN = dot_parts(q1_SP, q2_SP, k1_NP, k2_NP, ROTATE) * exponent - lse_S[:, None]
            w_SN = tl.exp2(tl.where((n < length)[None, :], e_SN, NOWHERE))
            dw_SN = tl.dot(grad_SD, tl.trans(v_ND), input_precision="ieee")
            ds_SN = (w_SN * (dw_SN - mean_S[:, None])).to(k1_NP.dtype)
            dseeds1_SP = tl.dot(ds_SN, k1_NP, dseeds1_SP, input_precision="ieee")
            if ROTATE:
                dseeds2_SP = tl.dot(ds_SN, k2_NP, dseeds2_SP, input_precision="ieee")
        token = end
        sample += 1
    dseeds = DSEEDS + (c * S * H + h) * D
    store_rows(dseeds, H * D, s, S, dseeds1_SP * scale, PART, BLOCK_P)
    if ROTATE:
        store_rows(dseeds + PART, H * D, s, S, dseeds2_SP * scale, PART, BLOCK_P)


@dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel: seeds and keys of a block, and how Triton runs it."""

    seeds: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Configuration:
    """The blocks of each kernel, and how the work is cut.

    widest_turned: wider heads are turned by a kernel of their own, as their halves do not fit in registers here ·
    programs: per multiprocessor, what the forward splits sequences for and the gradient of the seeds is cut into ·
    split: tokens below which a sequence is not split further.
    """

    forward: Blocks
    keys: Blocks
    seeds: Blocks
    widest_turned: int
    programs: int = 2
    split: int = 256


def configuration(target: str, width: int, dtype: torch.dtype, seeds: int) -> Configuration:
    """By chip, head width, dtype and number of seeds; chosen by what the compiler says, on sm_90 without spills."""
    if target == "interpreter":
        small = Blocks(16, 16, 4, 1)
        return Configuration(small, small, small, widest_turned=32, split=32)
    few = min(max(triton.next_power_of_2(seeds), 16), 32)
    if dtype == torch.float32:
        block = Blocks(32, 32, 4, 2) if width <= 64 else Blocks(32, 32, 8, 2) if width <= 128 else Blocks(16, 16, 8, 1)
        return Configuration(block, block, Blocks(32, 16, 4, 2) if width <= 64 else block, widest_turned=64)
    if target in ("sm_90", "sm_100", "sm_103"):
        return _warpgroups(target, width, seeds, few)
    rows, warps = (32, 2) if seeds <= 32 else (64, 4)
    if width <= 64:
        return Configuration(Blocks(rows, 64, warps, 2), Blocks(few, 64, 4, 2), Blocks(rows, 32, warps, 2), 64)
    if width <= 128:
        return Configuration(Blocks(rows, 32, warps, 2), Blocks(few, 64, 4, 2), Blocks(rows, 32, 4, 2), 64)
    if target != "sm_80":  # less shared memory
        return Configuration(Blocks(64, 32, 8, 2), Blocks(16, 64, 8, 1), Blocks(64, 16, 8, 1), 64)
    return Configuration(Blocks(64, 32, 8, 2), Blocks(few, 64, 8, 2), Blocks(64, 32, 8, 2), 64)


def _warpgroups(target: str, width: int, seeds: int, few: int) -> Configuration:
    """Four warps multiply together (wgmma, tcgen05), at least 64 rows: seeds, or keys where keys are the rows."""
    if width <= 32:
        rows, warps = (128, 8) if seeds > 64 else (64, 4)
        return Configuration(Blocks(rows, 64, warps, 3), Blocks(few, 128, 8, 2), Blocks(rows, 64, warps, 2), 128)
    if width <= 64:
        return Configuration(Blocks(64, 64, 4, 2), Blocks(few, 64, 4, 2), Blocks(64, 32, 4, 2), 128)
    if width <= 128:
        return Configuration(
            Blocks(64, 64, 4, 2), Blocks(16, 64, 4, 2), Blocks(64, 32, 4 if target == "sm_90" else 8, 2), 128
        )
    last = Blocks(64, 32, 8, 2 if target == "sm_90" else 1)
    return Configuration(Blocks(64, 32, 8, 2), Blocks(few, 64, 8, 2), last, 128)


def _launch(blocks: Blocks) -> dict[str, int]:
    return {"BLOCK_S": blocks.seeds, "BLOCK_N": blocks.keys, "num_warps": blocks.warps, "num_stages": blocks.stages}


def forward(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    max_length: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, D) and the logarithm of the sum of exponentials (B, S, H) float32."""
    count, heads, width = seeds.shape
    batch = offsets.numel() - 1
    out = seeds.new_empty(batch, count, heads, width)
    lse = seeds.new_empty(batch, count, heads, dtype=torch.float32)
    if not out.numel():
        return out, lse
    seeds, k, v = contiguous_rows(seeds, k, v)
    with on_device_of(seeds):
        chosen = configuration(triton_target(), width, seeds.dtype, count)
        (k,), cos, sin = rote.turn_wide(chosen.widest_turned, cos, sin, k)
        programs = batch * heads * triton.cdiv(count, chosen.forward.seeds)
        # From shapes only: who reads lengths waits for the GPU.
        enough = chosen.programs * multiprocessors(seeds.device) // programs
        splits = max(min(enough, max_length // chosen.split), 1)
        parts, part_lse = out, lse
        if splits > 1:
            parts = out.new_empty(splits, *out.shape, dtype=torch.float32)
            part_lse = lse.new_empty(splits, *lse.shape)
        shared = head_sizes(width, cos is not None)
        _forward[(programs * splits,)](
            *(seeds, k, v, cos, sin, offsets.contiguous(), parts, part_lse),
            *(*seeds.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *(count, heads, batch, splits, scale * LOG2_E.value),
            SPLIT=splits > 1,
            **shared,
            **_launch(chosen.forward),
        )
        if splits > 1:
            rows, block = lse.numel(), max(2048 // shared["BLOCK_D"], 1)
            _join[(triton.cdiv(rows, block),)](
                *(parts, part_lse, out, lse, rows, splits), D=width, BLOCK_D=shared["BLOCK_D"], BLOCK_R=block
            )
    return out, lse


def backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of seeds, k (before it was turned) and v."""
    count, heads, width = seeds.shape
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    if not (dk.numel() and count):
        return seeds.new_zeros(seeds.shape), dk.zero_(), dv.zero_()
    seeds, k, v = contiguous_rows(seeds, k, v)
    offsets, grad, out, lse = offsets.contiguous(), grad.contiguous(), out.contiguous(), lse.contiguous()
    batch, tokens = offsets.numel() - 1, k.shape[0]
    with on_device_of(seeds):
        chosen = configuration(triton_target(), width, seeds.dtype, count)
        (turned,), here_cos, here_sin = rote.turn_wide(chosen.widest_turned, cos, sin, k)
        shared = head_sizes(width, here_cos is not None)
        mean = row_dot(grad, out)
        inputs = (grad, seeds, turned, v, here_cos, here_sin, offsets, lse, mean)
        shape = (*seeds.stride()[:2], *turned.stride()[:2], *v.stride()[:2], count, heads)
        numbers = (scale, scale * LOG2_E.value)
        blocks = triton.cdiv(max_length, chosen.keys.keys)
        _backward_keys[(batch * heads * blocks,)](
            *inputs, dk, dv, *shape, blocks, *numbers, **shared, **_launch(chosen.keys)
        )
        each = heads * triton.cdiv(count, chosen.seeds.seeds)
        chunks = max(chosen.programs * multiprocessors(seeds.device) // each, 1)
        chunk = max(triton.cdiv(tokens, chunks), chosen.seeds.keys)
        chunks = triton.cdiv(tokens, chunk)
        parts = seeds.new_empty(chunks, *seeds.shape, dtype=torch.float32)
        _backward_seeds[(chunks * each,)](
            *inputs, parts, *shape, batch, chunk, *numbers, **shared, **_launch(chosen.seeds)
        )
        if cos is not None and sin is not None and here_cos is None:
            dk = rote.forward(dk, cos, -sin)
    return parts.sum(0).to(seeds.dtype), dk, dv
