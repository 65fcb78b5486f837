"""Packed sequences on the torch path: how they are cut into dense pieces, and the checks all ops share.

Batched matmuls want rectangles. Sequences are grouped by length into buckets whose edges grow by about a
third, and each bucket is laid out densely: little padding, whatever the spread of lengths, and no loop over samples.
Legend: N packed tokens · B sequences · P the padded length of a bucket · b sequences in one bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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


# All ops of all layers see the same offsets: the layout of a batch is made once.
_layouts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def layout_of(offsets: Tensor) -> Layout:
    """The layout of the sequences of ``offsets``; remembered as long as that tensor lives unchanged."""
    now = -1 if offsets.is_inference() else offsets._version  # inference tensors keep no count of their changes
    version, layout = _layouts.get(offsets, (None, None))
    if layout is None or version != now:
        layout = _make_layout(offsets)
        _layouts[offsets] = (now, layout)
    return layout


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


def segment_matmul(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Each sequence times its own matrix: ``x`` (N, i), ``weight`` (B, i, o) → (N, o). 2·N·i·o FLOPs."""
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"segment_matmul: x (N, i) and weight (B, i, o) expected, got {(*x.shape,)} and {(*weight.shape,)}"
        )
    check_offsets(offsets, x.shape[0], "offsets")
    layout = layout_of(offsets)
    if not layout.buckets:
        return nothing((x.shape[0], weight.shape[2]), [x, weight])
    parts = zip(layout.buckets, layout.split_tokens(x), layout.split_samples(weight), strict=True)
    return layout.join_tokens([bucket.unpad(bucket.pad(x_n) @ weight_b) for bucket, x_n, weight_b in parts], x.shape[0])


def check_offsets(offsets: Tensor, rows: int, name: str) -> None:
    """Offsets (B + 1,) int64, from 0 to ``rows``, never decreasing. Values are read on the CPU only:
    on a GPU that would wait for the device in the hot path."""
    if offsets.ndim != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"{name}: a 1-d int64 tensor (B + 1,) expected, got {offsets.dtype} {(*offsets.shape,)}")
    if offsets.device.type == "cpu":
        if int(offsets[0]) != 0 or int(offsets[-1]) != rows:
            raise ValueError(f"{name}: must run from 0 to {rows}, got {int(offsets[0])} … {int(offsets[-1])}")
        if bool((offsets.diff() < 0).any()):
            raise ValueError(f"{name}: must never decrease")


def check_backend(backend: str | None, op: str) -> str:
    """The backend to use; ``None`` = by device."""
    if backend not in (None, "torch"):
        raise ValueError(f"{op}: unknown backend {backend!r}; known: 'torch'")
    return "torch"


def check_heads(name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """``x`` must have this shape (``None`` = any), and the dtype and device of ``like``."""
    wrong = x.ndim != len(shape) or any(s is not None and s != n for s, n in zip(shape, x.shape, strict=True))
    if wrong:
        expected = ", ".join("?" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape ({expected}) expected, got {(*x.shape,)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"{name}: {like.dtype} on {like.device} expected, got {x.dtype} on {x.device}")
