"""The contract between data and models: what a data set holds, and what one batch of it looks like.

Legend: B rows of a batch · G histories (G = B unless rows share one) · N packed events of one type.
Ids are row numbers of embedding tables: 0 = missing, 1 = not in the vocabulary, 2… = known values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

MISSING_ID = 0
UNKNOWN_ID = 1
TIME = "time"  # the reserved name of the timestamps beside an event type's fields
SCHEMA_FORMAT = 1
MOST_ROWS = 2**44  # of a table: more than memory holds anywhere, so that a damaged or forged number is noticed at once
SCHEMA_FILE = "schema.json"


@dataclass(frozen=True)
class Task:
    """A binary label and its positive rate in the training split (the p of normalised entropy)."""

    name: str
    train_rate: float


@dataclass(frozen=True)
class Table:
    """An id space with one embedding table: every field that names it shares its rows."""

    rows: int
    encoding: Literal["vocabulary", "hash", "identity"] = "vocabulary"
    min_count: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.rows, int) or not 0 < self.rows <= MOST_ROWS:
            raise ValueError(f"a table has 1 … {MOST_ROWS:,} rows, not {self.rows!r}")


@dataclass(frozen=True)
class SparseField:
    """A categorical field, of the impression or of an event; ``table`` names the id space."""

    name: str
    table: str


@dataclass(frozen=True)
class BagField:
    """A multi-valued categorical field of the impression, pooled to one token."""

    name: str
    table: str
    pooling: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class EventType:
    """One kind of event in the histories: its fields, whether it carries times, how long histories are.

    ``mean_length`` is the mean number of events before a training impression (uncut);
    ``max_length`` is L_max, the most that the reader hands out (0 = not yet chosen).
    """

    name: str
    fields: tuple[SparseField, ...]
    timestamps: bool = True
    mean_length: float = 0.0
    max_length: int = 0

    def __post_init__(self) -> None:
        # It is the name of files too: of those of the data set, and of no other.
        if self.name in ("", ".", "..") or Path(self.name).name != self.name or "\0" in self.name:
            raise ValueError(f"an event type cannot be called {self.name!r}: its files are named after it")


@dataclass(frozen=True)
class FeatureSchema:
    """All that a model must know of a data set; stored as ``schema.json`` beside prepared data."""

    name: str
    tasks: tuple[Task, ...]
    dense: tuple[str, ...]
    sparse: tuple[SparseField, ...]
    tables: dict[str, Table]
    events: tuple[EventType, ...] = ()
    bags: tuple[BagField, ...] = ()
    users: bool = False
    request_times: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"schema {self.name!r}: at least one task (label) is needed")
        if not (self.dense or self.sparse or self.bags):
            raise ValueError(f"schema {self.name!r}: at least one dense, sparse or bag field is needed")
        used: list[SparseField | BagField] = [*self.sparse, *self.bags, *(f for e in self.events for f in e.fields)]
        for f in used:
            if f.table not in self.tables:
                raise ValueError(
                    f"schema {self.name!r}: field {f.name!r} names the table {f.table!r}, "
                    f"which is not among {sorted(self.tables)}"
                )
        for event in self.events:
            if any(f.name == TIME for f in event.fields):
                raise ValueError(f"schema {self.name!r}: {TIME!r} is reserved for the times of {event.name!r}")
            if event.timestamps and not self.request_times:
                raise ValueError(
                    f"schema {self.name!r}: events of {event.name!r} have times but impressions have none; "
                    "both or neither are needed"
                )

    def event(self, name: str) -> EventType:
        """The event type called ``name``; KeyError names those there are."""
        for event in self.events:
            if event.name == name:
                return event
        raise KeyError(f"no event type {name!r} in {self.name!r}; it has {[e.name for e in self.events]}")

    def with_max_length(self, max_length: int) -> FeatureSchema:
        """The same schema with L_max set for every event type."""
        return replace(self, events=tuple(replace(e, max_length=max_length) for e in self.events))

    def to_json(self) -> str:
        return json.dumps({"format": SCHEMA_FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FeatureSchema:
        raw = json.loads(text)
        version = raw.pop("format", None)
        if version != SCHEMA_FORMAT:
            raise ValueError(f"schema format {version!r} cannot be read here (known: {SCHEMA_FORMAT}); prepare again")
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"schema has unknown keys {sorted(unknown)}; it was written by another version")
        return cls(
            name=raw["name"],
            tasks=tuple(Task(**t) for t in raw["tasks"]),
            dense=tuple(raw["dense"]),
            sparse=tuple(SparseField(**f) for f in raw["sparse"]),
            tables={name: Table(**t) for name, t in raw["tables"].items()},
            events=tuple(
                EventType(**{**e, "fields": tuple(SparseField(**f) for f in e["fields"])}) for e in raw["events"]
            ),
            bags=tuple(BagField(**b) for b in raw["bags"]),
            users=raw["users"],
            request_times=raw["request_times"],
            rows=raw["rows"],
            provenance=raw["provenance"],
        )

    @classmethod
    def load(cls, directory: str | Path) -> FeatureSchema:
        """Read ``directory/schema.json``; FileNotFoundError says how to make one, ValueError what is wrong with it."""
        path = Path(directory) / SCHEMA_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} not found: {directory} is not a prepared data set. "
                "Make one with: python cli.py prepare DATASET … (python cli.py prepare --help lists them)"
            )
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        # Whatever a damaged or forged file makes of it.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}); prepare the data set again") from error


@dataclass(frozen=True)
class Jagged:
    """G sequences laid end to end: sequence g is ``values[offsets[g]:offsets[g + 1]]``.

    values (N, …) · offsets (G + 1,) int64, first 0, last N · max_length: no sequence is longer.
    """

    values: Tensor
    offsets: Tensor
    max_length: int

    def __len__(self) -> int:
        return self.count

    @property
    def count(self) -> int:
        """G. In a forward rather than ``len``, which would fix the batch size of what torch.export makes of it."""
        return self.offsets.shape[0] - 1

    def lengths(self) -> Tensor:
        """(G,) int64."""
        return self.offsets.diff()

    def segments(self) -> Tensor:
        """(N,) int64: the sequence each value belongs to."""
        index = torch.arange(self.count, device=self.offsets.device)
        return torch.repeat_interleave(index, self.lengths(), output_size=self.values.shape[0])

    def with_values(self, values: Tensor) -> Jagged:
        """Other values of the same layout, (N, …)."""
        return Jagged(values, self.offsets, self.max_length)

    def select(self, index: Tensor) -> Jagged:
        """Sequences ``index`` (B,) in that order, repeats allowed; differentiable in the values."""
        lengths = self.lengths()[index]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = self.offsets[:-1][index] - offsets[:-1]
        total = int(offsets[-1])
        rows = torch.arange(total, device=index.device) + torch.repeat_interleave(shift, lengths, output_size=total)
        return Jagged(self.values[rows], offsets, self.max_length)


@dataclass(frozen=True)
class Batch:
    """One batch, packed: nothing is padded.

    labels (B, tasks) float32 · dense (B, n) float32, standardised, missing already filled · sparse (B, F) int64 ·
    bags: field → Jagged of ids over B rows · events: type → field → Jagged of ids over G histories, with the
    int64 unix seconds under ``"time"`` where the type has them; oldest event first ·
    request_time (B,) int64 unix seconds · user (B,) int64, only a grouping key · weight (B,) float32 ·
    row (B,) int64, the row's number in its split ·
    history (B,) int64, which of the G histories a row uses; None where G = B and row b uses history b.
    """

    labels: Tensor
    dense: Tensor
    sparse: Tensor
    row: Tensor
    bags: dict[str, Jagged] = field(default_factory=dict)
    events: dict[str, dict[str, Jagged]] = field(default_factory=dict)
    request_time: Tensor | None = None
    user: Tensor | None = None
    weight: Tensor | None = None
    history: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def select(self, index: Tensor) -> Batch:
        """Rows ``index`` (B',) in that order, repeats allowed, with the histories that they use."""
        histories, history = index, None
        if self.history is not None:
            histories, history = self.history[index].unique(return_inverse=True)
        optional = {name: getattr(self, name) for name in ("request_time", "user", "weight")}
        return Batch(
            labels=self.labels[index],
            dense=self.dense[index],
            sparse=self.sparse[index],
            row=self.row[index],
            bags={name: bag.select(index) for name, bag in self.bags.items()},
            events={e: {f: j.select(histories) for f, j in columns.items()} for e, columns in self.events.items()},
            history=history,
            **{name: None if tensor is None else tensor[index] for name, tensor in optional.items()},
        )

    def per_row(self, sequence: Jagged) -> Jagged:
        """Sequences of the G histories → one per row, (B,)."""
        return sequence if self.history is None else sequence.select(self.history)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """``fn`` on every tensor. Offsets shared by several Jaggeds stay shared."""
        done: dict[int, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = fn(tensor)
            return done[id(tensor)]

        def walk(value: Any) -> Any:
            if isinstance(value, Tensor):
                return once(value)
            if isinstance(value, Jagged):
                return Jagged(once(value.values), once(value.offsets), value.max_length)
            if isinstance(value, dict):
                return {key: walk(item) for key, item in value.items()}
            return value

        return Batch(**{f.name: walk(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.apply(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.apply(lambda t: t.pin_memory())
