"""A prepared data set read for inspection: memory-mapped record batches, a chunk at a time, each once.

Nothing here goes by row number as training's reader does, so a scan runs at the speed of the disk and holds one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data.inspection.collect import Chunk, IdCounts, collect
from data.inspection.options import InspectionOptions
from data.inspection.results import Inspection, SplitResult, StoredEvents
from data.inspection.show import show
from data.inspection.text import text
from data.preparation import DataError
from kunlun.features import SCHEMA_FILE, EventType, FeatureSchema

CHUNK_ROWS = 65_536
RUN_ROWS = 64  # consecutive rows of a sample: a page of the disk holds so many anyway
SAMPLE_SEED = 0


def show_prepared(directory: Path, options: InspectionOptions) -> None:
    """Print what is in the data set in ``directory``, and write the page if one is wanted. DataError: it cannot be."""

    def page_of(found: Inspection) -> str:
        from data.inspection.page import page  # drawing takes a while to load

        return page(found)

    show(options.html, lambda: inspect_prepared(directory, options), text, page_of)


def inspect_prepared(directory: Path, options: InspectionOptions) -> Inspection:
    """Look through the prepared data set in ``directory``. DataError: it is none, or a file is missing or damaged."""
    schema = load_schema(directory)
    prepared_with = schema.provenance.get("options")
    zone = options.zone(schema.name, prepared_with if isinstance(prepared_with, dict) else {})
    splits = {split: open_batches(directory / split, "stream") for split in schema.rows}
    for split, batches in splits.items():
        found = sum(batch.num_rows for batch in batches)
        if found != schema.rows[split]:
            raise DataError(
                f"{directory / split} holds {found:,} rows where {SCHEMA_FILE} counts {schema.rows[split]:,}: "
                "a file is missing, damaged or of another data set; prepare it again"
            )
    stored = {event.name: _stored(directory / "histories", event, options.rows) for event in schema.events}
    return Inspection(
        schema=schema,
        place=str(directory),
        timezone=zone.key,
        splits=_scan(schema, splits, directory, options.rows, zone),
        max_length=options.max_length,
        stored=stored,
        bytes_on_disk=_bytes_on_disk(directory, [*schema.rows, "histories"]),
    )


def load_schema(directory: Path) -> FeatureSchema:
    """The schema of the data set in ``directory``; DataError says why there is none."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    try:
        return FeatureSchema.load(directory)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{directory / SCHEMA_FILE} cannot be read ({problem}); prepare the data set again") from error
    except OSError as error:
        raise DataError(str(error)) from error


