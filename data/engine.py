"""The engines that run a preparation's Ibis expressions: embedded DuckDB, or Spark where one machine is too small.

Both give the same rows. What differs is here: how they start, where an intermediate table is kept, and how sorted
rows leave them as a stream of record batches that never stand in memory all at once.
"""

from __future__ import annotations

import errno
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet

from data.preparation import DataError, PreparationOptions

BATCH_ROWS = 65_536


class Engine(ABC):
    """``connection``: the Ibis backend · ``scratch``: a folder for intermediate files."""

    connection: Any

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def save(self, table: ir.Table, name: str) -> ir.Table:
        """Run ``table`` once and read it from Parquet from then on."""
        path = self.scratch / f"{name}.parquet"
        self.connection.to_parquet(table, path)
        return self.connection.read_parquet(path)

    def view(self, table: ir.Table, name: str) -> ir.Table:
        """Give ``table`` a name, not run yet: what builds on it compiles faster."""
        return self.connection.create_view(name, table)

    @abstractmethod
    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Stream the rows of an ordered ``table``."""

    @abstractmethod
    def batches_by_range(
        self, table: ir.Table, order: Sequence[str], start: int, stop: int, step: int
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows with start <= order[0] < stop, sorted by the columns ``order``."""


class DuckDB(Engine):
    """Runs in this process; spills to ``scratch`` beyond ``memory_limit``."""

    def __init__(self, scratch: Path, options: PreparationOptions) -> None:
        import ibis

        super().__init__(scratch)
        settings: dict[str, Any] = {"memory_limit": options.memory_limit, "temp_directory": str(scratch / "spill")}
        if options.threads:
            settings["threads"] = options.threads
        self.connection = ibis.duckdb.connect(**settings)
        # Rows are numbered and every stream is sorted: keeping the order of files as well would only cost memory.
        self.connection.raw_sql("SET preserve_insertion_order = false")
        # DuckDB 2.0 can wait for itself for ever when a COPY that writes in the background is interrupted.
        self.connection.raw_sql("SET async_threads = 0")

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # Not table.to_pyarrow_batches: Ibis 12 calls a method for it that DuckDB 2 no longer has.
        yield from self.connection.con.sql(self.connection.compile(table)).to_arrow_reader(BATCH_ROWS)

    def batches_by_range(
        self, table: ir.Table, order: Sequence[str], start: int, stop: int, step: int
    ) -> Iterator[pa.RecordBatch]:
        """One query per ``step`` values of order[0]: sorting needs memory for one step, not for the table."""
        column = table[order[0]]
        for low in range(start, stop, step):
            part = table.filter(column >= low, column < min(low + step, stop))
            yield from self.batches(part.order_by(list(order)))


class Spark(Engine):
    """Runs on the cluster of ``spark_master``; ``scratch`` and the sources must be on a file system it shares."""

    def __init__(self, scratch: Path, options: PreparationOptions) -> None:
        import ibis

        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise DataError("--engine spark needs PySpark: pip install 'kunlun-rec[spark]', and Java 17") from error
        super().__init__(scratch)
        master = options.spark_master
        if master.startswith("local[*]") and options.threads:
            master = f"local[{options.threads}]"
        settings = {
            "spark.master": master,
            "spark.app.name": "kunlun prepare",
            "spark.driver.memory": options.memory_limit.replace(" ", "").replace("iB", "B").rstrip("Bb").lower(),
            "spark.local.dir": str(scratch / "spill"),
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
            "spark.sql.execution.arrow.pyspark.enabled": "true",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
        }
        if master.startswith("local"):  # one machine: no need to be reachable from another
            settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
            settings |= {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "8"}
        builder = SparkSession.builder
        for key, value in settings.items():
            builder = builder.config(key, value)
        try:
            self.session = builder.getOrCreate()
        except Exception as error:  # whatever Java, the network or the master say
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"Spark could not be started on {master}: {first}; is Java 17 installed and the master reachable?"
            ) from error
        self.connection = ibis.pyspark.connect(self.session)
        self._streams = 0

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # A sorted table is written as files whose names are in its order; collecting it would need the driver's memory.
        self._streams += 1
        folder = self.scratch / f"stream-{self._streams}"
        self.connection.to_parquet(table, folder)
        for path in sorted(folder.glob("part-*.parquet")):
            yield from pa.parquet.ParquetFile(path).iter_batches(BATCH_ROWS)
            path.unlink()

    def batches_by_range(
        self, table: ir.Table, order: Sequence[str], start: int, stop: int, step: int
    ) -> Iterator[pa.RecordBatch]:
        """One query: Spark sorts what does not fit its memory."""
        column = table[order[0]]
        yield from self.batches(table.filter(column >= start, column < stop).order_by(list(order)))


@contextmanager
def open_engine(scratch: Path, options: PreparationOptions) -> Iterator[Engine]:
    """The engine that ``options`` name. DataError: it cannot start, or needs more memory or disk than it has."""
    if options.engine == "spark":
        spark = Spark(scratch, options)
        try:
            yield spark
        finally:
            spark.session.stop()
        return

    import duckdb

    engine = DuckDB(scratch, options)
    try:
        yield engine
    except (duckdb.OutOfMemoryException, duckdb.IOException, OSError) as error:  # OSError: a stream's, by way of Arrow
        message = str(error)
        if "failed to offload" in message:
            raise OSError(errno.ENOSPC, f"No space left for what the engine spills: {_first(message)}") from error
        if "Out of Memory Error" in message:
            raise DataError(
                f"the engine needs more than {options.memory_limit} of memory: raise --memory_limit "
                f"or give --threads a smaller number ({_first(message)})"
            ) from error
        if isinstance(error, OSError):
            raise
        raise OSError(_first(message)) from error
    finally:
        engine.connection.disconnect()


def _first(message: str) -> str:
    """What an error of DuckDB says, without its advice, which is on settings that the user does not see."""
    line, _, details = message.strip().splitlines()[0].partition("{")
    try:
        return json.loads("{" + details)["exception_message"]
    except (ValueError, KeyError):
        return line + ("{" + details if details else "")
