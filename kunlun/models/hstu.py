"""HSTU (arXiv 2402.17152) in its ranking form: the candidate is the last token of the sequence of all events.

Legend: G histories · B rows · N packed tokens · d width · L layers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kunlun.features import TIME, Batch, FeatureSchema, Jagged
from kunlun.layers.candidate import EventsAndCandidate
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, FieldTokens
from kunlun.layers.head import Heads
from kunlun.layers.joining import as_sequences, join_order, reorder
from kunlun.layers.stu import STU, Places


class HSTU(nn.Module):
    """STU layers over events and candidate; the head reads the candidate's token beside the field tokens.

    A history that several rows share is one sequence, with their candidates behind its events: attention is causal and
    candidates never see each other, so each scores as if alone, and the events are computed once.

    *Assumptions (ours)*: events of all types are one sequence in the order of time, with an embedding of the type;
    where a type has no times they are laid end to end, type after type, and the bias has no time. The candidate's token
    is the mean of what the encoders of the types make of it (:class:`EventsAndCandidate` says what where it lacks their
    fields). *Deviation (ours)*: the impression's other fields go to the head, where the paper lays them into the
    sequence and leaves dense ones out; so a history stays the same for all its candidates.

    Args:
        schema: of the data set.
        width: d, of tokens.
        heads: of the attention; they divide the width.
        layers: L.
        embedding: of the tables.
        head_hidden: widths of the hidden layers of each task's head.
        dropout: in the head.

    Raises:
        ValueError: names the argument that does not fit.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        width: int = 32,
        heads: int = 2,
        layers: int = 2,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, heads, layers) < 1:
            raise ValueError(f"width, heads and layers must be ≥ 1, got {width}, {heads}, {layers}")
        if width % heads:
            raise ValueError(f"heads must divide the width, got width {width}, heads {heads}")
        self.schema = schema
        self.tables = EmbeddingTables(schema, embedding)
        self.context = FieldTokens(schema, self.tables, width)
        self.timed = all(e.timestamps for e in schema.events)
        events = nn.ModuleDict({e.name: EventsAndCandidate(e, schema, self.tables, width) for e in schema.events})
        self.events = cast("dict[str, EventsAndCandidate]", events)
        count = len(schema.events)
        self.types = nn.Parameter(0.1 * torch.randn(count + 1, width)) if count else None
        size = sum(e.max_length for e in schema.events) + 1
        stus = nn.ModuleList(STU(width, heads, size, self.timed) for _ in range(layers if count else 0))
        self.layers = cast("list[STU]", stus)
        self.norm = nn.LayerNorm(width) if count else None
        inputs = (self.context.count + bool(count)) * width
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        parts = [self.context(batch, self.tables).flatten(1)]
        if self.norm is not None:
            sequence, places, rows = self._sequence(batch)
            for layer in self.layers:
                sequence = layer(sequence, places)
            parts.append(self.norm(sequence.values[rows]))
        return self.heads(torch.cat(parts, dim=1))

    def _sequence(self, batch: Batch) -> tuple[Jagged, Places, Tensor]:
        """Each history's events of all types, then its candidates; where they stand, and (B,) where each row's
        candidate is among the packed tokens."""
        assert self.types is not None
        encoded = [events(batch, self.tables) for events in self.events.values()]
        histories = [events.with_values(events.values + t) for (events, _), t in zip(encoded, self.types, strict=False)]
        candidate_Bd = torch.stack([c for _, c in encoded]).mean(dim=0) + self.types[-1]
        times = torch.cat([batch.events[name][TIME].values for name in self.events]) if self.timed else None
        merged = join_order(histories, times)
        events = reorder(merged, [h.values for h in histories])
        asked = _candidates(batch, len(events))
        order = join_order([events, asked])
        sequence = reorder(order, [events.values, candidate_Bd[asked.values]])
        is_candidate = order.values >= events.values.shape[0]
        before = torch.arange(order.values.numel(), device=order.values.device) - order.offsets[order.segments()]
        position = torch.where(is_candidate, events.lengths()[order.segments()], before)
        time = None
        if times is not None:
            assert batch.request_time is not None
            time = reorder(order, [times[merged.values], batch.request_time[asked.values]]).values
        places = is_candidate.nonzero().squeeze(1)
        # Candidates stand in the order of their histories; their rows take them back.
        rows = torch.empty_like(places).index_copy_(0, asked.values, places)
        return sequence, Places(position, time, is_candidate), rows

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        tokens = sum(lengths.values()) + 1
        return {
            "tokens": self.context.flops(),
            "encoder": sum(self.events[name].flops(n) for name, n in lengths.items()),
            "attention": sum(layer.flops(tokens) for layer in self.layers),
            "head": self.heads.flops(),
        }


def _candidates(batch: Batch, histories: int) -> Jagged:
    """The rows (B,) of each history, as G sequences."""
    rows = torch.arange(len(batch), device=batch.labels.device)
    if batch.history is None:
        return as_sequences(rows[:, None])
    counts = torch.bincount(batch.history, minlength=histories)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Jagged(torch.argsort(batch.history, stable=True), offsets, len(batch))
