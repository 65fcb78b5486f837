"""The events of one type beside the candidate encoded as one of them: the input of attention to a candidate.

Legend: G histories · B rows · d_e event width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kunlun.features import Batch, EventType, FeatureSchema, Jagged
from kunlun.layers.embedding import EmbeddingTables, EventEncoder


class EventsAndCandidate(nn.Module):
    """Encodes the histories of one event type, and each row's candidate by the same encoder.

    Where the impression lacks a field of the events, the candidate cannot be encoded like one: a learned vector, the
    same for all rows, takes its place. Attention then still pools the events, but no longer by the candidate.
    """

    def __init__(self, event: EventType, schema: FeatureSchema, tables: EmbeddingTables, width: int) -> None:
        super().__init__()
        self.name = event.name
        self.encoder = EventEncoder(event, schema, tables, width)
        self.learned = None if self.encoder.candidate is not None else nn.Parameter(torch.randn(width))

    def forward(self, batch: Batch, tables: EmbeddingTables) -> tuple[Jagged, Tensor]:
        """Events as a Jagged of (N, d_e) over the G histories, and the candidates (B, d_e)."""
        sequence = self.encoder(batch.events[self.name], tables)
        candidate = self.encoder.encode_candidate(batch.sparse, tables)
        if candidate is None:
            assert self.learned is not None
            candidate = self.learned.expand(batch.sparse.shape[0], -1)
        return sequence, candidate

    def flops(self, length: int) -> int:
        return self.encoder.flops(length)
