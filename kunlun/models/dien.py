"""DIEN (arXiv 1809.03672): interests are extracted from events by a GRU and evolve towards the candidate in an AUGRU.

Legend: G histories · B rows · N packed events · d width of events and states.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema, Jagged
from kunlun.layers.candidate import EventsAndCandidate
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, FieldTokens
from kunlun.layers.head import Heads
from kunlun.layers.recurrence import AUGRU, GRU


def scores_of(sequence: Jagged, query_Bd: Tensor) -> Tensor:
    """Each token of a Jagged of (N, d) times its sequence's query: (N,)."""
    return (sequence.values * query_Bd[sequence.segments()]).sum(dim=1)


def softmax_of(scores_N: Tensor, sequence: Jagged) -> Tensor:
    """Softmax over the tokens of each sequence, (N,)."""
    segments = sequence.segments()
    lowest = scores_N.new_full((len(sequence),), float("-inf"))
    top = lowest.scatter_reduce(0, segments, scores_N.detach(), "amax")
    weights = torch.exp(scores_N - top[segments])
    return weights / weights.new_zeros(len(sequence)).index_add(0, segments, weights)[segments]


class InterestEvolution(nn.Module):
    """One event type: states h_t of a GRU, ``a_t = softmax_t(h_t W v)``, and the last state of an AUGRU over them
    (the paper's "Interest Extractor Layer" and "Interest Evolving Layer")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extract = GRU(width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.evolve = AUGRU(width, width)

    def forward(self, sequence: Jagged, candidate_Bd: Tensor, batch: Batch) -> Tensor:
        """Jagged of (N, d) over the G histories and candidates (B, d) → (B, d); zeros where a history is empty."""
        # The candidate comes in only here: a history that several rows share is extracted once.
        states = batch.per_row(self.extract(sequence))
        query = self.query(candidate_Bd).to(states.values.dtype)
        return self.evolve(states, softmax_of(scores_of(states, query), states))

    def recurrence_flops(self, length: int) -> int:
        return self.extract.flops(length) + self.evolve.flops(length)

    def attention_flops(self, length: int) -> int:
        return 2 * self.query.weight.numel() + 2 * length * self.query.out_features


class DIEN(nn.Module):
    """Per event type the evolved interest, beside the candidate and the field tokens, into an MLP.

    As many sequential steps as the longest history has events. Where the impression lacks the fields of an event type,
    see :class:`EventsAndCandidate`. *Deviations*: no auxiliary loss on the next event, which the paper adds to the
    task's: it needs drawn negatives and a second output; each event type evolves by itself, and events and candidate
    are compressed by the encoder that all models have (ours).

    Args:
        schema: of the data set.
        width: d, of tokens, events and states.
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
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be ≥ 1, got {width}")
        self.schema = schema
        self.tables = EmbeddingTables(schema, embedding)
        self.context = FieldTokens(schema, self.tables, width)
        names = [e.name for e in schema.events]
        events = nn.ModuleDict({e.name: EventsAndCandidate(e, schema, self.tables, width) for e in schema.events})
        self.events = cast("dict[str, EventsAndCandidate]", events)
        interests = nn.ModuleDict({name: InterestEvolution(width) for name in names})
        self.interests = cast("dict[str, InterestEvolution]", interests)
        inputs = (self.context.count + 2 * len(names)) * width
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        parts = [self.context(batch, self.tables).flatten(1)]
        for name, interest in self.interests.items():
            sequence, candidate = self.events[name](batch, self.tables)
            parts += [interest(sequence, candidate, batch), candidate]
        return self.heads(torch.cat(parts, dim=1))

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        return {
            "tokens": self.context.flops(),
            "encoder": sum(self.events[name].flops(n) for name, n in lengths.items()),
            "attention": sum(self.interests[name].attention_flops(n) for name, n in lengths.items()),
            "recurrence": sum(self.interests[name].recurrence_flops(n) for name, n in lengths.items()),
            "head": self.heads.flops(),
        }
