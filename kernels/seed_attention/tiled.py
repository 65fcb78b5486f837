"""Seed attention on the torch backend: the scores of one piece at a time; the backward makes them again.

Scores, their sums and products are in float32 (float64 for float64 input).
Legend: S seeds · b sequences of a piece, P positions of one block of it · H heads, G of them at once · D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.packed import Piece, pieces_of
from kernels.rote import tiled as rote

# Scores that are made at once, in bytes: with their temporaries they stay in a core's caches.
PIECE_BYTES = 1 << 19
# The score of a slot that is not there: its weight is 0, and unlike -inf it never makes a NaN.
NOWHERE = -1e30
# Powers of two, as torch's exp2 is several times as fast as its exp.
LOG2_E = math.log2(math.e)


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
    """Output (B, S, H, D) and the logarithm of the sum of exponentials (B, S, H)."""
    if cos is not None and sin is not None:
        k = rote.forward(k, cos, sin)
    dtype = torch.promote_types(seeds.dtype, torch.float32)
    seeds_HSD = seeds.to(dtype).transpose(0, 1) * (scale * LOG2_E)
    batch = offsets.numel() - 1
    out = seeds.new_zeros(batch, *seeds.shape)
    lse = seeds.new_zeros(batch, *seeds.shape[:2], dtype=dtype)
    for piece, blocks, groups in _pieces(seeds_HSD, offsets):
        k_bPHD, v_bPHD, nowhere_bP = piece.pad(k).to(dtype), piece.pad(v).to(dtype), _nowhere(piece, dtype)
        samples = piece.samples.numel()
        out_bSHD, lse_bSH = out.new_empty(samples, *out.shape[1:]), lse.new_empty(samples, *lse.shape[1:])
        for heads in groups:
            top_GSb1 = total_GSb1 = out_GbSD = out.new_empty(0)
            for i, block in enumerate(blocks):
                w_GSbP = _scores(seeds_HSD[heads], k_bPHD[:, block, heads], nowhere_bP, block)
                high_GSb1 = w_GSbP.amax(-1, keepdim=True)
                if i > 0:
                    high_GSb1 = torch.maximum(high_GSb1, top_GSb1)
                w_GSbP.sub_(high_GSb1).exp2_()
                sum_GSb1 = w_GSbP.sum(-1, keepdim=True)
                value_GbSD = _each_head(w_GSbP.transpose(1, 2), v_bPHD[:, block, heads].permute(2, 0, 1, 3))
                if i > 0:
                    shrink_GSb1 = (top_GSb1 - high_GSb1).exp2_()
                    sum_GSb1 += total_GSb1 * shrink_GSb1
                    value_GbSD += out_GbSD * shrink_GSb1.transpose(1, 2)
                top_GSb1, total_GSb1, out_GbSD = high_GSb1, sum_GSb1, value_GbSD
            out_bSHD[:, :, heads] = out_GbSD.div_(total_GSb1.transpose(1, 2)).permute(1, 2, 0, 3)
            lse_bSH[:, :, heads] = total_GSb1.log2_().add_(top_GSb1).div_(LOG2_E).squeeze(3).permute(2, 1, 0)
        out.index_copy_(0, piece.samples, out_bSHD)
        lse.index_copy_(0, piece.samples, lse_bSH)
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
    """The gradients of seeds, k and v."""
    if cos is not None and sin is not None:
        k = rote.forward(k, cos, sin)
    dtype = torch.promote_types(seeds.dtype, torch.float32)
    seeds_HSD = seeds.to(dtype).transpose(0, 1) * scale
    exponents_HSD = seeds_HSD * LOG2_E
    dseeds_HSD = seeds_HSD.new_zeros(seeds_HSD.shape)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    for piece, blocks, groups in _pieces(seeds_HSD, offsets):
        k_bPHD, v_bPHD, nowhere_bP = piece.pad(k).to(dtype), piece.pad(v).to(dtype), _nowhere(piece, dtype)
        grad_bSHD = grad.index_select(0, piece.samples).to(dtype)
        # The softmax takes from every gradient of a weight their mean, Σ_d grad · out.
        mean_bSH = torch.linalg.vecdot(grad_bSHD, out.index_select(0, piece.samples).to(dtype))
        mean_HSb1 = mean_bSH.permute(2, 1, 0)[..., None]
        lse_HSb1 = (lse.index_select(0, piece.samples) * LOG2_E).permute(2, 1, 0)[..., None]
        grad_HbSD = grad_bSHD.permute(2, 0, 1, 3)
        dk_bPHD, dv_bPHD = k_bPHD.new_empty(k_bPHD.shape), v_bPHD.new_empty(v_bPHD.shape)
        for heads in groups:
            for block in blocks:
                k_bPGD, v_GbDP = k_bPHD[:, block, heads], v_bPHD[:, block, heads].permute(2, 0, 3, 1)
                w_GSbP = _scores(exponents_HSD[heads], k_bPGD, nowhere_bP, block).sub_(lse_HSb1[heads]).exp2_()
                dv_GbPD = _each_head(w_GSbP.permute(0, 2, 3, 1), grad_HbSD[heads])
                dv_bPHD[:, block, heads] = dv_GbPD.permute(1, 2, 0, 3)
                dw_GbSP = _each_head(grad_HbSD[heads], v_GbDP)
                ds_GSbP = w_GSbP.mul_(dw_GbSP.transpose(1, 2).sub_(mean_HSb1[heads]))
                ds_GSn = ds_GSbP.flatten(2)
                dk_GnD = torch.bmm(ds_GSn.transpose(1, 2), seeds_HSD[heads])
                dk_bPHD[:, block, heads] = dk_GnD.unflatten(1, k_bPGD.shape[:2]).permute(1, 2, 0, 3)
                dseeds_HSD[heads].baddbmm_(ds_GSn, k_bPGD.flatten(0, 1).transpose(0, 1))
        piece.write(dk, dk_bPHD.to(k.dtype))
        piece.write(dv, dv_bPHD.to(v.dtype))
    if cos is not None and sin is not None:
        dk = rote.forward(dk, cos, -sin)
    return (dseeds_HSD * scale).transpose(0, 1).to(seeds.dtype, memory_format=torch.contiguous_format), dk, dv


def _pieces(seeds_HSD: Tensor, offsets: Tensor) -> Iterator[tuple[Piece, list[slice], list[slice]]]:
    """The pieces, and for each the slices of its positions and of the heads whose scores are made at once."""
    heads, count, _ = seeds_HSD.shape
    places = max(PIECE_BYTES // (seeds_HSD.element_size() * max(count, 1)), 16)
    for piece in pieces_of(offsets, places):
        group = max(places // piece.mask.numel(), 1)
        yield piece, _slices(piece.length, places), _slices(heads, group)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _nowhere(piece: Piece, dtype: torch.dtype) -> Tensor | None:
    """(b, P): what is added to the scores, so that padding weighs nothing."""
    if piece.span is not None:
        return None
    return torch.zeros(piece.mask.shape, dtype=dtype, device=piece.mask.device).masked_fill_(~piece.mask, NOWHERE)


def _scores(seeds_GSD: Tensor, k_bPGD: Tensor, nowhere_bP: Tensor | None, block: slice) -> Tensor:
    """(G, S, b, P), as one product per head: the seeds are the same for all sequences."""
    s_GSn = torch.bmm(seeds_GSD, k_bPGD.flatten(0, 1).permute(1, 2, 0))
    s_GSbP = s_GSn.unflatten(2, k_bPGD.shape[:2])
    return s_GSbP if nowhere_bP is None else s_GSbP.add_(nowhere_bP[:, block])


def _each_head(left_Gbij: Tensor, right_Gbjk: Tensor) -> Tensor:
    """``left @ right``, head by head: ``@`` of these strided views would first copy them."""
    product = left_Gbij.new_empty(*left_Gbij.shape[:3], right_Gbjk.shape[3])
    for left_bij, right_bjk, out in zip(left_Gbij, right_Gbjk, product, strict=True):
        torch.bmm(left_bij, right_bjk, out=out)
    return product
