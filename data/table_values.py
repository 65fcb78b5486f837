"""Columns of any Arrow type as what they mean: categories, labels, numbers, times, lists of categories.

A role looks at a column's type first, which may rule out the whole file; then it converts batch by batch and says of
every row whether its value is good. Nothing is done per row in Python unless a row is bad.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.table_schema import Unit

Kind = Literal["integer", "text"]
END = 4_102_444_800  # 2100-01-01 in UTC
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
INTEGER = r"^-?[0-9]{1,18}$"
NUMBER = r"^[-+]?([0-9]{1,200}\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$"
ZONED = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
CLOCK = r"[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
ISO = rf"^(19|20|21)[0-9]{{2}}-[0-9]{{2}}-[0-9]{{2}}({CLOCK})?({ZONED[:-1]})?$"
LARGEST = 1e30  # squares and sums of such numbers are still finite, and they fit float32

Converted = tuple[pa.Array, np.ndarray]  # the values, and (rows,) bool: which are good


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type behind a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


class Role(ABC):
    """What a column is."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """Completes "expected …"."""

    @property
    @abstractmethod
    def staged(self) -> pa.DataType:
        """The type that values are converted to."""

    @abstractmethod
    def refuses(self, kind: pa.DataType) -> str | None:
        """What to do, where no value of such a type can be one of this role; None: they can."""

    @abstractmethod
    def convert(self, column: pa.Array) -> Converted:
        """Values of type ``staged``; a bad row's value is arbitrary."""


def category_kind(kind: pa.DataType) -> Kind | None:
    """What categories of that type are kept as; None: the column has nothing but nulls."""
    kind = value_type(kind)
    if pa.types.is_null(kind):
        return None
    return "integer" if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else "text"


@dataclass(frozen=True)
class Category(Role):
    """Whole numbers (as int64) or text; ``missing`` texts are null."""

    kind: Kind
    missing: Sequence[str]
    required: bool = False
    expected: str = "a value"

    @property
    def staged(self) -> pa.DataType:
        return pa.int64() if self.kind == "integer" else pa.string()

    def refuses(self, kind: pa.DataType) -> str | None:
        kind = value_type(kind)
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return (
                "numbers with fractions name no categories; write whole numbers or text (in pandas, where a missing "
                "value made it floats: .astype('Int64'))"
            )
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_text(kind) or pa.types.is_null(kind):
            return None
        return "a category is a whole number, text or true/false; write it as one of these"

    def convert(self, column: pa.Array) -> Converted:
        values = plain(column)
        if self.kind == "integer":
            if pa.types.is_uint64(values.type):
                values = values.view(pa.int64())  # beyond int64: the same bits, so different values stay different
            values = values.cast(pa.int64())
        else:
            values = drop_missing(values.cast(pa.string()), self.missing)
        return values, values.is_valid().to_numpy(False) if self.required else np.ones(len(values), bool)


@dataclass(frozen=True)
class Choice(Role):
    """A value of a list: text → the name it stands for; any other value → ``other``, where there is one."""

    names: dict[str, str]
    missing: Sequence[str] = ()
    other: str | None = None
    staged = pa.string()

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.names)

    def refuses(self, kind: pa.DataType) -> str | None:
        return Category("text", self.missing).refuses(kind)

    def convert(self, column: pa.Array) -> Converted:
        texts, _ = Category("text", self.missing).convert(column)
        place = pc.index_in(texts, pa.array(list(self.names), pa.string()))
        found = pa.array(list(self.names.values()), pa.string()).take(place)
        if self.other is not None:
            found = found.fill_null(self.other)
        return found, found.is_valid().to_numpy(False)


class Label(Role):
    """0 or 1, or false or true."""

    expected = "the label, 0 or 1 (or true or false)"
    staged = pa.int64()
    WORDS = pa.array(["0", "false", "0.0", "1", "true", "1.0"])

    def refuses(self, kind: pa.DataType) -> str | None:
        kind = value_type(kind)
        good = pa.types.is_boolean(kind) or is_number(kind) or is_text(kind) or pa.types.is_null(kind)
        return None if good else "a label is 0 or 1, or false or true"

    def convert(self, column: pa.Array) -> Converted:
        values = plain(column)
        if is_text(values.type):
            place = pc.index_in(pc.utf8_lower(values.cast(pa.string())), self.WORDS)
            values = pc.greater_equal(place, 3)
        values = values.cast(pa.float64(), safe=False)
        good = values.is_valid().to_numpy(False) & np.isin(floats(values), (0.0, 1.0))
        return pa.array(np.where(good, floats(values), 0).astype(np.int64)), good


