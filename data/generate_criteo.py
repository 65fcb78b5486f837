"""Generated Criteo files: the Kaggle and 1 TB layouts, and the two benchmark versions x1 and x4.

A row's columns are independent but for what is missing: columns of the same missing share are missing together, as
in the real files. A categorical value is the 8 hexadecimal digits of a hash of its column and rank; its lowest bits,
read as a number in −½ … ½, are its effect on the click. So are the quantiles of some integers. The label is drawn
from the logistic function of the sum of these effects, with an intercept that gives the click rate wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.generate import Draws, Output, RawOptions, intercept, nullable, parts, share_out

if TYPE_CHECKING:
    import pyarrow as pa

KAGGLE_RATE, TERABYTE_RATE = 0.256, 0.03
X1_SHARES = (33_003_326, 8_250_124, 4_587_167)  # train, valid, test of the real Criteo_x1
X4_SHARES = (8, 1, 1)
SPLITS = ("train.csv", "valid.csv", "test.csv")
HEADER = ",".join(["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))])
BLOCK_ROWS = 65_536
PILOT_ROWS = 65_536  # the intercept is fitted on the first so many rows


class Integer(NamedTuple):
    """Share of missing values, and the values at LEVELS; between them the logarithm runs straight."""

    missing: float
    quantiles: tuple[int, ...]


LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
INTEGERS = (
    Integer(0.453, (0, 0, 0, 1, 3, 9, 40, 400)),
    Integer(0.000, (-2, -1, 0, 3, 35, 182, 2200, 10_000)),
    Integer(0.212, (0, 1, 2, 6, 17, 43, 220, 40_000)),
    Integer(0.213, (0, 1, 2, 4, 10, 18, 41, 350)),
    Integer(0.026, (0, 11, 330, 2800, 10_000, 34_000, 350_000, 2_000_000)),
    Integer(0.223, (0, 1, 8, 32, 100, 280, 1300, 110_000)),
    Integer(0.042, (0, 0, 1, 3, 11, 34, 210, 6500)),
    Integer(0.001, (0, 0, 2, 7, 19, 34, 48, 1700)),
    Integer(0.042, (0, 2, 10, 38, 108, 260, 980, 9500)),
    Integer(0.453, (0, 0, 0, 1, 1, 1, 3, 7)),
    Integer(0.042, (0, 0, 1, 1, 3, 6, 25, 120)),
    Integer(0.768, (0, 0, 0, 0, 1, 1, 19, 190)),
    Integer(0.213, (0, 1, 2, 4, 10, 20, 49, 1600)),
)


class Categorical(NamedTuple):
    """Share of missing values, number of different values, and the share of the commonest of them."""

    missing: float
    values: int
    top: float


CATEGORICALS = (
    Categorical(0.000, 1_460, 0.50),
    Categorical(0.000, 583, 0.11),
    Categorical(0.035, 10_131_227, 0.03),
    Categorical(0.035, 2_202_608, 0.04),
    Categorical(0.000, 305, 0.67),
    Categorical(0.123, 24, 0.45),
    Categorical(0.000, 12_517, 0.02),
    Categorical(0.000, 633, 0.59),
    Categorical(0.000, 3, 0.90),
    Categorical(0.000, 93_145, 0.22),
    Categorical(0.000, 5_683, 0.03),
    Categorical(0.035, 8_351_593, 0.03),
    Categorical(0.000, 3_194, 0.03),
    Categorical(0.000, 27, 0.35),
    Categorical(0.000, 14_992, 0.02),
    Categorical(0.035, 5_461_306, 0.03),
    Categorical(0.000, 10, 0.46),
    Categorical(0.000, 5_652, 0.03),
    Categorical(0.441, 2_173, 0.62),
    Categorical(0.441, 4, 0.34),
    Categorical(0.035, 7_046_547, 0.03),
    Categorical(0.761, 18, 0.57),
    Categorical(0.000, 15, 0.43),
    Categorical(0.035, 286_181, 0.05),
    Categorical(0.441, 105, 0.26),
    Categorical(0.441, 142_572, 0.07),
)
# The columns that the click depends on (places in the two tuples above), and how much.
SIGNAL_INTEGERS, SIGNAL_CATEGORICALS, STRENGTH = (1, 4, 6, 10), (1, 6, 9, 13, 14, 16, 22, 23), 1.8


@dataclass(frozen=True)
class CriteoRaw(RawOptions):
    """Criteo Kaggle train.txt, or the 1 TB logs: tabs, no header, nothing where a value is missing."""

    rows: int = 100_000
    """Rows in all; the real Kaggle file has 45,840,617, the 1 TB logs 4.37 billion."""
    days: int = 0
    """Write that many files day_0, day_1 … of the 1 TB logs, with their lower click rate, instead of train.txt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.days < 0 or self.rows < max(1, self.days):
            raise ValueError(f"rows must be at least 1, and one for each of {self.days} days (0 or more)")

    def write(self, output: Output) -> None:
        files = [f"day_{day}" for day in range(self.days)] or ["train.txt"]
        rate = TERABYTE_RATE if self.days else KAGGLE_RATE
        sizes = dict(zip(files, np.diff(share_out(self.rows, np.ones(len(files)))), strict=True))
        _write(output, self.seed, sizes, rate, delimiter="\t")


