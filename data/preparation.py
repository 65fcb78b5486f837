"""The life of one preparation: raw files in; one complete directory out, or a clear error and nothing.

A data set's module says what its rows mean; here is what all of them share: the list of data sets, the error class,
the engine that runs the Ibis expressions, provenance, and the promise that a half-written output never has its final
name. Importing this file is cheap: the engine and torch are loaded when a preparation starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa
    from ibis.backends.duckdb import Backend

    from data.prepared import PreparedWriter
    from kunlun.features import FeatureSchema

PREPARATION_VERSION = 1  # raised when the same source and options give other rows than before
BATCH_ROWS = 131_072


class DataError(ValueError):
    """The raw data or the output directory is not usable; the message says where and what to do."""


@dataclass(frozen=True)
class DataSet:
    """Where a data set's preparation lives: ``module.prepare(raw, out, module.options)``."""

    module: str
    options: str
    summary: str


DATASETS = {
    "criteo": DataSet("data.criteo", "CriteoOptions", "Criteo Kaggle train.txt or 1 TB day_* files (tabs, no header)"),
    "userbehavior": DataSet(
        "data.userbehavior", "UserBehaviorOptions", "Taobao UserBehavior.csv: next-click prediction from event logs"
    ),
    "taobao-x1": DataSet(
        "data.taobao_x1", "TaobaoX1Options", "TaobaoAd_x1: display-ad clicks with ready-made histories"
    ),
}


@dataclass(frozen=True)
class PreparationOptions:
    """What every preparation can be told; none of these three changes the prepared rows."""

    overwrite: bool = False
    """Replace a prepared data set that is already at the output path."""
    memory_limit: str = "1GB"
    """What the engine may hold in memory before it spills to disk beside the output."""
    threads: int = 0
    """Threads of the engine; 0 = one per core."""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (one per core) or positive, not {self.threads}")
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise ValueError(f"memory_limit {self.memory_limit!r} is not a size such as 500MB or 4GB")

    def defining(self) -> dict[str, Any]:
        """The options that decide what the prepared rows are."""
        neutral = {f.name for f in fields(PreparationOptions)}
        return {key: value for key, value in asdict(self).items() if key not in neutral}


