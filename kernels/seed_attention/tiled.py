"""Seed attention on the torch backend: a few sequences at a time; the backward makes their scores again.

On a CPU torch's own attention kernel does them, but for the shortest, which are faster as plain batched products; on
other devices all are. Pieces hold sequences of similar length.
Computed in float32 (float64 for float64 input).
Legend: S seeds · b sequences of a piece, P its padded length, n = b · P · H heads, x = H · b · D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backends import contiguous_rows
from kernels.packed import Piece, pieces_of

# Keys of one piece in bytes, so that all that is made of them stays in a core's caches; more of them if a batch would
# fall into too many pieces.
PIECE_BYTES = 9 << 14
PIECES = 16
# Scores of a head and sequence from which torch's kernel is faster; below, the cost of each call in it dominates.
FUSED_SCORES = 512

# What scaled_dot_product_attention runs on a CPU. The public function keeps no log-sum-exp for a backward of our own.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, D), k being rotated already, and the logarithm of the sum of exponentials (B, S, H).

    The latter only where torch's kernel ran: its backward wants it.
    """
    seeds_HSD, k, v = _prepared(seeds, k, v, scale)
    out = seeds.new_zeros(offsets.numel() - 1, *seeds.shape)
    lse = seeds_HSD.new_zeros(out.shape[:3])
    for piece in _pieces(offsets, seeds_HSD, k):
        if _fused(piece, seeds_HSD):
            out_bSHD, lse_bSH = _fused_forward(piece, seeds_HSD, k, v)
            lse.index_copy_(0, piece.samples, lse_bSH)
        else:
            out_bSHD = _plain_forward(piece, seeds_HSD, k, v)
        out.index_copy_(0, piece.samples, out_bSHD.to(out.dtype))
    return out, lse


