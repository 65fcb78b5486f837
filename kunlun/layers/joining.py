"""Packed sequences of the same samples joined into one per sample.

Legend: G sequences · N packed tokens · d token width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.features import Jagged


def join_order(parts: list[Jagged], times: Tensor | None = None) -> Jagged:
    """Which row of the concatenated values of ``parts`` comes where, as a Jagged of (ΣN,) int64.

    Sequence g of the first part, then that of the second …; with ``times`` (ΣN,), in the order of the concatenated
    values, oldest first, and part after part among equals.
    """
    segments = torch.cat([part.segments() for part in parts])
    if times is None:
        order = torch.argsort(segments, stable=True)
    else:
        by_time = torch.argsort(times, stable=True)
        order = by_time[torch.argsort(segments[by_time], stable=True)]
    offsets = torch.stack([part.offsets for part in parts]).sum(dim=0)
    return Jagged(order, offsets, sum(part.max_length for part in parts))


def reorder(order: Jagged, values: list[Tensor]) -> Jagged:
    """The values of each part, in the places that :func:`join_order` gave them."""
    return order.with_values(torch.cat(values)[order.values])


def as_sequences(x_Gnd: Tensor) -> Jagged:
    """(G, n, d) → G sequences of n tokens each."""
    count, tokens = x_Gnd.shape[:2]
    offsets = torch.arange(count + 1, device=x_Gnd.device) * tokens
    return Jagged(x_Gnd.flatten(0, 1), offsets, tokens)