@dataclass
class Workspace:
    """What a data set's builder works with; it lives in the partial output directory.

    ``counts`` and ``statistics`` end up in the schema's provenance.
    """

    sources: Sequence[Path]
    connection: Backend
    directory: Path
    writer: PreparedWriter
    counts: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def say(self, message: str) -> None:
        """One line of progress with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:7.1f} s] {message}", flush=True)

    def save(self, table: ir.Table, name: str) -> ir.Table:
        """Run ``table`` once and read it from a temporary Parquet file from then on."""
        path = self.directory / f"{name}.parquet"
        self.connection.to_parquet(table, path)
        return self.connection.read_parquet(path)

    def view(self, table: ir.Table, name: str) -> ir.Table:
        """Give ``table`` a name in the engine, not run yet: what builds on it compiles faster."""
        return self.connection.create_view(name, table)

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Stream the rows of an ordered ``table``."""
        # Not table.to_pyarrow_batches: Ibis 12 calls a method for it that DuckDB 2 no longer has.
        yield from self.connection.con.sql(self.connection.compile(table)).to_arrow_reader(BATCH_ROWS)

    def batches_by_range(
        self, table: ir.Table, order: Sequence[str], start: int, stop: int, step: int
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows with start <= order[0] < stop, sorted by the columns ``order``.

        One query per ``step`` values of order[0]: sorting needs memory for one step, not for the table.
        """
        column = table[order[0]]
        for low in range(start, stop, step):
            part = table.filter(column >= low, column < min(low + step, stop))
            yield from self.batches(part.order_by(list(order)))


def count_rows(table: ir.Table) -> int:
    return int(table.count().to_pyarrow().as_py())


def prepare_dataset(
    name: str,
    sources: Sequence[Path],
    out: Path,
    options: PreparationOptions,
    build: Callable[[Workspace], FeatureSchema],
) -> FeatureSchema:
    """Run ``build`` and publish what it writes as ``out``, atomically; returns the complete schema.

    The same sources and options again: says so and returns the schema that is there.
    DataError: ``out`` is taken by anything else, or the sources are bad; nothing is left at ``out`` then.
    """
    import duckdb

    from data.prepared import PreparedWriter

    out = Path(out)
    started = time.monotonic()
    described = [_describe(path) for path in sources]
    fingerprint = _fingerprint(name, described, options)
    done = _finished(out, fingerprint, options.overwrite)
    if done is not None:
        print(f"{out} is already prepared from the same source and options: nothing to do", flush=True)
        return done

    _note_leftovers(out)
    partial = out.parent / f"{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        scratch = partial / "scratch"
        scratch.mkdir()
        writer = PreparedWriter(partial, fingerprint)
        with _engine(scratch, options) as connection:
            workspace = Workspace(sources, connection, scratch, writer, started=started)
            workspace.say(f"{name}: {', '.join(str(path) for path in sources)}")
            draft = build(workspace)
        shutil.rmtree(scratch)
        provenance = {
            "source": described,
            "fingerprint": fingerprint,
            "options": options.defining(),
            "counts": workspace.counts,
            "statistics": workspace.statistics,
            "versions": _versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        schema = writer.finish(draft, provenance)
        _publish(partial, out)
    except OSError as error:
        raise DataError(f"{out} could not be written: {error}") from error
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"{out} was not written: the engine needs more than {options.memory_limit} of memory, or the disk is full; "
            f"raise --memory_limit or give --threads a smaller number ({error})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    rates = ", ".join(f"{task.name} {task.train_rate:.4f}" for task in schema.tasks)
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.rows.items())
    workspace.say(f"done: {out} · rows: {rows} · training rate: {rates}")
    return schema


@contextmanager
def _engine(scratch: Path, options: PreparationOptions) -> Iterator[Backend]:
    """Embedded DuckDB, bounded in memory, spilling into ``scratch``."""
    import ibis

    settings: dict[str, Any] = {"memory_limit": options.memory_limit, "temp_directory": str(scratch / "spill")}
    if options.threads:
        settings["threads"] = options.threads
    connection = ibis.duckdb.connect(**settings)
    try:
        yield connection
    finally:
        connection.disconnect()


def _describe(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _fingerprint(name: str, sources: list[dict[str, Any]], options: PreparationOptions) -> str:
    identity = [PREPARATION_VERSION, name, [s["sha256"] for s in sources], options.defining()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    packages = ("ibis-framework", "duckdb", "pyarrow", "datasets")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _finished(out: Path, fingerprint: str, overwrite: bool) -> FeatureSchema | None:
    """The schema at ``out`` if it is what is asked for; None if ``out`` may be written; else DataError."""
    from kunlun.features import SCHEMA_FILE, FeatureSchema

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / SCHEMA_FILE).is_file():
        raise DataError(f"{out} exists and is not a prepared data set, so it is left alone; choose another --out")
    if overwrite:
        return None
    try:
        schema = FeatureSchema.load(out)
    except (ValueError, KeyError, TypeError):
        schema = None
    if schema is None or schema.provenance.get("fingerprint") != fingerprint:
        raise DataError(
            f"{out} holds a data set prepared from another source or with other options; "
            "choose another --out, or replace it with --overwrite"
        )
    return schema


def _note_leftovers(out: Path) -> None:
    for path in sorted(out.parent.glob(f"{out.name}.partial-*")):
        print(f"note: {path} is left from a preparation that was interrupted (or still runs); remove it if not")


def _publish(partial: Path, out: Path) -> None:
    """Give ``partial`` its final name; what was there is removed only after that."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = out.parent / f"{out.name}.replaced-{os.getpid()}"
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