@dataclass(frozen=True)
class Number(Role):
    """A finite number; null = missing, unless it is ``required``."""

    missing: Sequence[str]
    required: bool = False
    least: float = -LARGEST
    expected: str = f"a finite number below {LARGEST:g} in size, or nothing"
    staged = pa.float64()

    def refuses(self, kind: pa.DataType) -> str | None:
        kind = value_type(kind)
        good = is_number(kind) or is_text(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind)
        return None if good else "a number is needed"

    def convert(self, column: pa.Array) -> Converted:
        values = plain(column)
        good = np.ones(len(values), bool)
        if is_text(values.type):
            values = drop_missing(values.cast(pa.string()), self.missing)
            good = pc.match_substring_regex(values, NUMBER).fill_null(True).to_numpy(False)
            values = keep(values, good)
        values = values.cast(pa.float64(), safe=False)
        there = values.is_valid().to_numpy(False)
        numbers = floats(values)
        with np.errstate(invalid="ignore"):  # nan is what is looked for
            fine = (numbers >= self.least) & (numbers <= LARGEST)
        good = good & np.where(there, fine, not self.required)
        return keep(values, good), good


@dataclass(frozen=True)
class Time(Role):
    """Unix seconds, cut to whole ones; or nanoseconds, where ``precise``."""

    unit: Unit
    zone: str | None
    precise: bool = False
    staged = pa.int64()

    @property
    def expected(self) -> str:
        unit = "a timestamp" if self.unit == "timestamp" else f"a time in {self.unit} since 1970"
        return f"{unit}, between 1970 and 2100"

    def refuses(self, kind: pa.DataType) -> str | None:
        kind = value_type(kind)
        is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if is_text(kind) or pa.types.is_null(kind):
            return None
        if self.unit != "timestamp":
            good = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            return None if good else "write unit: timestamp" if is_time else "a time is needed"
        if not is_time:
            return "say what its numbers count: unit: s, ms, us or ns" if is_number(kind) else "a time is needed"
        if not (pa.types.is_timestamp(kind) and kind.tz) and self.zone is None:
            return "these times have no time zone; name it, as in zone: +08:00"
        return None

    def convert(self, column: pa.Array) -> Converted:
        values = plain(column)
        if self.unit == "timestamp":
            ticks, per_second, good = self._timestamps(values)
        else:
            ticks, per_second, good = self._counts(values)
        good = good & (ticks >= 0) & (ticks < END * per_second)
        ticks = np.where(good, ticks, 0)
        seconds = np.floor(ticks / per_second) if ticks.dtype == np.float64 else ticks // per_second
        seconds = seconds.astype(np.int64)
        if self.precise:
            rest = (ticks - seconds * per_second) * (PER_SECOND["ns"] // per_second)
            seconds = seconds * PER_SECOND["ns"] + rest.astype(np.int64)
        return pa.array(seconds), good

    def _counts(self, values: pa.Array) -> tuple[np.ndarray, int, np.ndarray]:
        """Numbers of the unit, how many of it make a second, and which rows are good."""
        per_second = PER_SECOND[self.unit]
        good = values.is_valid().to_numpy(False)
        if is_text(values.type):
            values = values.cast(pa.string())
            good = good & pc.match_substring_regex(values, NUMBER).fill_null(False).to_numpy(False)
            values = keep(values, good)
            # Nanoseconds have more digits than a float: numbers without a fraction stay whole.
            whole = pc.all(pc.match_substring_regex(values, INTEGER), min_count=0).as_py()
            values = values.cast(pa.int64() if whole else pa.float64())
        if pa.types.is_floating(values.type):
            numbers = floats(values)
            good = good & np.isfinite(numbers)
            return np.where(good, numbers, 0.0), per_second, good
        if pa.types.is_uint64(values.type):
            values = values.view(pa.int64())  # what is too large becomes negative, which is bad as well
        return values.cast(pa.int64()).fill_null(0).to_numpy(), per_second, good

    def _timestamps(self, values: pa.Array) -> tuple[np.ndarray, int, np.ndarray]:
        if is_text(values.type):
            return self._texts(values.cast(pa.string()))
        good = values.is_valid().to_numpy(False)
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("ms"))
        if not values.type.tz:
            values = self._place(values)
        return values.cast(pa.int64()).fill_null(0).to_numpy(), PER_SECOND[values.type.unit], good

    def _place(self, values: pa.Array) -> pa.Array:
        """Times of the zone; where clocks are put back the first, where they are put forward the next that exists."""
        return pc.assume_timezone(values, self.zone, ambiguous="earliest", nonexistent="latest")

    def _texts(self, values: pa.Array) -> tuple[np.ndarray, int, np.ndarray]:
        good = pc.match_substring_regex(values, ISO).fill_null(False).to_numpy(False)
        zoned = pc.match_substring_regex(values, ZONED).fill_null(False).to_numpy(False)
        if self.zone is None:
            good = good & zoned
        ticks = np.zeros(len(values), np.int64)
        for rows, zone in ((good & zoned, "UTC"), (good & ~zoned, None)):
            texts = values.filter(pa.array(rows))
            try:
                times = texts.cast(pa.timestamp("ns", zone))
            except pa.ArrowInvalid:  # a month 13 or the like
                real = np.array([_is_real(text) for text in texts.to_pylist()])
                good[np.flatnonzero(rows)[~real]] = False
                rows = rows & good
                times = texts.filter(pa.array(real)).cast(pa.timestamp("ns", zone))
            times = times if zone else self._place(times) if self.zone else times
            ticks[rows] = times.cast(pa.int64()).to_numpy()
        return ticks, PER_SECOND["ns"], good


