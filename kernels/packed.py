"""Packed sequences on the torch path: how they are cut into dense pieces, and the checks all ops share.

Batched matmuls want rectangles. Sequences are grouped by length into buckets whose edges grow by about a
third, and each bucket is laid out densely: little padding, whatever the spread of lengths, and no loop over samples.
Legend: N packed tokens · B sequences · P the padded length of a bucket · b sequences in one bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Upper edges of the buckets; empty sequences have one of their own, which is never used.
_EDGES = torch.tensor(sorted({0} | {2**i for i in range(31)} | {3 * 2**i for i in range(30)}))


class _Take(torch.autograd.Function):
    """``x[index]`` for an index without repeats, whose gradient is a copy instead of an accumulation."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return _Put.apply(grad, index, ctx.rows), None


class _Put(torch.autograd.Function):
    """The inverse: zeros of ``rows`` rows with ``x`` written at ``index`` (no repeats)."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, rows: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return _Take.apply(grad, index), None, None


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length. ``samples`` (b,) · ``tokens`` (n,) rows of the packed values ·
    ``slots`` (n,) their places in the flattened (b · length) layout · ``mask`` (b, length) true on real tokens."""

    samples: Tensor
    length: int
    tokens: Tensor
    slots: Tensor
    mask: Tensor

    def pad(self, values: Tensor) -> Tensor:
        """(N, …) packed → (b, length, …) with zeros behind each sequence."""
        rows = self.samples.numel() * self.length
        padded = _Put.apply(_Take.apply(values, self.tokens), self.slots, rows)
        return padded.unflatten(0, (-1, self.length))

    def unpad(self, padded: Tensor) -> Tensor:
        """(b, length, …) → (n, …) in the order of ``tokens``."""
        return _Take.apply(padded.flatten(0, 1), self.slots)


def buckets(offsets: Tensor) -> Iterator[Bucket]:
    """Buckets over all non-empty sequences."""
    lengths = offsets.diff()
    edges = _EDGES.to(lengths.device)
    edge = torch.bucketize(lengths, edges)
    for value in torch.unique(edge[lengths > 0]).tolist():
        samples = (edge == value).nonzero().squeeze(1)
        length = int(lengths[samples].max())
        position = torch.arange(length, device=offsets.device)
        mask = position < lengths[samples, None]
        slots = mask.flatten().nonzero().squeeze(1)
        tokens = (offsets[:-1][samples, None] + position)[mask]
        yield Bucket(samples, length, tokens, slots, mask)


def join_tokens(parts: list[tuple[Tensor, Tensor]], shape: tuple[int, ...], inputs: list[Tensor]) -> Tensor:
    """Assemble ``(tokens, values)`` of all buckets into one packed tensor of ``shape``."""
    if not parts:
        return nothing(shape, inputs)
    tokens = torch.cat([index for index, _ in parts])
    return _Put.apply(torch.cat([values for _, values in parts]), tokens, shape[0])


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
    parts = [(b.tokens, b.unpad(b.pad(x) @ weight[b.samples])) for b in buckets(offsets)]
    return join_tokens(parts, (x.shape[0], weight.shape[2]), [x, weight])


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
