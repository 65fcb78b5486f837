"""What an inspection found: plain figures, nothing of how they were read or will be shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np

from kunlun.features import FeatureSchema

PERCENTILES = (1, 10, 50, 90, 99)


@dataclass(frozen=True)
class Coverage:
    """How many ids of a field are missing (id 0) and unknown (id 1), of ``total``; the rest are known."""

    missing: int
    unknown: int
    total: int

    @property
    def known(self) -> int:
        return self.total - self.missing - self.unknown


@dataclass(frozen=True)
class Spread:
    """Of a column of numbers; ``zeros`` counts exact zeros. Without rows the others are NaN."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    zeros: int


@dataclass(frozen=True)
class Lengths:
    """Exact distribution of a whole number per row: ``counts[i]`` rows have ``values[i]``, rising."""

    values: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.values @ self.counts) / self.rows if self.rows else float("nan")

    @property
    def maximum(self) -> int:
        return int(self.values[-1]) if self.rows else 0

    def percentile(self, percent: float) -> int:
        """The smallest value that at least ``percent`` of the rows do not exceed; 0 without rows."""
        if not self.rows:
            return 0
        # Compared in whole numbers as far as it goes: a rounded share must not step to the next value.
        place = int(np.searchsorted(self.counts.cumsum() * 100, percent * self.rows))
        return int(self.values[min(place, len(self.values) - 1)])

    def share_above(self, length: int) -> float:
        """The share of rows above ``length``; NaN without rows."""
        return float(self.counts[self.values > length].sum()) / self.rows if self.rows else float("nan")

    @property
    def share_empty(self) -> float:
        return 1.0 - self.share_above(0)


@dataclass(frozen=True)
class Bag:
    """A multi-valued field: how many values a row has, and what ids they are."""

    lengths: Lengths
    coverage: Coverage


@dataclass(frozen=True)
class Day:
    """One calendar day of a split: its rows and the positives of each task."""

    day: date
    rows: int
    positives: tuple[int, ...]


@dataclass(frozen=True)
class SplitResult:
    """One split: ``rows`` are in it, ``read`` of them were looked at; everything else is about those."""

    name: str
    rows: int
    read: int
    positives: tuple[int, ...]
    days: tuple[Day, ...] = ()
    sparse: dict[str, Coverage] = field(default_factory=dict)
    dense: dict[str, Spread] = field(default_factory=dict)
    bags: dict[str, Bag] = field(default_factory=dict)
    histories: dict[str, Lengths] = field(default_factory=dict)
    weight: Spread | None = None


@dataclass(frozen=True)
class StoredEvents:
    """The log of one event type: its events, the histories they lie in, and the ids of each field."""

    events: int
    histories: int
    read: int
    fields: dict[str, Coverage]


@dataclass(frozen=True)
class Inspection:
    """All that is shown of a data set. ``max_length`` 0: no history is cut. ``bytes_on_disk``: part → bytes."""

    schema: FeatureSchema
    place: str
    timezone: str
    splits: tuple[SplitResult, ...]
    max_length: int = 0
    stored: dict[str, StoredEvents] = field(default_factory=dict)
    bytes_on_disk: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits)

    @property
    def read(self) -> int:
        return sum(split.read for split in self.splits)

    @property
    def sampled(self) -> bool:
        return self.read < self.rows
