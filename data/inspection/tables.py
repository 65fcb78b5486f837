"""An inspection as titled tables of words and figures, the same for the terminal and for the page."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.inspection.results import PERCENTILES, Coverage, Inspection, Spread


@dataclass(frozen=True)
class Column:
    """``group`` stands above neighbours of the same group; long text is broken where ``wraps``."""

    title: str
    number: bool = True
    group: str = ""
    wraps: bool = False


@dataclass(frozen=True)
class Section:
    """One table. ``repeats``: that many first columns hold the same for several rows, and need it only once."""

    key: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    repeats: int = 0

    def groups(self) -> list[tuple[str, list[int]]]:
        """Neighbouring columns of one group: its name ("" for none) and their places."""
        runs = itertools.groupby(range(len(self.columns)), key=lambda i: self.columns[i].group)
        return [(name, list(places)) for name, places in runs]


def sections(found: Inspection, own: Sequence[Section] = ()) -> list[Section]:
    """All that there is to show, in order, ``own`` after the overview; what the data set does not have is left out."""
    parts = [
        _overview(found),
        *own,
        _splits(found),
        _days(found),
        _coverage(found),
        _tables(found),
        _dense(found),
        _bags(found),
        _weights(found),
        _histories(found),
        _stored(found),
        _sizes(found),
        _sources(found),
        _provenance(found),
    ]
    return [part for part in parts if part.rows]


def count(number: int) -> str:
    return f"{number:,}"


def share(part: float, whole: float = 1.0) -> str:
    """A percentage; what is not quite nothing or everything does not read as if it were."""
    if not whole or math.isnan(part):
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.005:
        return "<0.01%"
    if 99.995 <= percent < 100:
        return ">99.99%"
    return "0%" if percent == 0 else "100%" if percent == 100 else f"{percent:.2f}%"


def figure(number: float) -> str:
    """Four digits, so that figures of one kind stand in line."""
    if math.isnan(number):
        return "–"
    if number == 0 or 1e-3 <= abs(number) < 1e3:
        return f"{number:#.4g}" if abs(number) < 999.95 else f"{number:.0f}"
    return f"{number:,.0f}" if 1 < abs(number) < 1e7 else f"{number:.2e}"


def size(number: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.3g} {units[0]}"


def rows_read(found: Inspection) -> str:
    """How much was looked at, as a sentence."""
    if not found.sampled:
        return f"All {count(found.read)} rows were read."
    runs = "in short runs spread evenly over each split"
    return (
        f"A sample: {count(found.read)} of {count(found.rows)} rows were read, {runs}. Shares are those of the sample."
    )


def _overview(found: Inspection) -> Section:
    schema = found.schema
    facts = {"Data set": schema.name, "Where": found.place, "Rows": count(found.rows)}
    if found.sampled:
        facts["Read"] = rows_read(found)
    facts["Labels"] = ", ".join(f"{task.name} (positive in train: {share(task.train_rate)})" for task in schema.tasks)
    kinds = {"dense": schema.dense, "sparse": schema.sparse, "multi-valued": schema.bags}
    facts["Fields"] = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    facts["Event types"] = ", ".join(event.name for event in schema.events) or "none: there are no histories"
    days = [day.day for split in found.splits for day in split.days]
    if days:
        facts["Days"] = f"{min(days)} … {max(days)} ({found.timezone})"
    else:
        facts["Days"] = "unknown: rows have no request time" if not schema.request_times else "–"
    if found.bytes_on_disk:
        total = sum(found.bytes_on_disk.values())
        facts["On disk"] = f"{size(total)}, {size(total / max(found.rows, 1))} a row"
    if "created" in schema.provenance:
        facts["Created"] = str(schema.provenance["created"])
    columns = (Column("", number=False), Column("", number=False, wraps=True))
    return Section("overview", "Overview", "", columns, tuple(facts.items()))


def _splits(found: Inspection) -> Section:
    columns = [Column("split", number=False), Column("rows"), Column("share"), *_label_columns(found)]
    if found.sampled:
        columns.insert(3, Column("read"))
    rows = []
    for split in found.splits:
        cells = [split.name, count(split.rows), share(split.rows, found.rows)]
        cells += [count(split.read)] if found.sampled else []
        for positives in split.positives:
            cells += [count(positives), share(positives, split.read)]
        rows.append(tuple(cells))
    return Section(
        "splits",
        "Rows and labels by split",
        "The rate is the share of rows with a positive label.",
        tuple(columns),
        tuple(rows),
    )


def _days(found: Inspection) -> Section:
    rows = []
    for split in found.splits:
        for day in split.days:
            cells = [split.name, f"{day.day:%Y-%m-%d %a}", count(day.rows)]
            for positives in day.positives:
                cells += [count(positives), share(positives, day.rows)]
            rows.append(tuple(cells))
    note = f"Days in {found.timezone}."
    if found.sampled:
        note += " Of the sample: rows and positives are fewer than there are."
    columns = (Column("split", number=False), Column("day", number=False), Column("rows"), *_label_columns(found))
    return Section("days", "Rows and labels by day", note, columns, tuple(rows), repeats=1)


def _label_columns(found: Inspection) -> Iterator[Column]:
    for task in found.schema.tasks:
        yield Column("positives", group=task.name)
        yield Column("rate", group=task.name)


def _coverage(found: Inspection) -> Section:
    columns = [Column("field", number=False)]
    columns += [Column(title, group=s.name) for s in found.splits for title in ("missing", "unknown", "known")]
    rows = []
    for name, of_splits in coverage_by_field(found):
        cells = [name]
        for coverage in of_splits:
            cells += _coverage_cells(coverage)
        rows.append(tuple(cells))
    note = (
        "Missing (id 0): the row has no value. Unknown (id 1): its value is not in the vocabulary, which is fitted on "
        "train. More unknown in test than in train means that values change with time."
    )
    if found.schema.bags:
        note += " Of a multi-valued field, the share of its values."
    return Section("coverage", "Coverage of the categorical fields", note, tuple(columns), tuple(rows))


def coverage_by_field(found: Inspection) -> Iterator[tuple[str, list[Coverage]]]:
    """Every categorical field of the impressions with its coverage in each split."""
    for f in found.schema.sparse:
        yield f.name, [split.sparse[f.name] for split in found.splits]
    for bag in found.schema.bags:
        yield f"{bag.name} (multi-valued)", [split.bags[bag.name].coverage for split in found.splits]


def _coverage_cells(coverage: Coverage) -> list[str]:
    return [share(n, coverage.total) for n in (coverage.missing, coverage.unknown, coverage.known)]


def fields_of_tables(found: Inspection) -> dict[str, list[str]]:
    """Table → the fields that share it, fields of events as ``event.field``."""
    schema = found.schema
    users: dict[str, list[str]] = {name: [] for name in schema.tables}
    for f in schema.sparse:
        users[f.table].append(f.name)
    for bag in schema.bags:
        users[bag.table].append(bag.name)
    for event in schema.events:
        for f in event.fields:
            users[f.table].append(f"{event.name}.{f.name}")
    return users


def _tables(found: Inspection) -> Section:
    columns = (
        Column("table", number=False),
        Column("encoding", number=False),
        Column("rows"),
        Column("min count"),
        Column("fields that share it", number=False, wraps=True),
    )
    users = fields_of_tables(found)
    rows = []
    for name, table in found.schema.tables.items():
        least = count(table.min_count) if table.encoding == "vocabulary" else "–"
        rows.append((name, table.encoding, count(table.rows), least, ", ".join(users[name]) or "none"))
    note = (
        "One embedding table each; its rows include the ids 0 and 1. A vocabulary holds the values with at least the "
        "minimum count in train; a hash has as many rows as it was given; an identity takes the ids as they are."
    )
    return Section("tables", "Id spaces", note, columns, tuple(rows))


def _spread_columns(*first: str) -> tuple[Column, ...]:
    numbers = (Column(title) for title in ("mean", "std", "min", "max", "zeros"))
    return (*(Column(title, number=False) for title in first), *numbers)


def _spread_cells(spread: Spread) -> list[str]:
    numbers = (spread.mean, spread.std, spread.minimum, spread.maximum)
    return [*(figure(number) for number in numbers), share(spread.zeros, spread.count)]


def _dense(found: Inspection) -> Section:
    rows = [
        (name, split.name, *_spread_cells(split.dense[name])) for name in found.schema.dense for split in found.splits
    ]
    note = (
        "As stored: standardised on train by most data sets, so train has mean 0 and std 1. Zeros are values of "
        "exactly 0, which a missing value is often filled with."
    )
    return Section("dense", "Dense fields", note, _spread_columns("field", "split"), tuple(rows), repeats=1)


def _bags(found: Inspection) -> Section:
    columns = (
        *(Column(title, number=False) for title in ("field", "pooling", "split")),
        *(Column(title) for title in ("mean length", "median", "longest", "empty")),
    )
    rows = []
    for bag in found.schema.bags:
        for split in found.splits:
            n = split.bags[bag.name].lengths
            cells = (figure(n.mean), count(n.percentile(50)), count(n.maximum), share(n.share_empty))
            rows.append((bag.name, bag.pooling, split.name, *cells))
    return Section("bags", "Multi-valued fields", "Values per row, pooled to one.", columns, tuple(rows), repeats=2)


def _weights(found: Inspection) -> Section:
    rows = [(split.name, *_spread_cells(split.weight)) for split in found.splits if split.weight]
    return Section("weights", "Weights of the rows", "", _spread_columns("split"), tuple(rows))


def _histories(found: Inspection) -> Section:
    columns = [Column("event", number=False), Column("split", number=False), Column("mean")]
    columns += [Column("median" if p == 50 else f"p{p}") for p in PERCENTILES]
    columns += [Column("max"), Column("empty")]
    if found.max_length:
        columns.append(Column(f"> {count(found.max_length)}"))
    rows = []
    for event in found.schema.events:
        for split in found.splits:
            n = split.histories[event.name]
            cells = [event.name, split.name, figure(n.mean), *(count(n.percentile(p)) for p in PERCENTILES)]
            cells += [count(n.maximum), share(n.share_empty)]
            cells += [share(n.share_above(found.max_length))] if found.max_length else []
            rows.append(tuple(cells))
    note = "Events of the type that an impression may see, all strictly before its request."
    if found.max_length:
        note += f" The last column: impressions whose history is cut to its newest {count(found.max_length)} events."
    return Section("histories", "Length of the histories", note, tuple(columns), tuple(rows), repeats=1)


def _stored(found: Inspection) -> Section:
    columns = (
        Column("event", number=False),
        *(Column(title) for title in ("events", "histories", "mean")),
        Column("field", number=False),
        *(Column(title) for title in ("missing", "unknown", "known")),
    )
    rows = []
    for event, log in found.stored.items():
        mean = figure(log.events / log.histories) if log.histories else "–"
        numbers = (event, count(log.events), count(log.histories), mean)
        rows += [(*numbers, name, *_coverage_cells(coverage)) for name, coverage in log.fields.items()]
        if not log.fields:
            rows.append((*numbers, *["–"] * 4))
    note = (
        "Each event lies on disk once, in the history of its user (or of its row, in a data set that comes with "
        "ready-made histories); the mean is of events per history."
    )
    return Section("events", "Stored events", note, columns, tuple(rows), repeats=4)


def _sizes(found: Inspection) -> Section:
    parts = found.bytes_on_disk
    total = sum(parts.values())
    rows = [(name, size(n), share(n, total)) for name, n in parts.items()]
    columns = (Column("part", number=False), Column("size"), Column("share"))
    return Section("sizes", "Size on disk", "", columns, tuple(rows))


def _sources(found: Inspection) -> Section:
    columns = (Column("source file", number=False, wraps=True), Column("size"), Column("sha256", number=False))
    rows = []
    for source in _source_files(found):
        digest = str(source.get("sha256", "–"))
        rows.append(
            (str(source["name"]), size(source.get("bytes", 0)), digest[:12] + "…" if len(digest) > 13 else digest)
        )
    return Section("sources", "Source files", "What it was prepared from.", columns, tuple(rows))


def _source_files(found: Inspection) -> list[dict[str, Any]]:
    sources = found.schema.provenance.get("source")
    if isinstance(sources, list) and all(isinstance(s, dict) and "name" in s for s in sources):
        return sources
    return []


def _provenance(found: Inspection) -> Section:
    """All of the provenance that is short enough to read, whoever wrote it."""
    # Statistics are means and deviations of single fields: the models' business, and long.
    skipped = {"created", "statistics", *(["source"] if _source_files(found) else [])}
    rows: list[tuple[str, ...]] = []
    for key, value in found.schema.provenance.items():
        if key in skipped:
            continue
        if isinstance(value, dict):
            rows += [(key, str(name), _plain(inner, key == "counts")) for name, inner in value.items()]
        else:
            rows.append((key, "", _plain(value)))
    columns = (Column("", number=False), Column("", number=False), Column("", number=False, wraps=True))
    note = "Options of the preparation, what it counted (rows dropped and rejected among it), versions."
    return Section("provenance", "Provenance", note, columns, tuple(rows), repeats=1)


def _plain(value: Any, is_count: bool = False) -> str:
    if is_count and isinstance(value, int):
        return count(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:299] + "…"
