"""Raw files in the exact layouts of the public data sets, quirks included, at any size: to try, test and time with.

The rows are made up, but headers, separators, value formats and the shares of everything odd follow the real files,
and the labels depend on the features, so that a model has something to learn. Here is what all layouts share; each
layout's file says what its rows are.

Every value is a function of the seed, the options and its own place (row, event or user), never of how many rows are
made at a time. So memory does not grow with the size, and the same command writes the same bytes again; only another
version of NumPy or another kind of processor may round a logarithm otherwise.
"""

from __future__ import annotations

import gzip
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data.preparation import DataError, DataSet, written_whole

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUTS = {
    "taobao": DataSet(
        "data.generate_taobao", "TaobaoRaw", "Ali_Display_Ad_Click: impressions, ads, profiles and the behaviour log"
    ),
    "taobao-x1": DataSet(
        "data.generate_taobao", "TaobaoX1Raw", "TaobaoAd_x1: train.csv and test.csv with ready-made histories"
    ),
    "userbehavior": DataSet("data.generate_log", "UserBehaviorRaw", "UserBehavior.csv: whole users' event logs"),
    "criteo": DataSet("data.generate_criteo", "CriteoRaw", "Criteo Kaggle train.txt, or day_* files of the 1 TB logs"),
    "criteo-x1": DataSet("data.generate_criteo", "CriteoX1Raw", "Criteo_x1: train.csv, valid.csv, test.csv, encoded"),
    "criteo-x4": DataSet("data.generate_criteo", "CriteoX4Raw", "Criteo_x4: train.csv, valid.csv, test.csv, raw"),
}
ENDINGS = {"none": "", "gzip": ".gz", "zstd": ".zst"}
GZIP_LEVEL = 1  # a level more halves the speed and saves a tenth of the space
SECONDS_BETWEEN_REPORTS = 5.0


@dataclass(frozen=True)
class RawOptions:
    """What every layout can be told."""

    seed: int = 2017
    """Seed of all random values; the same seed and options write the same bytes."""
    compress: Literal["none", "gzip", "zstd"] = "none"
    """Compress each file; its name then ends in .gz or .zst."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    def write(self, output: Output) -> None:
        """Write every file of the layout into ``output``."""
        raise NotImplementedError


def generate(name: str, out: Path, options: RawOptions) -> None:
    """Write raw files as ``options`` say into the new directory ``out``; ``name`` is only for the report.

    The files appear at ``out`` all at once, when they are complete. DataError: ``out`` is taken or cannot be written.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty directory, so it is left alone; choose another --out")
    with written_whole(out) as partial, Output(partial, options.compress) as output:
        output.say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in asdict(options).items()))
        options.write(output)
    files = ", ".join(f"{file} {rows:,}" for file, rows in output.rows.items())
    output.say(f"done: {out} · rows: {files}")


def options_of(name: str) -> type[RawOptions]:
    """The options class of a layout; its fields are the options of the command line."""
    return getattr(importlib.import_module(LAYOUTS[name].module), LAYOUTS[name].options)


@dataclass
class Output:
    """The files of one run, opened when their first rows come; ``rows`` counts what each has."""

    directory: Path
    compress: str
    rows: dict[str, int] = field(default_factory=dict)
    _files: dict[str, Any] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)
    _started: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def say(self, message: str) -> None:
        """One line of progress with the seconds since the start."""
        print(f"[{time.monotonic() - self._started:7.1f} s] {message}", flush=True)

    def write(
        self, name: str, columns: dict[str, Any], header: str | None = None, delimiter: str = ",", final: int = 0
    ) -> None:
        """Append rows to the file ``name`` (+ .gz or .zst): arrays of equal length, null written as nothing.

        ``header`` is the text of the first line of a new file. ``final`` is how many rows are to come in all.
        """
        import pyarrow as pa
        from pyarrow import csv

        batch = pa.record_batch(columns)
        if name not in self._files:
            self._files[name], self.rows[name] = self._create(name + ENDINGS[self.compress]), 0
            if header is not None:
                self._files[name].write(f"{header}\n".encode())
        options = csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none")
        csv.write_csv(batch, self._files[name], options)
        self.rows[name] += batch.num_rows
        if final and time.monotonic() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            self.say(f"{name}: {self.rows[name]:,} of {final:,} rows")

    def _create(self, name: str) -> Any:
        file = self._open.enter_context((self.directory / name).open("wb"))
        if self.compress == "gzip":
            # Neither the file's name nor the time in its header: both would differ from run to run.
            return self._open.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0))
        if self.compress == "zstd":
            import pyarrow as pa

            return self._open.enter_context(pa.CompressedOutputStream(file, "zstd"))
        return file


@dataclass(frozen=True)
class Draws:
    """Random numbers by purpose and place: PCG64 can jump to any place of a purpose's stream."""

    seed: int

    def uniform(self, purpose: str, first: int, count: int) -> np.ndarray:
        """Numbers ``first … first + count − 1`` of a purpose, float64 in [0, 1)."""
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=tuple(purpose.encode())))
        return np.random.Generator(bits.advance(first)).random(count)

    def normal(self, purpose: str, count: int) -> np.ndarray:
        """The first ``count`` standard normal numbers of a purpose: for what there is one of per user or ad."""
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=tuple(purpose.encode())))
        return np.random.Generator(bits).standard_normal(count)

    def permutation(self, purpose: str, count: int) -> np.ndarray:
        """1 … ``count`` in random order: ids that tell nothing."""
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=tuple(purpose.encode())))
        return np.random.Generator(bits).permutation(count) + 1


def share_out(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to ``weights`` with the sum ``total``, as ends: [0, …, total]."""
    ends = np.floor(np.cumsum(weights) * (total / weights.sum()) + 1e-6).astype(np.int64)
    ends[-1] = total
    return np.concatenate([[0], np.minimum(ends, total)])


def zipf(uniform: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Ranks 0 … count − 1, of which rank r comes with a probability about in proportion to 1 / (r + 1)."""
    ranks = np.exp(uniform * np.log(np.asarray(count) + 1.0)).astype(np.int64) - 1
    return np.minimum(ranks, count - 1)


def blocks(ends: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of users with at most ``most`` rows together, at least one user each.

    ``ends`` are the running totals of rows: user u has rows ends[u] … ends[u + 1] − 1.
    """
    first, users = 0, len(ends) - 1
    while first < users:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + most, side="right")) - 1)
        yield first, min(last, users)
        first = last


def parts(total: int, most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of rows 0 … total − 1, at most ``most`` at a time."""
    for first in range(0, total, most):
        yield first, min(most, total - first)


def texts(values: np.ndarray, words: tuple[str, ...]) -> pa.Array:
    """The words at the places ``values``."""
    import pyarrow as pa

    return pa.array(words).take(pa.array(values))


def nullable(values: np.ndarray, missing: np.ndarray) -> pa.Array:
    """The values, null where ``missing``."""
    import pyarrow as pa

    return pa.array(values, mask=missing)


def intercept(score: Callable[[float], np.ndarray], rate: float) -> float:
    """The number for which the mean of the increasing function ``score`` of it is ``rate``; by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle).mean() < rate else (low, middle)
    return (low + high) / 2