@dataclass(frozen=True)
class _ThreeFiles(RawOptions):
    rows: int = 100_000
    """Rows of train.csv, valid.csv and test.csv together, shared out as in the real set, which has 45,840,617."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 10:
            raise ValueError(f"rows must be at least 10, so that each of the three files has some, not {self.rows}")

    def sizes(self, shares: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(SPLITS, np.diff(share_out(self.rows, np.array(shares))), strict=True))


@dataclass(frozen=True)
class CriteoX1Raw(_ThreeFiles):
    """Criteo_x1: integers scaled to 0 … 1, categoricals as plain ids, nothing missing; commas and a header."""

    def write(self, output: Output) -> None:
        _write(output, self.seed, self.sizes(X1_SHARES), KAGGLE_RATE, header=HEADER, encoded=True)


@dataclass(frozen=True)
class CriteoX4Raw(_ThreeFiles):
    """Criteo_x4: the values of the Kaggle file in three files, with commas and a header."""

    def write(self, output: Output) -> None:
        _write(output, self.seed, self.sizes(X4_SHARES), KAGGLE_RATE, header=HEADER)


class _Rows(NamedTuple):
    """One array per column; ``integers`` are quantiles, ``categoricals`` ranks."""

    integers: list[np.ndarray]
    categoricals: list[np.ndarray]
    missing: dict[float, np.ndarray]  # by share, which columns have in common
    score: np.ndarray  # the sum of the effects


def _write(
    output: Output,
    seed: int,
    sizes: dict[str, int],
    rate: float,
    delimiter: str = ",",
    header: str | None = None,
    encoded: bool = False,
) -> None:
    """Write files of ``sizes`` rows, one after the other parts of one sequence of rows, with that rate of clicks."""
    draws = Draws(seed)
    pilot = _rows(draws, 0, min(PILOT_ROWS, int(sum(sizes.values())))).score
    level = intercept(lambda level: _logistic(pilot + level), rate)
    before = 0
    for name, size in sizes.items():
        for first, count in parts(int(size), BLOCK_ROWS):
            rows = _rows(draws, before + first, count)
            click = draws.uniform("label", before + first, count) < _logistic(rows.score + level)
            columns = {"label": click.astype(np.int8), **(_encoded(rows) if encoded else _raw(rows))}
            output.write(name, columns, header=header, delimiter=delimiter, final=int(size))
        before += int(size)


def _raw(rows: _Rows) -> dict[str, pa.Array]:
    integers = {
        f"I{i}": nullable(_integer(integer, quantile), rows.missing[integer.missing])
        for i, (integer, quantile) in enumerate(zip(INTEGERS, rows.integers, strict=True), start=1)
    }
    categoricals = {
        f"C{i + 1}": _hexadecimal(_hash(i, rank), rows.missing[categorical.missing])
        for i, (categorical, rank) in enumerate(zip(CATEGORICALS, rows.categoricals, strict=True))
    }
    return {**integers, **categoricals}


def _encoded(rows: _Rows) -> dict[str, np.ndarray]:
    """Integers as a scaled heavy tail, most values near 0; a missing categorical is a value like others, with id 0."""
    integers = {
        f"I{i}": np.where(rows.missing[integer.missing], 0, np.round(quantile**4, 6))
        for i, (integer, quantile) in enumerate(zip(INTEGERS, rows.integers, strict=True), start=1)
    }
    categoricals = {
        f"C{i}": np.where(rows.missing[categorical.missing], 0, rank + 1)
        for i, (categorical, rank) in enumerate(zip(CATEGORICALS, rows.categoricals, strict=True), start=1)
    }
    return {**integers, **categoricals}


def _rows(draws: Draws, first: int, count: int) -> _Rows:
    shares = {column.missing for column in (*INTEGERS, *CATEGORICALS)}
    missing = {share: draws.uniform(f"missing {share}", first, count) < share for share in sorted(shares)}
    score = np.zeros(count)
    integers = []
    for i, integer in enumerate(INTEGERS):
        integers.append(draws.uniform(f"integer {i}", first, count))
        if i in SIGNAL_INTEGERS:
            score += np.where(missing[integer.missing], 0, integers[-1] - 0.5)
    categoricals = []
    for i, categorical in enumerate(CATEGORICALS):
        # As in data.generate.zipf, with a power that gives the commonest value its share.
        log = np.log(categorical.values + 1.0)
        power = np.log(np.log(2) / log) / np.log(categorical.top)
        ranks = np.exp(draws.uniform(f"categorical {i}", first, count) ** power * log).astype(np.int64) - 1
        categoricals.append(np.minimum(ranks, categorical.values - 1))
        if i in SIGNAL_CATEGORICALS:
            effect = (_hash(i, categoricals[-1]) & 0xFFFF) / 65_536 - 0.5
            score += np.where(missing[categorical.missing], 0, effect)
    return _Rows(integers, categoricals, missing, STRENGTH * score)


def _integer(integer: Integer, quantile: np.ndarray) -> np.ndarray:
    lowest = integer.quantiles[0]
    logs = np.log1p(np.array(integer.quantiles) - lowest)
    return np.floor(np.expm1(np.interp(quantile, LEVELS, logs)) + 0.5).astype(np.int64) + lowest


def _logistic(score: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-score))


def _hash(column: int, rank: np.ndarray) -> np.ndarray:
    """32 bits per rank, different for different ranks of a column (each step can be undone), as uint32."""
    word: np.ndarray = rank.astype(np.uint32) + np.uint32((column + 1) * 0x9E3779B1 % 2**32)
    for _ in range(2):
        word = (word ^ (word >> 16)) * np.uint32(0x45D9F3B)
    return word ^ (word >> 16)


def _hexadecimal(words: np.ndarray, missing: np.ndarray) -> pa.Array:
    """8 digits per word, null where ``missing``."""
    import pyarrow as pa
    from pyarrow import compute

    digits = np.frombuffer(words.astype(">u4").tobytes().hex().encode(), dtype=np.uint8)
    offsets = np.arange(len(words) + 1, dtype=np.int32) * 8
    array = pa.StringArray.from_buffers(len(words), pa.py_buffer(offsets), pa.py_buffer(digits))
    return compute.if_else(pa.array(missing), pa.scalar(None, pa.string()), array)
