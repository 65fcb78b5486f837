"""Criteo: a click label, 13 integers and 26 hashed categoricals per row, in the order of time; no users, no histories.

Both the Kaggle ``train.txt`` and the ``day_*`` files of the 1 TB logs: tabs, no header, an empty value is missing.
The split is by row order, because the rows are in the order of time. The versions that come split
(:mod:`data.criteo_x1`, :mod:`data.criteo_x4`) share what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir

from data.encoding import (
    Standardisation,
    Vocabulary,
    fit_vocabulary,
    hash_id,
    hash_text,
    look_up,
)
from data.preparation import DataError, PreparationOptions, Workspace, prepare_dataset
from data.prepared import SPLITS
from data.raw import ROW, Check, Layout, Raw, find_sources, is_finite_number, is_integer, require, stage
from kunlun.features import FeatureSchema, SparseField, Table, Task

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORICALS = tuple(f"C{i}" for i in range(1, 27))
LAYOUT = Layout(columns=("label", *INTEGERS, *CATEGORICALS), delimiter="\t")
FILES = ("train.txt", "train.tsv", "day_*")
ROWS_PER_QUERY = 524_288
MOST_QUERIES = 16


@dataclass(frozen=True)
class CriteoEncoding(PreparationOptions):
    """How Criteo's values are encoded, whichever version they come from."""

    encoding: Literal["vocabulary", "hash"] = "vocabulary"
    """Categoricals: a vocabulary fitted on train, or feature hashing into hash_rows."""
    min_count: int = 3
    """Values seen less often in train than this are 'unknown' (vocabularies, those of the buckets too)."""
    hash_rows: int = 2**20
    """Rows of each categorical's table with encoding 'hash', the two reserved ids included."""
    dense: Literal["log", "standard"] = "log"
    """Integers as dense features: log(1 + |x|) with the sign of x, then standardised on train; or only standardised."""
    buckets: bool = True
    """Give each integer a categorical field too (I1_bucket …), so that a model sees missing and special values."""
    count_features: bool = False
    """Add a dense feature per categorical (C1_count …): the standardised log of how often train has its value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_count < 1 or self.hash_rows < 3:
            raise ValueError("min_count must be at least 1 and hash_rows at least 3")


@dataclass(frozen=True)
class CriteoOptions(CriteoEncoding):
    """How to split and encode Criteo. Rows are counted in the order of the files, bad ones included."""

    train_fraction: float = 0.8
    """Share of the rows, from the first on, that is the train split."""
    valid_fraction: float = 0.1
    """Share of the rows after those that is the valid split; the rest is the test split."""
    train_rows: int | None = None
    """Number of rows of the train split, instead of the fractions."""
    valid_rows: int | None = None
    """Number of rows of the valid split, with train_rows; all rows that are left if not given (test is empty then)."""
    train_files: int | None = None
    """Number of files, from the first on, that are the train split; half of the rest is valid, half test (1 TB: 23)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.train_fraction <= 1 or not 0 <= self.valid_fraction <= 1 - self.train_fraction + 1e-9:
            raise ValueError(
                f"train_fraction {self.train_fraction} and valid_fraction {self.valid_fraction} must be shares "
                "of the rows with a sum of at most 1, the first above 0"
            )
        if self.valid_rows is not None and self.train_rows is None:
            raise ValueError("valid_rows needs train_rows; give both, or fractions")
        if (self.train_rows is not None and self.train_rows < 1) or (self.valid_rows or 0) < 0:
            raise ValueError("train_rows must be at least 1 and valid_rows at least 0")
        if self.train_files is not None and (self.train_files < 1 or self.train_rows is not None):
            raise ValueError("train_files must be at least 1, and given without train_rows")


def prepare(raw: Path, out: Path, options: CriteoOptions = CriteoOptions()) -> FeatureSchema:
    """Prepare ``raw`` (a file, or the folder of train.txt or day_*) into ``out``. DataError: see data.preparation."""
    sources = find_sources(raw, FILES)
    build = partial(
        build_criteo, name="criteo", layout=LAYOUT, options=options, ends=partial(split_ends, options=options)
    )
    return prepare_dataset("criteo", sources, out, options, build)


