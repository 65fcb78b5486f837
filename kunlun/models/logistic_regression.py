"""Logistic regression: one weight per value of each field, one per dense feature. What every model has to beat.

Legend: B rows · F fields.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema, SparseField
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, dense_features, pooled_bags


class LogisticRegression(nn.Module):
    """``Σ_f w_f[id_f] + w · dense + b``, for each task; a multi-valued field adds the mean or sum of its weights.

    It sees the impression's own fields, never the events: of the histories only their lengths, as log(1 + n) among the
    dense features, where all models have them. Fields that share an id space still have weights of their own. All
    weights start at zero; regularisation is the optimizer's.

    Args:
        schema: of the data set.
        sparse_gradients: of the weights of field values, as in :class:`EmbeddingConfig`.
    """

    def __init__(self, schema: FeatureSchema, sparse_gradients: bool = True) -> None:
        super().__init__()
        self.schema, self.fields = schema, _own_tables(schema)
        config = EmbeddingConfig(width=len(schema.tasks), sparse_gradients=sparse_gradients)
        self.tables = EmbeddingTables(self.fields, config)
        for table in self.tables.by_width.values():
            nn.init.zeros_(table.weight)
        self.dense_inputs = len(schema.dense) + len(schema.events)
        self.dense = nn.Parameter(torch.zeros(len(schema.tasks), self.dense_inputs)) if self.dense_inputs else None
        self.bias = nn.Parameter(torch.zeros(len(schema.tasks)))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        terms = self.tables(self.fields.sparse, batch.sparse) if self.fields.sparse else []
        terms += pooled_bags(self.fields, batch, self.tables)
        if self.dense is not None:
            dense = dense_features(self.schema, batch)
            terms.append(nn.functional.linear(dense, self.dense))
        return torch.stack(terms).sum(dim=0) + self.bias

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample: the dense features' product; looked-up weights are only added."""
        return {"linear": 2 * self.dense_inputs * len(self.schema.tasks)}


def _own_tables(schema: FeatureSchema) -> FeatureSchema:
    """The schema without events and with a table for each field, so that no two fields share weights."""
    return replace(
        schema,
        events=(),
        sparse=tuple(SparseField(f.name, f.name) for f in schema.sparse),
        bags=tuple(replace(b, table=b.name) for b in schema.bags),
        tables={
            **{f.name: schema.tables[f.table] for f in schema.sparse},
            **{b.name: schema.tables[b.table] for b in schema.bags},
        },
    )
