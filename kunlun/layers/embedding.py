"""Embedding tables, and the tokens that are made from them.

Legend: B rows · F sparse fields · N packed events · w table width · d token width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from kunlun.features import Batch, EventType, FeatureSchema, Jagged, SparseField


@dataclass(frozen=True)
class EmbeddingConfig:
    """Width and initialisation of the tables."""

    width: int = 16
    """Columns of a table; narrower than the model, because rows are many."""
    widths: dict[str, int] = field(default_factory=dict)
    """Tables with a width of their own, by table name."""
    init_std: float = 0.1
    """Standard deviation of the initial rows. Small values hide "the same id again" from a match by dot product."""
    dropout: float = 0.0
    """Probability that one looked-up vector is dropped as a whole (never at evaluation)."""
    sparse_gradients: bool = True
    """Gradients of the rows a batch touched, for row-wise Adagrad. False: gradients as large as the tables, and the
    optimizer of the dense part; for small tables, and for training under torch.compile with inductor, which has no
    sparse tensors."""
    sharded: bool = False
    """Spread the tables over the processes with TorchRec, so that together they may be larger than the memory of one;
    their row-wise Adagrad then steps inside the backward pass (docs/torchrec.md)."""

    def __post_init__(self) -> None:
        if self.width < 1 or any(w < 1 for w in self.widths.values()):
            raise ValueError(f"embedding.width must be ≥ 1, got {self.width} and {self.widths}")
        if not self.init_std > 0:
            raise ValueError(f"embedding.init_std must be > 0, got {self.init_std}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"embedding.dropout must lie in [0, 1), got {self.dropout}")
        if self.sharded and any(w % 4 for w in (self.width, *self.widths.values())):
            raise ValueError(
                f"embedding.sharded: TorchRec takes widths that 4 divides, got {self.width} and {self.widths}"
            )
        if self.sharded and find_spec("torchrec") is None:
            raise ValueError("embedding.sharded: TorchRec is not installed; `make torchrec` installs it")

    def table_widths(self, schema: FeatureSchema) -> dict[str, int]:
        """Table → its columns."""
        return {name: self.widths.get(name, self.width) for name in schema.tables}


class EmbeddingTables(nn.Module):
    """All tables of a schema. Tables of one width lie in one parameter, end to end, so that a batch costs one
    gather and one sparse gradient per width, not one per field.

    With ``config.sharded`` they take no memory, on the device ``meta``, and wait to be replaced by
    :class:`~kunlun.layers.sharded_tables.ShardedTables`, once it is known which processes there are.
    """

    def __init__(self, schema: FeatureSchema, config: EmbeddingConfig) -> None:
        super().__init__()
        unknown = set(config.widths) - set(schema.tables)
        if unknown:
            raise ValueError(f"embedding.widths: no table {sorted(unknown)}; there are {sorted(schema.tables)}")
        self.config = config
        self.widths = config.table_widths(schema)
        self.first_row: dict[str, int] = {}
        rows: dict[int, int] = {}
        for name, table in schema.tables.items():
            width = self.widths[name]
            self.first_row[name] = rows.get(width, 0)
            rows[width] = self.first_row[name] + table.rows
        self.rows = {name: table.rows for name, table in schema.tables.items()}
        device = "meta" if config.sharded else None
        by_width = nn.ModuleDict(
            {str(w): nn.Embedding(count, w, sparse=config.sparse_gradients, device=device) for w, count in rows.items()}
        )
        self.by_width = cast("dict[str, nn.Embedding]", by_width)
        self.dropout = nn.Dropout1d(config.dropout) if config.dropout else nn.Identity()
        for shared in self.by_width.values():
            nn.init.normal_(shared.weight, std=config.init_std)

    def weight(self, name: str) -> Tensor:
        """(rows, w): the part of the parameter that is table ``name`` (a view)."""
        first = self.first_row[name]
        return self.by_width[str(self.widths[name])].weight[first : first + self.rows[name]]

    def forward(self, fields: tuple[SparseField, ...], ids: Tensor) -> list[Tensor]:
        """``ids`` (R, fields) → one (R, w) per field, in their order."""
        out: list[Tensor] = [ids] * len(fields)
        for width, table in self.by_width.items():
            columns = [i for i, f in enumerate(fields) if self.widths[f.table] == int(width)]
            if columns:
                shift = torch.tensor([self.first_row[fields[i].table] for i in columns], device=ids.device)
                picked = ids if len(columns) == len(fields) else ids[:, columns]
                found = self.dropout(table(picked + shift))
                for place, i in enumerate(columns):
                    out[i] = found[:, place]
        return out


def dense_features(schema: FeatureSchema, batch: Batch) -> Tensor:
    """(B, dense + event types). *Assumption (ours)*: the number of events of each type joins the dense features as
    log(1 + n), because softmax pooling cannot count."""
    columns = [batch.dense]
    for event in schema.events:
        n = next(iter(batch.events[event.name].values())).lengths()
        n = n if batch.history is None else n[batch.history]
        columns.append(torch.log1p(n.to(batch.dense.dtype))[:, None])
    return torch.cat(columns, dim=1)


def pooled_bags(schema: FeatureSchema, batch: Batch, tables: EmbeddingTables) -> list[Tensor]:
    """Each multi-valued field looked up and pooled, (B, w) per field; zeros where a row has no values."""
    out = []
    for field_ in schema.bags:
        bag = batch.bags[field_.name]
        (rows,) = tables((SparseField(field_.name, field_.table),), bag.values[:, None])
        pooled = rows.new_zeros(bag.count, rows.shape[1]).index_add(0, bag.segments(), rows)
        out.append(pooled if field_.pooling == "sum" else pooled / bag.lengths().clamp(min=1)[:, None])
    return out


class FieldTokens(nn.Module):
    """The context as tokens: the dense features (:func:`dense_features`) are one, each sparse or multi-valued field
    is one. ``X⁽⁰⁾: (B, tokens, d)``.

    ``norm``: field tokens at unit scale (RMSNorm). Products of tokens as small as initial rows leave a factorization
    machine next to nothing to learn from at the start. The dense token keeps its magnitude, which says something.
    """

    def __init__(self, schema: FeatureSchema, tables: EmbeddingTables, width: int, *, norm: bool = False) -> None:
        super().__init__()
        self.schema = schema
        self.fields = (*schema.sparse, *(SparseField(b.name, b.table) for b in schema.bags))
        self.dense_inputs = len(schema.dense) + len(schema.events)
        self.dense = nn.Linear(self.dense_inputs, width) if self.dense_inputs else None
        # One projection per field; fields of one table width are multiplied together.
        self.inputs = [tables.widths[f.table] for f in self.fields]
        self.weights = nn.ParameterDict()
        for w in sorted(set(self.inputs)):
            weight = torch.empty(self.inputs.count(w), w, width)
            self.weights[str(w)] = nn.Parameter(nn.init.uniform_(weight, -(w**-0.5), w**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(self.fields), width)) if self.fields else None
        self.norm = nn.RMSNorm(width, eps=1e-6) if norm and self.fields else nn.Identity()
        self.count = len(self.fields) + (self.dense is not None)
        self.width = width

    def forward(self, batch: Batch, tables: EmbeddingTables) -> Tensor:
        """(B, tokens, d); the dense token comes last."""
        tokens: list[Tensor] = []
        if self.bias is not None:
            found = tables(self.schema.sparse, batch.sparse) if self.schema.sparse else []
            found += pooled_bags(self.schema, batch, tables)
            projected: dict[int, Tensor] = {}
            for w, weight_Fwd in self.weights.items():
                places = [i for i, width in enumerate(self.inputs) if width == int(w)]
                stacked_FBw = torch.stack([found[i] for i in places])
                projected |= zip(places, torch.bmm(stacked_FBw, weight_Fwd.to(stacked_FBw.dtype)), strict=True)
            tokens.append(self.norm(torch.stack([projected[i] for i in range(len(found))], dim=1) + self.bias))
        if self.dense is not None:
            tokens.append(self.dense(dense_features(self.schema, batch))[:, None])
        return torch.cat(tokens, dim=1)

    def flops(self) -> int:
        """Per sample."""
        return 2 * self.width * (sum(self.inputs) + self.dense_inputs)


class EventEncoder(nn.Module):
    """The fields of one event embedded, concatenated and compressed by an MLP to the tower's width d_e."""

    def __init__(self, event: EventType, schema: FeatureSchema, tables: EmbeddingTables, width: int) -> None:
        super().__init__()
        self.fields = event.fields
        # The candidate's own field for each field of an event: by name, or else by table.
        places = [candidate_field(f, schema.sparse) for f in event.fields]
        self.candidate = None if None in places else places
        inputs = sum(tables.widths[f.table] for f in event.fields)
        self.hidden = nn.Linear(inputs, 2 * width)
        self.out = nn.Linear(2 * width, width)
        # Rows of tables begin so small that torch's biases would outweigh them: all events would look alike.
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, events: dict[str, Jagged], tables: EmbeddingTables) -> Jagged:
        """One event type of a batch → Jagged of (N, d_e)."""
        columns = [events[f.name] for f in self.fields]
        return columns[0].with_values(self._encode(torch.stack([c.values for c in columns], dim=1), tables))

    def encode_candidate(self, sparse: Tensor, tables: EmbeddingTables) -> Tensor | None:
        """The candidate of each row as if it were an event, (B, d_e); None where it lacks a field of the events."""
        return None if self.candidate is None else self._encode(sparse[:, self.candidate], tables)

    def _encode(self, ids: Tensor, tables: EmbeddingTables) -> Tensor:
        x = torch.cat(tables(self.fields, ids), dim=1)
        return self.out(torch.nn.functional.gelu(self.hidden(x)))

    def flops(self, length: int, candidate: bool = True) -> int:
        """Of one history of ``length`` events, and of the candidate where it can be, and is, encoded."""
        length += candidate and self.candidate is not None
        return 2 * length * (self.hidden.weight.numel() + self.out.weight.numel())


def candidate_field(event_field: SparseField, sparse: tuple[SparseField, ...]) -> int | None:
    """The place among ``sparse`` of the field that says of the candidate what ``event_field`` says of an event."""
    same = [i for i, f in enumerate(sparse) if f.table == event_field.table]
    return next((i for i in same if sparse[i].name == event_field.name), same[0] if same else None)