def prepare_split(name: str, raw: Path, out: Path, options: CriteoEncoding, scaled: bool) -> FeatureSchema:
    """Prepare the folder of train.csv, valid.csv and test.csv. DataError: see data.preparation.

    scaled: the 13 'integers' are decimals.
    """
    if Path(raw).is_file():
        raise DataError(f"{raw} is one file; give --raw the folder of train.csv, valid.csv and test.csv")
    sources = [find_sources(raw, (f"{split}.csv",))[0] for split in SPLITS]
    layout = Layout(LAYOUT.columns, ",", header=True)
    build = partial(build_criteo, name=name, layout=layout, options=options, ends=file_ends, scaled=scaled)
    return prepare_dataset(name, sources, out, options, build)


def build_criteo(
    workspace: Workspace,
    name: str,
    layout: Layout,
    options: CriteoEncoding,
    ends: Callable[[Raw], tuple[int, int, int]],
    scaled: bool = False,
) -> FeatureSchema:
    """Stage, check, fit on train, encode and write; ``ends`` says which rows are which split."""
    raw = stage(workspace, layout, workspace.sources)
    raw = require(workspace, raw, _checks(raw.table, scaled))
    rows = workspace.view(typed(raw.table, options.buckets, scaled), "typed")
    train_end, valid_end, test_end = ends(raw)
    workspace.counts["unused_rows"] = raw.rows - test_end
    workspace.say(f"checked; the first {train_end:,} rows are the train split")

    train = rows.filter(rows[ROW] <= train_end)
    dense = {name: Standardisation.fit(workspace, train[name], options.dense) for name in INTEGERS}
    vocabularies = _fit_vocabularies(workspace, train, options)
    workspace.say(f"fitted {len(dense)} dense statistics and {len(vocabularies)} vocabularies on train")

    encoded = look_up(rows, {name: (name, v) for name, v in vocabularies.items()}, counts=options.count_features)
    columns = {f"dense:{name}": dense[name].apply(encoded[name]) for name in INTEGERS}
    if options.count_features:
        for name in CATEGORICALS:
            dense[f"{name}_count"] = _fit_count(vocabularies[name])
            columns[f"dense:{name}_count"] = dense[f"{name}_count"].apply(encoded[f"count:{name}"])
    tables = {name: vocabulary.table for name, vocabulary in vocabularies.items()}
    columns |= {f"sparse:{name}": encoded[f"id:{name}"] for name in tables}
    if options.encoding == "hash":
        tables |= {name: Table(rows=options.hash_rows, encoding="hash") for name in CATEGORICALS}
        columns |= {f"sparse:{name}": hash_id(hash_text(encoded[name]), options.hash_rows) for name in CATEGORICALS}
    workspace.statistics["dense"] = {name: fitted.provenance() for name, fitted in dense.items()}

    fields = (*CATEGORICALS, *(_bucket_name(name) for name in INTEGERS if options.buckets))
    schema = FeatureSchema(
        name=name,
        tasks=(Task("click", 0.0),),
        dense=tuple(dense),
        sparse=tuple(SparseField(name, name) for name in fields),
        tables={name: tables[name] for name in fields},
    )
    wide = workspace.view(encoded.select(ROW, key=encoded[ROW], **{"label:click": encoded["label"]}, **columns), "wide")
    starts = {"train": (1, train_end), "valid": (train_end + 1, valid_end), "test": (valid_end + 1, test_end)}
    for split, (first, last) in starts.items():
        # Each query builds the tables of its joins again: few queries, so that the time stays linear in the rows.
        step = max(ROWS_PER_QUERY, -(-raw.rows // MOST_QUERIES)) if vocabularies else ROWS_PER_QUERY
        batches = workspace.batches_by_range(wide, [ROW], first, last + 1, step)
        summary = workspace.writer.write_split(split, schema, batches)
        workspace.counts[f"{split}_rows"] = summary.rows
        workspace.say(f"wrote {split}: {summary.rows:,} rows")
    return schema


def typed(raw: ir.Table, buckets: bool, scaled: bool = False) -> ir.Table:
    """Text → integers (decimals where ``scaled``) and text categoricals; with ``buckets`` the integers' tokens too."""
    integers = {name: raw[name].try_cast("float64" if scaled else "int64") for name in INTEGERS}
    tokens = {_bucket_name(name): bucket(x) for name, x in integers.items() if buckets}
    categoricals = {name: raw[name] for name in CATEGORICALS}
    return raw.select(ROW, label=raw.label.try_cast("int64"), **integers, **tokens, **categoricals)


def bucket(x: ir.IntegerValue) -> ir.IntegerValue:
    """The token of an integer: itself up to 2, then 2 + floor(ln(x)^2), about equally many values per unit of ln²(x).

    *Deviation*: elsewhere the 2 is not added, and 1 shares its token with 3 and 4.
    """
    # An engine may compute both branches, and the logarithm of 0 or -1 is an error in some: hence the inner guard.
    log = ibis.ifelse(x > 2, x, 3).cast("float64").ln()
    return ibis.ifelse(x > 2, (log * log).floor().cast("int64") + 2, x)


def split_ends(raw: Raw, options: CriteoOptions) -> tuple[int, int, int]:
    """The last row (from 1) of train, valid and test."""
    if options.train_files is not None:
        if options.train_files >= len(raw.files):
            raise DataError(f"train_files {options.train_files} leaves none of the {len(raw.files)} files to valid")
        train_rows = sum(rows for _, rows in raw.files[: options.train_files])
        return train_rows, train_rows + (raw.rows - train_rows) // 2, raw.rows
    if options.train_rows is None:
        train, valid = options.train_fraction, options.valid_fraction
        return int(raw.rows * train), min(raw.rows, int(raw.rows * (train + valid) + 1e-6)), raw.rows
    valid_rows = raw.rows - options.train_rows if options.valid_rows is None else options.valid_rows
    if options.train_rows > raw.rows or options.train_rows + valid_rows > raw.rows:
        raise DataError(
            f"train_rows {options.train_rows:,} and valid_rows {valid_rows:,} are more than "
            f"the {raw.rows:,} rows of the source; give smaller numbers, or fractions"
        )
    return options.train_rows, options.train_rows + valid_rows, raw.rows


def file_ends(raw: Raw) -> tuple[int, int, int]:
    """The same, where each split is a file."""
    train, valid, test = (rows for _, rows in raw.files)
    return train, train + valid, train + valid + test


def _checks(raw: ir.Table, scaled: bool) -> list[Check]:
    is_number, words = (is_finite_number, "a finite number") if scaled else (is_integer, "a whole number")
    return [
        Check("label", raw.label.isin(["0", "1"]), "the label, 0 or 1"),
        *(Check(name, raw[name].isnull() | is_number(raw[name]), f"{words} or nothing") for name in INTEGERS),
    ]


def _fit_vocabularies(workspace: Workspace, train: ir.Table, options: CriteoEncoding) -> dict[str, Vocabulary]:
    """Field → vocabulary; the categoricals' are fitted with encoding 'hash' only where their counts are wanted."""
    fields = [_bucket_name(name) for name in INTEGERS if options.buckets]
    if options.encoding == "vocabulary" or options.count_features:
        fields = [*CATEGORICALS, *fields]
    return {
        name: fit_vocabulary(workspace, train[name], name, options.min_count, keep_rare=options.count_features)
        for name in fields
    }


def _fit_count(vocabulary: Vocabulary) -> Standardisation:
    """Over the rows of train that have the categorical: a value seen n times stands in n of them."""
    seen = vocabulary.values.group_by("count").aggregate(values=lambda t: t.count()).order_by("count").to_pyarrow()
    times = seen["count"].to_numpy()
    return Standardisation.of_counts(times, times * seen["values"].to_numpy(), "log")


def _bucket_name(name: str) -> str:
    return f"{name}_bucket"
