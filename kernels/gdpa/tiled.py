"""GDPA on the torch backend: the scores of one piece at a time, never all of them; the backward makes them again.

Legend: b sequences of a piece, P its padded length · n key/value tokens · H heads · D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import FUSED
from kernels.packed import Piece, pieces_of

# Scores of one piece and one head, in bytes: with their temporaries they stay in a core's caches.
PIECE_BYTES = 1 << 19


@dataclass(frozen=True)
class _Sets:
    """The keys and values: dense (G, n, H_kv, D), or packed (N_kv, H_kv, D) with ``offsets``; ``index``: whose."""

    offsets: Tensor | None
    index: Tensor | None
    tokens: int

    def rows(self, samples: Tensor) -> Tensor:
        """(b,): the key/value set of each sample."""
        return samples if self.index is None else self.index[samples]

    def take(self, x: Tensor, samples: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, n, H_kv, D), and the mask (b, n) of real tokens, None where all are."""
        if (run := self._run(samples)) is not None:
            return x[run], None
        sets = self.rows(samples)
        if self.offsets is None:
            return x[sets], None
        rows, mask = self._packed_rows(sets)
        return (x[rows] if x.shape[0] else x.new_zeros(*rows.shape, *x.shape[1:])), mask

    def room(self, total: Tensor, like: Tensor, samples: Tensor) -> Tensor:
        """Zeros (b, n, H_kv, D) where a piece sums up its part of the gradient ``total``; in it where it can."""
        return total[run] if (run := self._run(samples)) is not None else torch.zeros_like(like)

    def add(self, total: Tensor, part: Tensor, samples: Tensor) -> None:
        """Add ``part``, filled after :meth:`room`, to the gradient ``total`` of the keys or values."""
        if self._run(samples) is not None:
            return
        sets = self.rows(samples)
        if self.offsets is None:
            total.index_add_(0, sets, part)
        else:
            rows, mask = self._packed_rows(sets)
            total.index_add_(0, rows[mask], part[mask])

    def _run(self, samples: Tensor) -> slice | None:
        """The sets of the samples where they are a slice of the dense sets."""
        if self.offsets is not None or self.index is not None:
            return None
        low, high = int(samples[0]), int(samples[-1]) + 1
        return slice(low, high) if high - low == samples.numel() else None

    def _packed_rows(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        assert self.offsets is not None
        lengths = self.offsets.diff()[sets]
        position = torch.arange(int(lengths.max()), device=sets.device)
        mask = position < lengths[:, None]
        return (self.offsets[:-1][sets, None] + position).masked_fill(~mask, 0), mask


@dataclass(frozen=True)
class _Scores:
    """What the scores of a piece become: ``act(inside · scores) · outside`` where ``mask`` is true."""

    names: Sequence[str]
    inside: float
    outside: float
    window: Sequence[int] | None

    def mask(self, kv_mask: Tensor | None, rows: range, n: int, device: torch.device) -> Tensor | None:
        """(b or 1, rows or 1, n): pairs that do not count; None where all do."""
        hidden = None if kv_mask is None or bool(kv_mask.all()) else ~kv_mask[:, None]
        if self.window is not None:
            left, right = self.window
            query = torch.arange(rows.start, rows.stop, device=device)
            distance = torch.arange(n, device=device) - query[:, None]
            far = ((distance < -left) | (distance > right))[None]
            hidden = far if hidden is None else hidden | far
        return hidden


def _scores(q_bPD: Tensor, k_bnD: Tensor, scale: float) -> Tensor:
    """(b, P, n): the scaled products; the scale costs no pass of its own."""
    out = q_bPD.new_empty(q_bPD.shape[0], q_bPD.shape[1], k_bnD.shape[1])
    return torch.baddbmm(out, q_bPD, k_bnD.transpose(1, 2), beta=0, alpha=scale, out=out)


def _blocks(q: Tensor, offsets: Tensor, sets: _Sets) -> Iterator[tuple[Piece, list[range]]]:
    """The pieces, and for each the ranges of its positions whose scores are made at once."""
    places = max(PIECE_BYTES // (q.element_size() * max(sets.tokens, 1)), 16)
    for piece in pieces_of(offsets, places):
        yield piece, [range(i, min(i + places, piece.length)) for i in range(0, piece.length, places)]


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
) -> Tensor:
    """See :func:`kernels.gdpa.gdpa`. ``inside`` and ``outside`` are 1/τ and 1, or 1 and 1/τ."""
    sets, scores = _Sets(kv_offsets, kv_index, kv_tokens), _Scores(names, inside, outside, window)
    group = q.shape[1] // k.shape[-2]
    out = q.new_empty(q.shape)
    for piece, blocks in _blocks(q, offsets, sets):
        q_bPHD, (k_bnHD, kv_mask), (v_bnHD, _) = (
            piece.pad(q),
            sets.take(k, piece.samples),
            sets.take(v, piece.samples),
        )
        out_bPHD = piece.room(out)
        for rows in blocks:
            part = slice(rows.start, rows.stop)
            hidden = scores.mask(kv_mask, rows, k_bnHD.shape[1], q.device)
            for h, name in enumerate(names):
                s = _scores(q_bPHD[:, part, h], k_bnHD[:, :, h // group], inside)
                w = FUSED[name][0](s)
                if hidden is not None:
                    w.masked_fill_(hidden, 0)
                out_bPHD[:, part, h] = torch.bmm(w, v_bnHD[:, :, h // group])  # three times as fast as out=
        if outside != 1:
            out_bPHD.mul_(outside)
        piece.write(out, out_bPHD)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, of which there are sums over samples (``kv_index``) and over heads (grouped)."""
    sets, scores = _Sets(kv_offsets, kv_index, kv_tokens), _Scores(names, inside, outside, window)
    group = q.shape[1] // k.shape[-2]
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for piece, blocks in _blocks(q, offsets, sets):
        q_bPHD, grad_bPHD = piece.pad(q), piece.pad(grad)
        if outside != 1:  # before the products: in float16 what they sum up might not fit
            grad_bPHD = grad_bPHD * outside
        (k_bnHD, kv_mask), (v_bnHD, _) = sets.take(k, piece.samples), sets.take(v, piece.samples)
        dq_bPHD = piece.room(dq)
        dk_bnHD, dv_bnHD = sets.room(dk, k_bnHD, piece.samples), sets.room(dv, v_bnHD, piece.samples)
        for rows in blocks:
            part = slice(rows.start, rows.stop)
            hidden = scores.mask(kv_mask, rows, k_bnHD.shape[1], q.device)
            for h, name in enumerate(names):
                value, gradient = FUSED[name]
                q_h, g_h = q_bPHD[:, part, h], grad_bPHD[:, part, h]
                k_h, v_h = k_bnHD[:, :, h // group], v_bnHD[:, :, h // group]
                s = _scores(q_h, k_h, inside)
                dw = _scores(g_h, v_h, inside)
                ds, w = gradient(dw, s), value(s)
                if hidden is not None:
                    ds.masked_fill_(hidden, 0)
                    w.masked_fill_(hidden, 0)
                dq_bPHD[:, part, h] = torch.bmm(ds, k_h)
                dk_bnHD[:, :, h // group] += torch.bmm(ds.transpose(1, 2), q_h)
                dv_bnHD[:, :, h // group] += torch.bmm(w.transpose(1, 2), g_h)
        piece.write(dq, dq_bPHD)
        sets.add(dk, dk_bnHD, piece.samples)
        sets.add(dv, dv_bnHD, piece.samples)
    return dq, dk, dv
