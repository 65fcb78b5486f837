"""What the columns of your own tables mean: the YAML file of ``prepare table``, as typed classes.

Short forms: a list of names stands for a mapping of those names to their defaults, and a column is called like its
field unless it says otherwise. ``data.table_faults`` reads the file and tells what is wrong with it.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Literal

from data.builder import Encoding

Unit = Literal["s", "ms", "us", "ns", "timestamp"]
Policy = Literal["vocabulary", "hash"]


@dataclass(frozen=True)
class TimeColumn:
    """A column of times between 1970 and 2100; fractions of a second are cut off."""

    column: str
    """Its name in the table."""
    unit: Unit
    """What its numbers count since 1970 in UTC: s, ms, us, ns. Or timestamp: a column of that type, or text as ISO
    8601 writes it, such as 2024-01-05T08:30:00+01:00."""
    zone: str | None = None
    """The time zone of timestamps that carry none: +08:00, or a name such as Asia/Shanghai."""


@dataclass(frozen=True)
class DenseColumn:
    """A number, standardised by mean and deviation on train; null = missing, which becomes the mean."""

    column: str | None = None
    """Its name in the table, if it is not the name of the feature."""
    transform: Literal["log", "standard"] = "log"
    """log: sign(x) log(1 + |x|) first, for prices and counts; standard: as it is."""


@dataclass(frozen=True)
class CategoryColumn:
    """A category: whole numbers, text or true/false; null and empty text = missing."""

    column: str | None = None
    """Its name in the table, if it is not the name of the field."""
    table: str | None = None
    """Its embedding table, if not one of its own. Fields of the impression and of events that name the same table
    share its ids: an item clicked before is then the same item as the one shown now."""
    policy: Policy | None = None
    """vocabulary: an id for every value seen often enough in train. hash: ids by a hash of the value. Default:
    vocabulary. Fields of one table share one policy: say it at one of them, or the same at all."""
    min_count: int | None = None
    """vocabulary: values seen less often are 'unknown'. Default: the min_count of the whole file."""
    rows: int | None = None
    """hash: rows of the table, the two reserved ids included."""

    def states_policy(self) -> bool:
        return any(stated is not None for stated in (self.policy, self.min_count, self.rows))


@dataclass(frozen=True)
class BagColumn(CategoryColumn):
    """Several categories at once: a column of lists, or text with a separator. Missing elements are left out."""

    separator: str | None = None
    """What parts the elements, where the column is text."""
    pooling: Literal["mean", "sum"] = "mean"
    """How the model makes one vector of them."""
    max_length: int | None = None
    """Keep this many from the beginning of each list; default: all."""


@dataclass(frozen=True)
class EventColumns:
    """The event log that histories are made of."""

    fields: dict[str, CategoryColumn | None] | list[str]
    """What an event shows, as for sparse."""
    types: dict[str, str | int | bool | list[str | int | bool]] | list[str | int | bool] | None = None
    """The event types: a list of values of the type column, or a mapping of names to a value or several. Without a
    type column: the one name for all events, in a list; default: event."""
    type: str | None = None
    """The column that tells the type; without it all events are of one."""
    other_types: Literal["error", "drop"] = "error"
    """An event of another type is a bad row, or is left out and counted."""
    user: str | None = None
    """The user's column, if it is called otherwise than among the impressions."""
    time: str | TimeColumn | None = None
    """When it happened, if not told as among the impressions; a name alone: another column, told the same way."""
    known: str | TimeColumn | None = None
    """When it became known, for conversions that are reported late: it counts from then on, and shows this time."""


@dataclass(frozen=True)
class Split:
    """Which impressions are train, valid and test."""

    by: Literal["time", "user", "row", "column", "files"] | None = None
    """time: the future is the test, as in production. user, row: a hash of the user or of the row's number. column:
    what a column says. files: each split has its own. Default: time where there are times, else user, else row."""
    train: str | int | bool | list[str | int | bool] | None = None
    """column: the value, or values, of the split (default: train). files: a file, folder or pattern (*) in the folder
    of --impressions. Otherwise train is what the others leave."""
    valid: str | int | float | bool | list[str | int | bool] | None = None
    """As train; by time, user or row: the share of the rows (default: 0.1); by time also when it begins, such as
    2024-01-05T00:00:00+01:00. 0 or []: none."""
    test: str | int | float | bool | list[str | int | bool] | None = None
    """As valid."""
    column: str | None = None
    """by column: the name of the column."""
    seed: int = 0
    """by user or row: another seed, another split."""