@dataclass(frozen=True)
class Bag(Role):
    """Lists of categories, without missing elements, of at most ``max_length``."""

    element: Category
    separator: str | None
    max_length: int | None
    expected: str = "a list"

    @property
    def staged(self) -> pa.DataType:
        return pa.list_(self.element.staged)

    def refuses(self, kind: pa.DataType) -> str | None:
        kind = value_type(kind)
        if is_list(kind):
            if self.separator is not None:
                return "it holds lists, so there is nothing to part; remove separator"
            return self.element.refuses(kind.value_type)
        if pa.types.is_null(kind) or (is_text(kind) and self.separator is not None):
            return None
        if is_text(kind):
            return "say what parts the elements of the text, as in separator: '|'"
        return "a column of lists is needed, or text with a separator"

    def convert(self, column: pa.Array) -> Converted:
        values = plain(column)
        if pa.types.is_null(values.type):
            values = values.cast(pa.list_(pa.string()))
        elif is_text(values.type):
            values = pc.split_pattern(values.cast(pa.string()), self.separator)
        lengths = pc.list_value_length(values).fill_null(0).to_numpy(False)
        elements, _ = self.element.convert(values.flatten())
        there = elements.is_valid().to_numpy(False)
        owner, kept = np.repeat(np.arange(len(values)), lengths)[there], np.flatnonzero(there)
        if self.max_length is not None:
            first = np.arange(owner.size) - np.searchsorted(owner, owner) < self.max_length
            owner, kept = owner[first], kept[first]
        offsets = np.searchsorted(owner, np.arange(len(values) + 1)).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), elements.take(pa.array(kept)))
        return lists, np.ones(len(values), bool)


def plain(column: pa.Array) -> pa.Array:
    """Without a dictionary."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def drop_missing(texts: pa.Array, missing: Sequence[str]) -> pa.Array:
    """Null for every one of ``missing``."""
    return pc.if_else(pc.is_in(texts, pa.array(missing, pa.string())), pa.scalar(None, pa.string()), texts)


def keep(values: pa.Array, good: np.ndarray) -> pa.Array:
    """Null where a value is not good."""
    return pc.if_else(pa.array(good), values, pa.scalar(None, values.type))


def floats(values: pa.Array) -> np.ndarray:
    """Of a float column, nan where it is null."""
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _is_real(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
