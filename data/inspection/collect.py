"""Columns → figures, one pass, a chunk of rows at a time: memory does not grow with the rows.

Legend: n rows of a chunk · T tasks · D dense · F sparse fields · E event types.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np

from data.inspection.results import Bag, Coverage, Day, Lengths, SplitResult, Spread
from data.preparation import DataError
from kunlun.features import MISSING_ID, UNKNOWN_ID, FeatureSchema

# Every time zone in use is whole quarters of an hour from UTC, so a quarter lies in one day wherever that is.
QUARTER = 900
# The first second that the calendar of datetime has, with a day to spare for any time zone, and the end of its last.
CALENDAR = (-62_135_510_400, 253_402_214_400)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a split as columns; a column that the data set lacks is None, or absent from the mapping.

    labels (n, T) 0/1 · dense (n, D) · sparse (n, F) ids · pointers (n, E) history lengths, uncut ·
    bags: field → (values, lengths (n,)) · request_time (n,) unix seconds · weight (n,).
    """

    labels: np.ndarray
    dense: np.ndarray | None = None
    sparse: np.ndarray | None = None
    pointers: np.ndarray | None = None
    bags: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    request_time: np.ndarray | None = None
    weight: np.ndarray | None = None


class Tally:
    """Sums by whole number: how many rows have a key, and what their ``width`` amounts add up to."""

    def __init__(self, width: int = 0) -> None:
        self.keys = np.zeros(0, np.int64)
        self.sums = np.zeros((0, 1 + width))

    def add(self, keys: np.ndarray, amounts: np.ndarray | None = None) -> None:
        """``keys`` (n,) integers, ``amounts`` (n, width)."""
        if not keys.size:
            return
        low, high = int(keys.min()), int(keys.max())
        # Counting is linear where the keys lie close together, as they nearly always do.
        if high - low < 4 * keys.size + 1024:
            places, found = keys - low, np.arange(low, high + 1)
        else:
            found, places = np.unique(keys, return_inverse=True)
        columns = [None] if amounts is None else [None, *amounts.T]
        sums = np.stack([np.bincount(places, column, found.size) for column in columns], axis=1)
        seen = sums[:, 0] > 0
        self._merge(found[seen], sums[seen])

    def _merge(self, keys: np.ndarray, sums: np.ndarray) -> None:
        together = np.union1d(self.keys, keys)
        total = np.zeros((together.size, self.sums.shape[1]))
        total[np.searchsorted(together, self.keys)] = self.sums
        total[np.searchsorted(together, keys)] += sums
        self.keys, self.sums = together, total

    def lengths(self) -> Lengths:
        return Lengths(self.keys, self.sums[:, 0].astype(np.int64))


