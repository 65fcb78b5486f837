"""The life of one preparation: raw files in; one complete directory out, or a clear error and nothing.

A data set's module says what its rows mean; here is what all of them share: the list of data sets, the error class,
the options, provenance, and the promise that a half-written output never has its final name. Importing this file is
cheap: the engine and torch are loaded when a preparation starts.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

    from data.engine import Engine
    from data.prepared import PreparedWriter
    from data.rejects import Rejects
    from kunlun.features import FeatureSchema

PREPARATION_VERSION = 2  # raised when the same source and options give other rows than before


class DataError(ValueError):
    """The raw data or the output directory is not usable; the message says where and what to do."""


@dataclass(frozen=True)
class DataSet:
    """Where a data set's preparation lives: ``module.prepare(*paths, module.options)``.

    paths: the names of its path arguments, where they are not raw and out · optional: those that may be left out.
    """

    module: str
    options: str
    summary: str
    paths: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


DATASETS = {
    "taobao": DataSet(
        "data.taobao", "TaobaoOptions", "Taobao display ads (Ali_Display_Ad_Click): the folder of its four files"
    ),
    "criteo": DataSet("data.criteo", "CriteoOptions", "Criteo Kaggle train.txt or 1 TB day_* files (tabs, no header)"),
    "criteo-x1": DataSet("data.criteo_x1", "CriteoX1Options", "Criteo_x1: a folder of three files, numbers scaled"),
    "criteo-x4": DataSet("data.criteo_x4", "CriteoX4Options", "Criteo_x4: a folder of three files of raw values"),
    "userbehavior": DataSet(
        "data.userbehavior", "UserBehaviorOptions", "Taobao UserBehavior.csv: next-click prediction from event logs"
    ),
    "taobao-x1": DataSet(
        "data.taobao_x1", "TaobaoX1Options", "TaobaoAd_x1: display-ad clicks with ready-made histories"
    ),
    "table": DataSet(
        "data.table",
        "PreparationOptions",
        "your own impressions and events, Parquet or CSV, described by a YAML file (docs/own_data.md)",
        paths=("impressions", "events", "schema", "out"),
        optional=("events",),
    ),
}


@dataclass(frozen=True)
class PreparationOptions:
    """What every preparation can be told."""

    overwrite: bool = False
    """Replace a prepared data set that is already at the output path."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A bad row ends the preparation, or is left out, counted and written to rejected.csv with the reason."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes: DuckDB in this process, or Spark, for more than one machine; both give the same rows."""
    spark_master: str = "local[*]"
    """With engine spark: its master, such as spark://host:7077, which must see --raw and --out under the same paths."""
    memory_limit: str = "1GB"
    """What the engine may hold in memory before it spills to disk beside the output (spark: of its driver)."""
    threads: int = 0
    """Threads of the engine on this machine; 0 = one per core."""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (one per core) or positive, not {self.threads}")
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise ValueError(f"memory_limit {self.memory_limit!r} is not a size such as 500MB or 4GB")

    def defining(self) -> dict[str, Any]:
        """The options that decide what the prepared rows are."""
        neutral = {f.name for f in fields(PreparationOptions)} - {"on_bad_row"}
        return {key: value for key, value in asdict(self).items() if key not in neutral}


@dataclass
class Workspace:
    """What a data set's builder works with; ``directory`` is for intermediate files.

    ``counts`` and ``statistics`` end up in the schema's provenance.
    """

    sources: Sequence[Path]
    engine: Engine
    directory: Path
    writer: PreparedWriter
    rejects: Rejects
    counts: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def connection(self) -> Any:
        """The Ibis backend."""
        return self.engine.connection

    def say(self, message: str) -> None:
        """One line of progress with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:7.1f} s] {message}", flush=True)

    def save(self, table: ir.Table, name: str) -> ir.Table:
        """Run ``table`` once and read it from temporary Parquet files from then on."""
        return self.engine.save(table, name)

    def view(self, table: ir.Table, name: str) -> ir.Table:
        """Give ``table`` a name in the engine, not run yet: what builds on it compiles faster."""
        return self.engine.view(table, name)

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Stream the rows of an ordered ``table``."""
        return self.engine.batches(table)

    def batches_by_range(
        self, table: ir.Table, order: Sequence[str], start: int, stop: int, step: int
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows with start <= order[0] < stop, sorted by the columns ``order``, ``step`` at a time."""
        return self.engine.batches_by_range(table, order, start, stop, step)


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
    from data.engine import open_engine
    from data.prepared import PreparedWriter
    from data.rejects import Rejects

    out = Path(out)
    started = time.monotonic()
    described = [_describe(path) for path in sources]
    fingerprint = _fingerprint(name, described, options)
    done = _finished(out, fingerprint, options.overwrite)
    if done is not None:
        print(f"{out} is already prepared from the same source and options: nothing to do", flush=True)
        return done

    _note_leftovers(out)
    with written_whole(out) as partial:
        scratch = partial / "scratch"
        scratch.mkdir()
        writer = PreparedWriter(partial, fingerprint)
        rejects = Rejects(partial, options.on_bad_row == "skip")
        with open_engine(scratch, options) as engine, closing(rejects):
            workspace = Workspace(sources, engine, scratch, writer, rejects, started=started)
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
    rates = ", ".join(f"{task.name} {task.train_rate:.4f}" for task in schema.tasks)
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.rows.items())
    workspace.say(f"done: {out} · rows: {rows} · training rate: {rates}")
    return schema


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A directory to fill that becomes ``out`` when all went well, and is gone otherwise, also after a signal.

    What was at ``out`` is replaced. DataError: the disk is full or will not be written.
    """
    from data.interruption import interruptible

    # Not only the process id: in containers, every run may have the same.
    partial = out.parent / f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    with interruptible():
        try:
            partial.mkdir(parents=True)
            yield partial
            _publish(partial, out)
        except OSError as error:
            raise _not_written(out, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
    except (ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file makes of it
        schema = None
    if schema is None or schema.provenance.get("fingerprint") != fingerprint:
        raise DataError(
            f"{out} holds a data set prepared from another source or with other options; "
            "choose another --out, or replace it with --overwrite"
        )
    return schema


def _note_leftovers(out: Path) -> None:
    for path in sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*")):
        print(f"note: {path} is left from a preparation that was interrupted (or still runs); remove it if not")
    for path in sorted(out.parent.glob(f"{glob.escape(out.name)}.replaced-*")):
        print(f"note: {path} is what an interrupted preparation with --overwrite had moved away; keep or remove it")


def _not_written(out: Path, error: OSError) -> DataError:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return DataError(
            f"{out} could not be written: no space left on its disk, which holds the intermediate files too; "
            f"free some or choose another --out ({error})"
        )
    return DataError(f"{out} could not be written: {error}")


def _publish(partial: Path, out: Path) -> None:
    """Give ``partial`` its final name; what was there is removed only after that."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = partial.with_name(partial.name.replace(f"{out.name}.partial-", f"{out.name}.replaced-", 1))
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
