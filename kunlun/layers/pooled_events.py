"""Context tokens and one pooled token per event type: what a model without a sequence part sees of the histories.

Legend: B rows · d token width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.layers.embedding import EmbeddingTables, EventEncoder, FieldTokens
from kunlun.layers.pooling import MeanPooling


class PooledTokens(nn.Module):
    """The field tokens, then the mean of each event type's encoded events; zeros where there are none.

    *Assumption (ours)*: models made for fields alone get the histories in this form, so that all see the same inputs.
    """

    def __init__(self, schema: FeatureSchema, tables: EmbeddingTables, width: int, *, norm: bool = False) -> None:
        super().__init__()
        self.context = FieldTokens(schema, tables, width, norm=norm)
        encoders = nn.ModuleDict({e.name: EventEncoder(e, schema, tables, width) for e in schema.events})
        self.encoders = cast("dict[str, EventEncoder]", encoders)
        self.pool = MeanPooling(width, 1, 1)
        self.count = self.context.count + len(schema.events)

    def forward(self, batch: Batch, tables: EmbeddingTables) -> Tensor:
        """(B, tokens, d): sparse and multi-valued fields, the dense token, the event types. A history that several
        rows share is pooled once."""
        tokens = [self.context(batch, tables)]
        for name, encoder in self.encoders.items():
            pooled = self.pool(encoder(batch.events[name], tables), None)
            tokens.append(pooled if batch.history is None else pooled[batch.history])
        return torch.cat(tokens, dim=1)

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        encoded = sum(self.encoders[name].flops(n, candidate=False) for name, n in lengths.items())
        return {"tokens": self.context.flops(), "encoder": encoded}