def open_batches(path: Path, kind: str) -> list[pa.RecordBatch]:
    """The record batches of a split's folder (``kind`` "stream") or of one file ("file"), mapped and not yet read."""
    files = sorted(path.glob("*.arrow")) if kind == "stream" else [path]
    if not files or not files[0].is_file():
        missing = f"{path} holds no *.arrow file" if kind == "stream" else f"{path} not found"
        raise DataError(f"{missing}: the data set is incomplete; prepare it again")
    batches: list[pa.RecordBatch] = []
    for file in files:
        try:
            mapped = pa.memory_map(str(file))
            if kind == "stream":
                batches += pa.ipc.open_stream(mapped)
            else:
                reader = pa.ipc.open_file(mapped)
                batches += [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged or cut short ({error}); prepare the data set again") from error
    return batches


def sample_rows(rows: int, wanted: int) -> np.ndarray:
    """About ``wanted`` of the row numbers below ``rows``, rising: one run from each of many equal stretches.

    Where in its stretch a run starts is drawn by seed. A fixed stride would fall in step with whatever alternates in
    the rows, such as a positive and its negative. Runs, because a disk reads so many neighbours at the price of one.
    """
    places = np.arange(-(-wanted // RUN_ROWS) + 1)
    edges = places * rows // places[-1]
    lengths = np.minimum(np.diff(places * wanted // places[-1]), np.diff(edges))
    room = np.diff(edges) - lengths + 1
    starts = edges[:-1] + np.random.default_rng(SAMPLE_SEED).integers(0, room)
    return np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])


def pieces(batches: Sequence[pa.RecordBatch], columns: Sequence[str], wanted: int) -> Iterator[pa.RecordBatch]:
    """``columns`` of the rows, CHUNK_ROWS at a time; of a sample where ``wanted`` is neither 0 nor all of them."""
    total = sum(batch.num_rows for batch in batches)
    sample = sample_rows(total, wanted) if 0 < wanted < total else None
    first = 0
    for whole in batches:
        batch = whole.select(list(columns))
        if sample is None:
            yield from (batch.slice(start, CHUNK_ROWS) for start in range(0, batch.num_rows, CHUNK_ROWS))
        else:
            low, high = np.searchsorted(sample, (first, first + batch.num_rows))
            for start in range(low, high, CHUNK_ROWS):
                yield batch.take(pa.array(sample[start : min(start + CHUNK_ROWS, high)] - first))
        first += batch.num_rows


def _scan(
    schema: FeatureSchema,
    splits: dict[str, list[pa.RecordBatch]],
    directory: Path,
    wanted: int,
    zone: ZoneInfo,
) -> tuple[SplitResult, ...]:
    total = sum(min(wanted or rows, rows) for rows in schema.rows.values())

    def chunks() -> Iterator[tuple[str, Chunk]]:
        # Disabled where the output is no terminal.
        with tqdm(total=total, unit=" rows", unit_scale=True, leave=False, disable=None) as bar:
            for split, batches in splits.items():
                for piece in pieces(batches, _columns(schema, batches, directory / split), wanted):
                    yield split, _chunk(piece, schema, directory / split)
                    bar.update(piece.num_rows)

    return collect(schema, chunks(), zone, schema.rows)


def _columns(schema: FeatureSchema, batches: Sequence[pa.RecordBatch], place: Path) -> list[str]:
    """The columns to read; DataError: one that the schema promises is not there."""
    promised = ["labels"]
    promised += [name for name, there in (("dense", schema.dense), ("sparse", schema.sparse)) if there]
    promised += [bag.name for bag in schema.bags]
    promised += ["request_time"] if schema.request_times else []
    promised += ["pointers"] if schema.events else []
    for batch in batches:
        missing = [name for name in promised if name not in batch.schema.names]
        if missing:
            raise DataError(f"{place} lacks the column {missing[0]!r} that {SCHEMA_FILE} describes; prepare it again")
    weighted = batches and "weight" in batches[0].schema.names
    return [*promised, "weight"] if weighted else promised


def _chunk(piece: pa.RecordBatch, schema: FeatureSchema, place: Path) -> Chunk:
    def matrix(name: str, width: int) -> np.ndarray | None:
        if not width:
            return None
        column = piece.column(name)
        if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != width:
            raise DataError(f"{place}: {name} is {column.type} where {SCHEMA_FILE} describes {width} values a row")
        return column.flatten().to_numpy().reshape(-1, width)

    def vector(name: str) -> np.ndarray | None:
        return piece.column(name).to_numpy() if name in piece.schema.names else None

    def bag(name: str) -> tuple[np.ndarray, np.ndarray]:
        column = piece.column(name)
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return column.flatten().to_numpy(zero_copy_only=False), lengths

    labels = matrix("labels", len(schema.tasks))
    assert labels is not None  # a schema has at least one task
    return Chunk(
        labels=labels,
        dense=matrix("dense", len(schema.dense)),
        sparse=matrix("sparse", len(schema.sparse)),
        pointers=matrix("pointers", len(schema.events)),
        bags={b.name: bag(b.name) for b in schema.bags},
        request_time=vector("request_time"),
        weight=vector("weight"),
    )


def _stored(folder: Path, event: EventType, wanted: int) -> StoredEvents:
    batches = open_batches(folder / f"{event.name}.arrow", "file")
    offsets = open_batches(folder / f"{event.name}.offsets.arrow", "file")
    events = sum(batch.num_rows for batch in batches)
    # n histories lie between n + 1 offsets, the last of which counts the events.
    histories = sum(batch.num_rows for batch in offsets) - 1
    last = next((int(batch.column("offset")[-1].as_py()) for batch in reversed(offsets) if batch.num_rows), -1)
    if last != events:
        raise DataError(f"{folder / event.name}.arrow holds {events:,} events, its offsets {last:,}; prepare it again")
    counts = {f.name: IdCounts(1) for f in event.fields}
    read = 0
    for piece in pieces(batches, list(counts), wanted):
        read += piece.num_rows
        for name, ids in counts.items():
            ids.add(piece.column(name).to_numpy()[:, None])
    return StoredEvents(events, histories, read, {name: ids.coverages()[0] for name, ids in counts.items()})


def _bytes_on_disk(directory: Path, folders: Sequence[str]) -> dict[str, int]:
    """Bytes in each of ``folders``, and in everything beside them."""
    sizes = dict.fromkeys([*folders, "schema and other files"], 0)
    for path in directory.rglob("*"):
        if path.is_file():
            part = path.relative_to(directory).parts[0]
            sizes[part if part in folders else "schema and other files"] += path.stat().st_size
    return {name: n for name, n in sizes.items() if n}
