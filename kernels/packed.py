"""Packed sequences on the torch path: how they are cut into dense rectangles, and the check of their offsets.

Batched matmuls want rectangles. Sequences are grouped by length into buckets whose edges grow by about a
third, and each bucket is laid out densely: little padding, whatever the spread of lengths, and no loop over samples.
The references use whole buckets, differentiably; the torch backend uses pieces of them that fit the cache.
Legend: N packed tokens · B sequences · P the padded length of a bucket · b sequences in one bucket or piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

# Upper edges of the buckets; below the first, padding costs less than one more bucket would.
_EDGES = torch.tensor(sorted({2**i for i in range(3, 31)} | {3 * 2**i for i in range(2, 30)}))


class _Take(torch.autograd.Function):
    """``x[index]`` for an index without repeats, whose gradient is a copy instead of an accumulation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _Put.apply(grad, index, ctx.rows), None


class _Put(torch.autograd.Function):
    """The inverse: zeros of ``rows`` rows with ``x`` written at ``index`` (no repeats)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return _Take.apply(grad, index), None, None


@dataclass(frozen=True)
class Bucket:
    """b sequences of similar length, laid out (b, length). ``slots`` (n,): where their n tokens lie in the flattened
    layout · ``mask`` (b, length): true on real tokens."""

    length: int
    slots: Tensor
    mask: Tensor

    def pad(self, tokens: Tensor) -> Tensor:
        """(n, …) → (b, length, …) with zeros behind each sequence."""
        return _Put.apply(tokens, self.slots, self.mask.numel()).unflatten(0, self.mask.shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """(b, length, …) → (n, …)."""
        return _Take.apply(padded.flatten(0, 1), self.slots)


@dataclass(frozen=True)
class Layout:
    """All non-empty sequences in buckets. ``samples`` (≤ B,) and ``tokens`` (N,) are their numbers, bucket by bucket:
    one gather serves all buckets, and its gradient is one copy."""

    buckets: list[Bucket]
    samples: Tensor
    tokens: Tensor

    def split_tokens(self, values: Tensor) -> tuple[Tensor, ...]:
        """(N, …) packed → (n, …) for each bucket."""
        return _Take.apply(values, self.tokens).split([b.slots.numel() for b in self.buckets])

    def split_samples(self, values: Tensor) -> tuple[Tensor, ...]:
        """(B, …) → (b, …) for each bucket."""
        return _Take.apply(values, self.samples).split([b.mask.shape[0] for b in self.buckets])

    def join_tokens(self, parts: list[Tensor], rows: int) -> Tensor:
        """(n, …) of each bucket → (N, …) packed."""
        return _Put.apply(torch.cat(parts), self.tokens, rows)

    def join_samples(self, parts: list[Tensor], rows: int) -> Tensor:
        """(b, …) of each bucket → (B, …), zeros where a sequence is empty."""
        return _Put.apply(torch.cat(parts), self.samples, rows)


@dataclass(frozen=True)
class Piece:
    """b sequences of similar length as rectangles (b, P, …), for code without autograd.

    samples (b,): their numbers · tokens (n,): the numbers of their n tokens · mask (b, P): true on real tokens ·
    span: first and last + 1 token where the rectangle is a slice of the packed values, else None.
    """

    length: int
    samples: Tensor
    tokens: Tensor
    mask: Tensor
    span: tuple[int, int] | None
    _slots: Tensor
    _source: Tensor
    _holes: Tensor

    def pad(self, packed: Tensor) -> Tensor:
        """(N, …) → (b, P, …) with zeros behind each sequence: a view where it can be."""
        if self.span is not None:
            return packed[slice(*self.span)].unflatten(0, self.mask.shape)
        return packed.index_select(0, self._source).index_fill_(0, self._holes, 0).unflatten(0, self.mask.shape)

    def room(self, packed: Tensor) -> Tensor:
        """Uninitialised (b, P, …) to fill and give to :meth:`write`; it lies in ``packed`` (N, …) where it can."""
        return self.pad(packed) if self.span is not None else packed.new_empty(*self.mask.shape, *packed.shape[1:])

    def write(self, packed: Tensor, padded: Tensor) -> None:
        """Put the real tokens of ``padded`` (b, P, …) at their places in ``packed`` (N, …)."""
        if self.span is None:
            packed.index_copy_(0, self.tokens, padded.flatten(0, 1).index_select(0, self._slots))
        elif padded.data_ptr() != packed[self.span[0]].data_ptr():
            self.pad(packed).copy_(padded)


def pieces_of(offsets: Tensor, places: int) -> list[Piece]:
    """All non-empty sequences, in pieces of at most ``places`` padded tokens (a longer sequence is a piece alone)."""
    return _remember(offsets, f"pieces of {places}", lambda: _make_pieces(offsets, places))


def _make_pieces(offsets: Tensor, places: int) -> list[Piece]:
    pieces = []
    layout = layout_of(offsets)
    starts = offsets[:-1]
    by_bucket = layout.samples.split([b.mask.shape[0] for b in layout.buckets])
    for bucket, samples in zip(layout.buckets, by_bucket, strict=False):  # split gives one part where there is none
        step = max(places // bucket.length, 1)
        for mask, chosen in zip(bucket.mask.split(step), samples.split(step), strict=True):
            grid = starts[chosen, None] + torch.arange(bucket.length, device=offsets.device)
            tokens = grid[mask]
            first, last = int(tokens[0]), int(tokens[-1]) + 1
            # Samples come in order, so equal counts mean: no gap and no padding.
            span = (first, last) if last - first == mask.numel() == tokens.numel() else None
            slots = mask.flatten().nonzero().squeeze(1)
            holes = (~mask).flatten().nonzero().squeeze(1)
            source = grid.masked_fill(~mask, first).flatten()
            pieces.append(Piece(bucket.length, chosen, tokens, mask, span, slots, source, holes))
    return pieces


T = TypeVar("T")

# All ops of all layers see the same offsets: what is derived from those of a batch is made once.
_derived: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _remember(offsets: Tensor, what: str, make: Callable[[], T]) -> T:
    """``make()``, remembered under ``what`` as long as ``offsets`` lives unchanged."""
    now = -1 if offsets.is_inference() else offsets._version  # inference tensors keep no count of their changes
    version, known = _derived.get(offsets, (None, {}))
    if version != now:
        known = {}
        _derived[offsets] = (now, known)
    if what not in known:
        known[what] = make()
    return known[what]


def layout_of(offsets: Tensor) -> Layout:
    """The layout of the sequences of ``offsets``; remembered as long as that tensor lives unchanged."""
    return _remember(offsets, "layout", lambda: _make_layout(offsets))


def use_layout(offsets: Tensor, layout: Layout) -> None:
    """Give ``offsets`` this layout instead of its own."""
    _remember(offsets, "layout", lambda: layout)


def _make_layout(offsets: Tensor) -> Layout:
    lengths = offsets.diff()
    edge = torch.bucketize(lengths, _EDGES.to(lengths.device))
    chosen, samples, tokens = [], [lengths.new_zeros(0)], [lengths.new_zeros(0)]
    for value in torch.unique(edge[lengths > 0]).tolist():
        members = ((edge == value) & (lengths > 0)).nonzero().squeeze(1)
        length = int(lengths[members].max())
        position = torch.arange(length, device=offsets.device)
        mask = position < lengths[members, None]
        chosen.append(Bucket(length, mask.flatten().nonzero().squeeze(1), mask))
        samples.append(members)
        tokens.append((offsets[:-1][members, None] + position)[mask])
    return Layout(chosen, torch.cat(samples), torch.cat(tokens))


def nothing(shape: tuple[int, ...], inputs: list[Tensor]) -> Tensor:
    """Zeros of ``shape`` that still hang on ``inputs`` in the graph, so that their gradients are zeros, not None."""
    return inputs[0].new_zeros(shape) + sum(0 * x.sum() for x in inputs)


def check_layout(name: str, offsets: Tensor, rows: int, max_length: int | None) -> None:
    """The values of ``offsets``: from 0 to ``rows``, never decreasing, no sequence over ``max_length``.

    Once per tensor. On a CPU a ValueError; on a GPU an assertion on the device, so that nobody waits for it here.
    """
    _remember(offsets, f"checked {name} {rows} {max_length}", lambda: _check_layout(name, offsets, rows, max_length))


def _check_layout(name: str, offsets: Tensor, rows: int, max_length: int | None) -> bool:
    lengths = offsets.diff()
    if offsets.device.type != "cpu":
        right = (offsets[0] == 0) & (offsets[-1] == rows) & (lengths >= 0).all()
        if max_length is not None:
            right = right & (lengths <= max_length).all()
        limit = "" if max_length is None else f", with no sequence over {max_length}"
        torch._assert_async(right, f"{name}: must run from 0 to {rows} and never decrease{limit}")
        return True
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows:
        raise ValueError(f"{name}: must run from 0 to {rows}, got {int(offsets[0])} … {int(offsets[-1])}")
    if bool((lengths < 0).any()):
        raise ValueError(f"{name}: must never decrease")
    if max_length is not None and bool((lengths > max_length).any()):
        longest = int(lengths.argmax())
        raise ValueError(f"{name}: sequence {longest} has {int(lengths[longest])} tokens, over max_length {max_length}")
    return True


def known_lengths(offsets: Tensor, rows: int) -> list[int]:
    """How long each sequence is, for counting FLOPs; where a tracer has no values, all are taken as equally long."""
    batch = offsets.numel() - 1
    if isinstance(offsets, FakeTensor) or offsets.is_meta:
        return [rows // max(batch, 1)] * batch
    return offsets.diff().tolist()