def backward(
    grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of seeds, k and v."""
    seeds_HSD, k, v = _prepared(seeds, k, v, scale)
    dseeds_HSD = torch.zeros_like(seeds_HSD)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    for piece in _pieces(offsets, seeds_HSD, k):
        if _fused(piece, seeds_HSD):
            part_HSD, dk_bPHD, dv_bPHD = _fused_backward(piece, grad, seeds_HSD, k, v, out, lse)
        else:
            part_HSD, dk_bPHD, dv_bPHD = _plain_backward(piece, grad, seeds_HSD, k, v)
        dseeds_HSD += part_HSD
        piece.write(dk, dk_bPHD.to(dk.dtype))
        piece.write(dv, dv_bPHD.contiguous().to(dv.dtype))
        del dk_bPHD, dv_bPHD  # not beside those of the next piece
    return (dseeds_HSD * scale).transpose(0, 1).to(seeds.dtype), dk, dv


def _prepared(seeds: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Seeds (H, S, D) times ``scale``, k and v; the elements of a head side by side: torch's kernel assumes it."""
    seeds_HSD = (_in_float(seeds) * scale).contiguous().transpose(0, 1)
    k, v = contiguous_rows(k, v)
    return seeds_HSD, k, v


def _in_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pieces(offsets: Tensor, seeds_HSD: Tensor, k: Tensor) -> list[Piece]:
    token = seeds_HSD[:, 0].numel() * seeds_HSD.element_size()
    return pieces_of(offsets, max(PIECE_BYTES // token, k.shape[0] // PIECES))


def _fused(piece: Piece, seeds_HSD: Tensor) -> bool:
    return seeds_HSD.device.type == "cpu" and seeds_HSD.shape[1] * piece.length >= FUSED_SCORES


def _padded(piece: Piece, x: Tensor) -> Tensor:
    return _in_float(piece.pad(x))


def _samples(piece: Piece, x: Tensor) -> Tensor:
    return _in_float(x.index_select(0, piece.samples))


def _mask(piece: Piece, like: Tensor) -> Tensor | None:
    """(b, P) to be added to the scores: 0, and -inf on padding."""
    return None if piece.span is not None else piece.mask.log().to(like.dtype)


def _fused_inputs(
    piece: Piece, seeds_HSD: Tensor, k: Tensor, v: Tensor
) -> tuple[tuple[Tensor, ...], dict[str, Tensor | float | None]]:
    """Queries, keys and values (b, H, …, D) of torch's kernel, and its options."""
    mask_bP = _mask(piece, seeds_HSD)
    mask_b11P = None if mask_bP is None else mask_bP[:, None, None]
    q_bHSD = seeds_HSD.expand(piece.samples.numel(), -1, -1, -1)
    inputs = (q_bHSD, _padded(piece, k).transpose(1, 2), _padded(piece, v).transpose(1, 2))
    return inputs, {"attn_mask": mask_b11P, "scale": 1.0}


def _fused_forward(piece: Piece, seeds_HSD: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    inputs, options = _fused_inputs(piece, seeds_HSD, k, v)
    out_bHSD, lse_bHS = _attend(*inputs, **options)
    return out_bHSD.transpose(1, 2), lse_bHS.transpose(1, 2)


def _fused_backward(
    piece: Piece, grad: Tensor, seeds_HSD: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the seeds (H, S, D) and of the keys and values (b, P, H, D)."""
    inputs, options = _fused_inputs(piece, seeds_HSD, k, v)
    grad_bHSD, out_bHSD, lse_bHS = (_samples(piece, x).transpose(1, 2) for x in (grad, out, lse))
    dseeds_bHSD, dk_bHPD, dv_bHPD = _attend_backward(grad_bHSD, *inputs, out_bHSD, lse_bHS, 0.0, False, **options)
    return dseeds_bHSD.sum(0), dk_bHPD.transpose(1, 2), dv_bHPD.transpose(1, 2)


def _heads_first(x_bRHD: Tensor) -> Tensor:
    """(H · b, R, D): heads and sequences as the batch of a product."""
    return x_bRHD.permute(2, 0, 1, 3).flatten(0, 1)


def _weights(piece: Piece, seeds_HSD: Tensor, k_HnD: Tensor) -> Tensor:
    """(H · b, P, S): the softmax over each sequence."""
    # The seeds are the same for all: one product per head.
    scores_HbPS = torch.bmm(k_HnD, seeds_HSD.mT).view(-1, *piece.mask.shape, seeds_HSD.shape[1])
    mask_bP = _mask(piece, seeds_HSD)
    if mask_bP is not None:
        scores_HbPS += mask_bP[..., None]
    return scores_HbPS.softmax(2).flatten(0, 1)


def _plain_forward(piece: Piece, seeds_HSD: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w_xPS = _weights(piece, seeds_HSD, _padded(piece, k).flatten(0, 1).transpose(0, 1))
    out_xSD = torch.bmm(w_xPS.mT, _heads_first(_padded(piece, v)))
    return out_xSD.view(seeds_HSD.shape[0], -1, *out_xSD.shape[1:]).permute(1, 2, 0, 3).contiguous()


def _plain_backward(
    piece: Piece, grad: Tensor, seeds_HSD: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_fused_backward`."""
    heads, (samples, length) = seeds_HSD.shape[0], piece.mask.shape
    k_bPHD, grad_xSD = _padded(piece, k), _heads_first(_samples(piece, grad))
    k_HnD = k_bPHD.flatten(0, 1).transpose(0, 1)
    w_xPS = _weights(piece, seeds_HSD, k_HnD)
    dv_xPD = torch.bmm(w_xPS, grad_xSD)
    # w (dw − Σ_P w dw), the softmax's gradient.
    ds_xPS = torch.bmm(_heads_first(_padded(piece, v)), grad_xSD.mT).mul_(w_xPS)
    ds_xPS.addcmul_(w_xPS, ds_xPS.sum(1, keepdim=True), value=-1)
    ds_HnS = ds_xPS.view(heads, samples * length, -1)
    dk_bPHD = k_bPHD.new_zeros(k_bPHD.shape)
    dk_bPHD.flatten(0, 1).transpose(0, 1).baddbmm_(ds_HnS, seeds_HSD)
    dv_bPHD = dv_xPD.view(heads, samples, length, -1).permute(1, 2, 0, 3)
    return torch.bmm(ds_HnS.mT, k_HnD), dk_bPHD, dv_bPHD
