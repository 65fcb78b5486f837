"""Encoders fitted on the training split: vocabularies, feature hashing, dense standardisation.

Everything is an Ibis expression or exact arithmetic on counted values, so that every engine and every number of
threads gives the same ids and the same statistics. Ids: 0 = missing, 1 = not in the vocabulary, 2… = known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from data.preparation import Workspace, count_rows
from kunlun.features import MISSING_ID, UNKNOWN_ID, Table

FIRST_ID = UNKNOWN_ID + 1
WORD = 0xFFFFFFFF
MULTIPLIER = 0x45D9F3B  # below 2^31: its product with a 32-bit word fits int64, so no engine overflows
CHUNK = 2**20  # distinct values whose moments are taken at once
HEX = "0123456789abcdef"
Integer = TypeVar("Integer", int, ir.IntegerValue)


@dataclass(frozen=True)
class Vocabulary:
    """``values`` has (value, id, count), most frequent first; ``table`` is the id space."""

    values: ir.Table
    table: Table


def fit_vocabulary(
    workspace: Workspace, column: ir.Column, name: str, min_count: int, keep_rare: bool = False
) -> Vocabulary:
    """Ids for the values of ``column`` (nulls left out) that occur at least ``min_count`` times.

    By falling count, then by value. ``keep_rare`` keeps the others in ``values`` too, as unknown, for their counts.
    """
    counts = count_values(column)
    known = counts["count"] >= min_count
    rank = ibis.row_number().over(ibis.window(order_by=[counts["count"].desc(), counts["value"]]))
    values = counts.mutate(id=ibis.ifelse(known, rank + FIRST_ID, UNKNOWN_ID))
    if not keep_rare:
        values = values.filter(values["id"] >= FIRST_ID)
    values = workspace.save(values, f"vocabulary-{name}")
    known_values = count_rows(values.filter(values["id"] >= FIRST_ID))
    return Vocabulary(values, Table(rows=FIRST_ID + known_values, encoding="vocabulary", min_count=min_count))


def look_up(table: ir.Table, fields: Mapping[str, tuple[str, Vocabulary]], counts: bool = False) -> ir.Table:
    """Add ``id:<field>`` for every field → (column, vocabulary): the ids of the column's values.

    With ``counts`` also ``count:<field>``: how often the value occurs in training, null where it is missing.
    """
    joined = table
    for name, (column, vocabulary) in fields.items():
        values = vocabulary.values
        values = values.select(
            **{f"value:{name}": values["value"], f"known:{name}": values["id"], f"seen:{name}": values["count"]}
        )
        joined = joined.left_join(values, table[column] == values[f"value:{name}"])
    added: dict[str, ir.Value] = {}
    for name, (column, _) in fields.items():
        present = joined[column].notnull()
        added[f"id:{name}"] = ibis.ifelse(present, joined[f"known:{name}"].fill_null(UNKNOWN_ID), MISSING_ID)
        if counts:
            added[f"count:{name}"] = ibis.ifelse(present, joined[f"seen:{name}"].fill_null(0), ibis.null("int64"))
    return joined.select(*(joined[name] for name in table.columns), **added)


def mix(word: Integer) -> Integer:
    """Scramble a 32-bit word: a one-to-one map in which every input bit reaches every output bit."""
    word = ((word ^ (word >> 16)) * MULTIPLIER) & WORD
    word = ((word ^ (word >> 16)) * MULTIPLIER) & WORD
    return word ^ (word >> 16)


def hash_integer(value: Integer, *salts: int) -> Integer:
    """A 32-bit hash of an int64 value, for Python integers and Ibis columns alike, without overflow in int64."""
    start = 0x9E3779B9
    for salt in salts:
        start = mix(start ^ (salt & WORD))
    # Masked before it is shifted: an engine may hold the value in 32 bits, where a shift by 32 is none.
    return mix(mix((((value & ~WORD) >> 32) & WORD) ^ start) ^ (value & WORD))


def hash_text(text: ir.StringValue) -> ir.IntegerValue:
    """A 32-bit hash of a string: the first eight hexadecimal digits of its MD5."""
    digest = text.hexdigest("md5")
    # Masked, because an engine may find a place of 32 bits, and the product needs more.
    digits = [(ibis.literal(HEX).find(digest.substr(i, 1)) & WORD) * 16 ** (7 - i) for i in range(8)]
    return sum(digits[1:], digits[0])


def hash_id(hashed: ir.IntegerValue, rows: int) -> ir.IntegerValue:
    """The id of a hashed value in a table of ``rows`` rows; a missing value stays missing."""
    return (hashed % (rows - FIRST_ID) + FIRST_ID).fill_null(MISSING_ID)


def number_values(workspace: Workspace, table: ir.Table, column: str, name: str) -> ir.Table:
    """``column`` and ``name``: the distinct values of a column and their places from 0, in rising order."""
    values = table.select(column).distinct()
    place = ibis.row_number().over(ibis.window(order_by=values[column]))
    return workspace.save(values.mutate(**{name: place}), f"numbered_{column}")


def count_values(column: ir.Column) -> ir.Table:
    """``value`` and ``count`` of each distinct value but null."""
    values = column.name("value").as_table()
    return values.filter(values.value.notnull()).group_by("value").aggregate(count=lambda t: t.count())


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The values and counts, CHUNK rows at a time."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    size = 0
    for batch in batches:
        waiting.append((batch.column("value").to_numpy(), batch.column("count").to_numpy()))
        size += batch.num_rows
        while size >= CHUNK:
            values, counts = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            yield values[:CHUNK], counts[:CHUNK]
            waiting, size = [(values[CHUNK:], counts[CHUNK:])], size - CHUNK
    if size:
        values, counts = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        yield values, counts


@dataclass(frozen=True)
class Standardisation:
    """(transform(x) - mean) / std, and 0 where x is missing; mean and std are those of the training split."""

    transform: Literal["log", "standard"]
    mean: float
    std: float

    @classmethod
    def fit(
        cls, workspace: Workspace, column: ir.NumericColumn, transform: Literal["log", "standard"]
    ) -> Standardisation:
        """From the counts of the distinct values: the same for any order of the rows, in the memory of CHUNK values.

        Chunks are cut at fixed places, so that the result does not depend on how an engine cuts its batches.
        """
        rows, mean, square = 0, 0.0, 0.0
        for values, counts in _chunks(workspace.batches(count_values(column).order_by("value"))):
            part_mean, variance = _moments(values, counts, transform)
            more = int(counts.sum())
            gap, total = part_mean - mean, rows + more
            square += variance * more + gap * gap * rows * more / total
            mean, rows = mean + gap * (more / total), total
        return cls._of(transform, rows, mean, square / max(rows, 1))

    @classmethod
    def of_counts(
        cls, values: np.ndarray, counts: np.ndarray, transform: Literal["log", "standard"]
    ) -> Standardisation:
        """From distinct ``values`` and how often each occurs."""
        rows = int(counts.sum())
        return cls._of(transform, rows, *(_moments(values, counts, transform) if rows else (0.0, 0.0)))

    @classmethod
    def _of(cls, transform: Literal["log", "standard"], rows: int, mean: float, variance: float) -> Standardisation:
        """A constant column, or one without values, gets std 1."""
        std = float(np.sqrt(variance))
        return cls(transform, mean, std if rows and std > 0 else 1.0)

    def apply(self, column: ir.NumericValue) -> ir.FloatingValue:
        x = column.cast("float64")
        if self.transform == "log":
            x = x.sign().cast("float64") * (x.abs() + 1.0).ln()
        return ((x - self.mean) / self.std).fill_null(0.0).cast("float32")

    def provenance(self) -> dict[str, Any]:
        return asdict(self)


def _moments(values: np.ndarray, counts: np.ndarray, transform: str) -> tuple[float, float]:
    """Mean and variance of the transformed ``values`` (distinct, at least one), each ``counts`` times."""
    x = values.astype(np.float64)
    if transform == "log":
        x = np.sign(x) * np.log1p(np.abs(x))
    if x.size == 1:  # exactly: rounding would leave a mean beside it, and a spread
        return float(x[0]), 0.0
    mean = float(np.average(x, weights=counts))
    return mean, float(np.average((x - mean) ** 2, weights=counts))