@dataclass(frozen=True)
class TableSchema:
    """The description of an impression table and, where there is one, of its event log."""

    labels: str | list[str] | dict[str, str]
    """The columns of 0/1 or true/false, one per task; a mapping gives tasks other names than the columns have."""
    name: str = "table"
    """The name of the data set."""
    user: str | None = None
    """The column of users: whole numbers or text. Needed for histories and for GAUC."""
    time: TimeColumn | None = None
    """When the impression was requested. Needed for histories."""
    dense: dict[str, DenseColumn | Literal["log", "standard"] | None] | list[str] = field(default_factory=list)
    """The numbers: names, or a mapping of names to log, standard, or {column, transform}."""
    sparse: dict[str, CategoryColumn | None] | list[str] = field(default_factory=list)
    """The categories: names, or a mapping of names to {column, table, policy, min_count, rows}."""
    bags: dict[str, BagColumn | None] | list[str] = field(default_factory=list)
    """The lists of categories; as sparse, and {separator, pooling, max_length}."""
    key: str | None = None
    """A column that names each row, whole numbers or text, for predictions; default: the row's number."""
    weight: str | None = None
    """A column of weights of the rows, ≥ 0; default: all 1."""
    events: EventColumns | None = None
    """The event log of --events."""
    split: Split = field(default_factory=Split)
    """Which rows are train, valid and test."""
    min_count: int = 2
    """Values of vocabularies that train has less often are 'unknown'. With 1 training never meets an unknown value,
    so it learns nothing for those to come."""
    missing: list[str] = field(default_factory=lambda: [""])
    """Texts that mean missing, for example ["", "NULL"]."""
    delimiter: str | None = None
    """What parts the columns of text files; default: a comma for .csv, a tab for .tsv and .txt."""

    def tasks(self) -> dict[str, str]:
        """Task → column."""
        if isinstance(self.labels, str):
            return {self.labels: self.labels}
        return dict(self.labels) if isinstance(self.labels, Mapping) else {name: name for name in self.labels}

    def dense_columns(self) -> dict[str, DenseColumn]:
        made: dict[str, DenseColumn] = {}
        for name, given in _named(self.dense).items():
            made[name] = given if isinstance(given, DenseColumn) else DenseColumn(transform=given or "log")
        return {name: replace(column, column=column.column or name) for name, column in made.items()}

    def sparse_columns(self) -> dict[str, CategoryColumn]:
        return _categories(self.sparse, CategoryColumn())

    def bag_columns(self) -> dict[str, BagColumn]:
        return _categories(self.bags, BagColumn())

    def event_columns(self) -> dict[str, CategoryColumn]:
        return _categories(self.events.fields, CategoryColumn()) if self.events else {}

    def event_types(self) -> dict[str, list[str]]:
        """Event type → the values of the type column, as text."""
        if self.events is None:
            return {}
        given = _named(self.events.types or ["event"])
        return {name: as_texts(name if value is None else value) for name, value in given.items()}

    def event_time(self, which: Literal["time", "known"]) -> TimeColumn | None:
        """The column of when events happened, or became known."""
        given = getattr(self.events, which)
        if isinstance(given, TimeColumn):
            return given
        happened = self.time if which == "time" else self.event_time("time")
        if given is None or happened is None:
            return happened if which == "time" else None
        return replace(happened, column=given)

    def split_by(self) -> str:
        return self.split.by or ("time" if self.time else "user" if self.user else "row")

    def split_values(self, name: str) -> list[str]:
        """By column: the values of the split ``name`` as text; by files: its files."""
        given = getattr(self.split, name)
        if given is None:
            return [name] if self.split_by() == "column" else []
        return as_texts(given)

    def split_points(self) -> tuple[float, float] | tuple[datetime, datetime | None]:
        """By time, user or row: the shares of valid and test, or when each begins. ValueError: it is neither."""
        valid, test = self.split.valid, self.split.test
        if self.split_by() == "time" and (isinstance(valid, str) or isinstance(test, str)):
            begin, then = self._date("valid", valid), None if test is None else self._date("test", test)
            if then is not None and then <= begin:
                raise ValueError(f"test: must begin after valid, not at {test!r}")
            return begin, then
        shares = _share("valid", valid), _share("test", test)
        if sum(shares) >= 1:
            raise ValueError(f"valid: {shares[0]:g} and test {shares[1]:g} leave no rows to train")
        return shares

    def _date(self, name: str, given: Any) -> datetime:
        if not isinstance(given, str):
            raise ValueError(f"{name}: must be a time like the other, such as 2024-01-05T00:00:00+01:00, not {given!r}")
        try:
            time = datetime.fromisoformat(given)
        except ValueError:
            raise ValueError(f"{name}: {given!r} is no time such as 2024-01-05T00:00:00+01:00, and no share") from None
        zone = self.time.zone if self.time else None
        if time.tzinfo is None and zone is None:
            raise ValueError(f"{name}: {given!r} lacks the time zone, as in 2024-01-05T00:00:00+01:00")
        return time if zone is None or time.tzinfo else time.replace(tzinfo=find_zone(zone))

    def encodings(self) -> dict[str, Encoding]:
        """Table → how its values become ids, in the order of the fields."""
        found: dict[str, Encoding] = {}
        fields = [*self.sparse_columns().items(), *self.bag_columns().items(), *self.event_columns().items()]
        for stated in (True, False):  # fields that say nothing follow those that do
            for name, column in fields:
                if stated == column.states_policy():
                    found.setdefault(column.table or name, self.encoding(column))
        return {name: found[name] for name in dict.fromkeys(column.table or n for n, column in fields)}

    def encoding(self, column: CategoryColumn) -> Encoding:
        if column.policy == "hash":
            return Encoding("hash", rows=column.rows or 0)
        return Encoding("vocabulary", column.min_count or self.min_count)


def as_texts(value: Any) -> list[str]:
    """A value or a list of values as the texts that a column of them is read as."""
    values = value if isinstance(value, list) else [value]
    return [str(v).lower() if isinstance(v, bool) else str(v) for v in values]


def find_zone(name: str) -> tzinfo:
    """The zone called ``name``, or that far from UTC. ValueError: there is none."""
    offset = re.fullmatch(r"([+-])(\d\d):(\d\d)", name)
    if offset:
        sign, hours, minutes = offset.groups()
        return timezone(timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; write +08:00, or a name such as Asia/Shanghai") from None


def _share(name: str, given: Any) -> float:
    if given is None:
        return 0.1
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < 1:
        raise ValueError(f"{name}: must be a share of the rows, at least 0 and below 1, not {given!r}")
    return float(given)


def _named(given: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {str(name): None for name in given}


def _categories(given: Any, default: Any) -> dict[str, Any]:
    """Field → column, with the names that were left out."""
    columns = {name: column or default for name, column in _named(given).items()}
    return {n: replace(c, column=c.column or n, table=c.table or n) for n, c in columns.items()}
