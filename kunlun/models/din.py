"""DIN (arXiv 1706.06978): each event is weighted by how the candidate activates it.

Legend: B rows · N packed events · d event width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema, Jagged
from kunlun.layers.candidate import EventsAndCandidate
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, FieldTokens
from kunlun.layers.head import Heads, linear_flops, mlp


def weighted_sum(weight_N1: Tensor, sequence: Jagged) -> Tensor:
    """Weights (N, 1), a Jagged of (N, d) → the sum of each sequence (B, d), zeros where it is empty."""
    weighted = weight_N1 * sequence.values
    return weighted.new_zeros(sequence.count, weighted.shape[1]).index_add(0, sequence.segments(), weighted)


class ActivationUnit(nn.Module):
    """``Σ_t a_t e_t`` with ``a_t = MLP([v; e_t; v − e_t; v ⊙ e_t])`` (section 4.3, equation 3).

    No softmax: the sum keeps how much of the history the candidate activates. An empty history gives zeros.
    *Deviations*: the MLP's input is that of the authors' published code, where the paper draws an outer product; GELU
    for Dice, whose statistics over the batch would make a row's logit depend on other rows.
    """

    def __init__(self, width: int, hidden: list[int]) -> None:
        super().__init__()
        self.width = width
        self.weigh = mlp(4 * width, hidden, 1)

    def forward(self, sequence: Jagged, candidate_Bd: Tensor) -> Tensor:
        """Jagged of (N, d) over B rows, candidates (B, d) → (B, d)."""
        e_Nd, v_Nd = sequence.values, candidate_Bd[sequence.segments()]
        return weighted_sum(self.weigh(torch.cat([v_Nd, e_Nd, v_Nd - e_Nd, v_Nd * e_Nd], dim=1)), sequence)

    def flops(self, length: int) -> int:
        return length * (linear_flops(self.weigh) + 2 * self.width)


class DIN(nn.Module):
    """Per event type the weighted sum of the events, beside the candidate and the field tokens, into an MLP.

    Where the impression lacks the fields of an event type, see :class:`EventsAndCandidate`. *Deviations*: several
    event types have an activation unit each, and events and candidate are compressed by the encoder that all models
    have (ours); the paper's batch-aware regularisation is left to the optimizer's.

    Args:
        schema: of the data set.
        width: d, of tokens and events.
        attention_hidden: widths of the hidden layers of the activation unit.
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
        attention_hidden: list[int] | None = None,
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
        units = nn.ModuleDict({name: ActivationUnit(width, attention_hidden or [36]) for name in names})
        self.events = cast("dict[str, EventsAndCandidate]", events)
        self.units = cast("dict[str, ActivationUnit]", units)
        inputs = (self.context.count + 2 * len(names)) * width
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        parts = [self.context(batch, self.tables).flatten(1)]
        for name, unit in self.units.items():
            sequence, candidate = self.events[name](batch, self.tables)
            parts += [unit(batch.per_row(sequence), candidate), candidate]
        return self.heads(torch.cat(parts, dim=1))

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        return {
            "tokens": self.context.flops(),
            "encoder": sum(self.events[name].flops(n) for name, n in lengths.items()),
            "attention": sum(self.units[name].flops(n) for name, n in lengths.items()),
            "head": self.heads.flops(),
        }