class Moments:
    """Mean, spread and range of several columns, merged chunk by chunk so that nothing is lost to a large mean."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(width), np.zeros(width)
        self.minimum, self.maximum = np.full(width, np.inf), np.full(width, -np.inf)
        self.zeros = np.zeros(width, np.int64)

    def add(self, values: np.ndarray) -> None:
        """``values`` (n, width)."""
        if not values.size:
            return
        columns = values.T.astype(np.float64, order="C")
        self.zeros += np.count_nonzero(columns == 0, axis=1)
        self.minimum = np.minimum(self.minimum, columns.min(axis=1))
        self.maximum = np.maximum(self.maximum, columns.max(axis=1))
        n, mean = columns.shape[1], columns.mean(axis=1)
        columns -= mean[:, None]
        # Chan, Golub and LeVeque: the squares about the joint mean from those about each mean.
        total, apart = self.count + n, mean - self.mean
        self.squares += np.einsum("ij,ij->i", columns, columns) + apart**2 * (self.count * n / total)
        self.mean += apart * (n / total)
        self.count = total

    def spreads(self) -> list[Spread]:
        nothing = float("nan")
        if not self.count:
            return [Spread(0, nothing, nothing, nothing, nothing, 0) for _ in self.mean]
        std = np.sqrt(self.squares / self.count)
        columns = zip(self.mean, std, self.minimum, self.maximum, self.zeros, strict=True)
        return [Spread(self.count, float(m), float(s), float(a), float(b), int(z)) for m, s, a, b, z in columns]


class IdCounts:
    """How many ids of ``width`` columns are missing and unknown."""

    def __init__(self, width: int) -> None:
        self.total = 0
        self.missing, self.unknown = np.zeros(width, np.int64), np.zeros(width, np.int64)

    def add(self, ids: np.ndarray) -> None:
        """``ids`` (n, width)."""
        self.total += len(ids)
        self.missing += (ids == MISSING_ID).sum(axis=0)
        self.unknown += (ids == UNKNOWN_ID).sum(axis=0)

    def coverages(self) -> list[Coverage]:
        return [Coverage(int(m), int(u), self.total) for m, u in zip(self.missing, self.unknown, strict=True)]


class SplitCollector:
    """Adds up the chunks of one split."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.read = 0
        self.positives = np.zeros(len(schema.tasks))
        self.quarters = Tally(len(schema.tasks))
        self.dense, self.weight = Moments(len(schema.dense)), Moments(1)
        self.sparse = IdCounts(len(schema.sparse))
        self.bags = {bag.name: (Tally(), IdCounts(1)) for bag in schema.bags}
        self.histories = [Tally() for _ in schema.events]

    def add(self, chunk: Chunk) -> None:
        """DataError: a request time is no unix second."""
        if not len(chunk.labels):
            return
        self.read += len(chunk.labels)
        self.positives += chunk.labels.sum(axis=0, dtype=np.float64)
        if chunk.request_time is not None:
            for time in (int(chunk.request_time.min()), int(chunk.request_time.max())):
                if not CALENDAR[0] <= time < CALENDAR[1]:
                    raise DataError(f"request_time {time} lies outside the calendar; times are unix seconds")
            self.quarters.add(chunk.request_time // QUARTER, chunk.labels)
        if chunk.dense is not None:
            self.dense.add(chunk.dense)
        if chunk.sparse is not None:
            self.sparse.add(chunk.sparse)
        if chunk.pointers is not None:
            for tally, lengths in zip(self.histories, chunk.pointers.T, strict=True):
                tally.add(lengths)
        if chunk.weight is not None:
            self.weight.add(chunk.weight[:, None])
        for name, (values, lengths) in chunk.bags.items():
            tally, ids = self.bags[name]
            tally.add(lengths)
            ids.add(values[:, None])

    def result(self, name: str, rows: int | None, timezone: ZoneInfo) -> SplitResult:
        """``rows``: how many the split has, where not all were added."""
        schema = self.schema
        return SplitResult(
            name=name,
            rows=self.read if rows is None else rows,
            read=self.read,
            positives=tuple(int(n) for n in self.positives),
            days=days(self.quarters, timezone),
            sparse=dict(zip((f.name for f in schema.sparse), self.sparse.coverages(), strict=True)),
            dense=dict(zip(schema.dense, self.dense.spreads(), strict=True)),
            bags={n: Bag(tally.lengths(), ids.coverages()[0]) for n, (tally, ids) in self.bags.items()},
            histories={e.name: t.lengths() for e, t in zip(schema.events, self.histories, strict=True)},
            weight=self.weight.spreads()[0] if self.weight.count else None,
        )


def collect(
    schema: FeatureSchema,
    chunks: Iterable[tuple[str, Chunk]],
    timezone: ZoneInfo,
    rows: dict[str, int] | None = None,
) -> tuple[SplitResult, ...]:
    """The figures of every split among ``chunks`` (split, chunk), in any order.

    ``rows``: split → rows that it has, where the chunks are a sample; its splits are shown even without any chunk.
    """
    collectors = {split: SplitCollector(schema) for split in rows or ()}
    for split, chunk in chunks:
        collectors.setdefault(split, SplitCollector(schema)).add(chunk)
    return tuple(c.result(split, (rows or {}).get(split), timezone) for split, c in collectors.items())


def days(quarters: Tally, timezone: ZoneInfo) -> tuple[Day, ...]:
    """Quarters of an hour → the calendar days of ``timezone``."""
    found: dict[date, np.ndarray] = {}
    for quarter, sums in zip(quarters.keys.tolist(), quarters.sums, strict=True):
        day = datetime.fromtimestamp(quarter * QUARTER, UTC).astimezone(timezone).date()
        found[day] = found.get(day, 0) + sums
    return tuple(Day(day, int(n), tuple(int(p) for p in positives)) for day, (n, *positives) in sorted(found.items()))
