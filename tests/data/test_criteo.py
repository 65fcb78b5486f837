"""Criteo: the prepared sample against the raw text, worked out here without the code under test."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from data import criteo
from data.criteo import CATEGORICALS, INTEGERS, LAYOUT, CriteoOptions, split_ends
from data.preparation import DataError
from data.raw import Raw
from kunlun.features import FeatureSchema

TRAIN_ROWS = 95_000


@pytest.fixture(scope="module")
def raw(sample_data: Path) -> pd.DataFrame:
    frame = pd.read_csv(
        sample_data / "criteo_kaggle_110k.tsv.gz",
        sep="\t",
        header=None,
        names=["label", *INTEGERS, *CATEGORICALS],
        dtype=dict.fromkeys(CATEGORICALS, str),
    )
    return frame.astype(dict.fromkeys(CATEGORICALS, object))


@pytest.fixture(scope="module")
def out(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("criteo") / "out"
    options = CriteoOptions(train_rows=TRAIN_ROWS, count_features=True)
    criteo.prepare(sample_data / "criteo_kaggle_110k.tsv.gz", out, options)
    return out


@pytest.fixture(scope="module")
def schema(out: Path) -> FeatureSchema:
    return FeatureSchema.load(out)


@pytest.fixture(scope="module")
def rows(out: Path) -> dict[str, np.ndarray]:
    """The columns of train and valid end to end."""
    splits = [datasets.load_from_disk(str(out / split)).with_format("numpy") for split in ("train", "valid")]
    return {name: np.concatenate([split[:][name] for split in splits]) for name in splits[0].column_names}


def vocabulary(train: pd.Series, min_count: int) -> dict:
    """Ids by falling count, then by value."""
    counts = train.dropna().value_counts()
    known = sorted(((-n, value) for value, n in counts.items() if n >= min_count))
    return {value: 2 + i for i, (_, value) in enumerate(known)}


def encoded(column: pd.Series, ids: dict) -> list[int]:
    return [0 if pd.isna(value) else ids.get(value, 1) for value in column]


def test_rows_labels_and_rate(out: Path, raw: pd.DataFrame, rows: dict, schema: FeatureSchema) -> None:
    assert len(raw) == 110_000
    assert round(raw.label.mean(), 3) == 0.257
    assert schema.rows == {"train": 95_000, "valid": 15_000, "test": 0}
    assert schema.tasks[0].train_rate == pytest.approx(raw.label[:TRAIN_ROWS].mean(), abs=1e-12)
    np.testing.assert_array_equal(rows["labels"][:, 0], raw.label)
    np.testing.assert_array_equal(rows["key"], np.arange(1, 110_001))
    assert not schema.users
    assert schema.events == ()
    assert not (out / "histories").exists()


def test_categorical_ids(raw: pd.DataFrame, rows: dict, schema: FeatureSchema) -> None:
    names = [f.name for f in schema.sparse]
    assert names == [*CATEGORICALS, *(f"{name}_bucket" for name in INTEGERS)]
    for name in CATEGORICALS:
        ids = vocabulary(raw[name][:TRAIN_ROWS], 3)
        assert schema.tables[name].rows == 2 + len(ids)
        np.testing.assert_array_equal(rows["sparse"][:, names.index(name)], encoded(raw[name], ids), err_msg=name)


def test_buckets(raw: pd.DataFrame, rows: dict, schema: FeatureSchema) -> None:
    names = [f.name for f in schema.sparse]
    for name in INTEGERS:
        token = raw[name].map(lambda x: x if math.isnan(x) or x <= 2 else math.floor(math.log(x) ** 2) + 2)
        ids = vocabulary(token[:TRAIN_ROWS], 3)
        assert schema.tables[f"{name}_bucket"].rows == 2 + len(ids)
        found = rows["sparse"][:, names.index(f"{name}_bucket")]
        np.testing.assert_array_equal(found, encoded(token, ids), err_msg=name)


def test_dense_values(raw: pd.DataFrame, rows: dict, schema: FeatureSchema) -> None:
    assert schema.dense == (*INTEGERS, *(f"{name}_count" for name in CATEGORICALS))
    assert rows["dense"].dtype == np.float32
    columns = {name: np.sign(raw[name]) * np.log1p(raw[name].abs()) for name in INTEGERS}
    for name in CATEGORICALS:
        counts = raw[name][:TRAIN_ROWS].value_counts()
        columns[f"{name}_count"] = np.log1p(raw[name].map(counts).fillna(0)).where(raw[name].notna())
    for name, x in columns.items():
        train = x[:TRAIN_ROWS].dropna()
        expected = ((x - train.mean()) / train.std(ddof=0)).fillna(0.0)
        np.testing.assert_allclose(rows["dense"][:, schema.dense.index(name)], expected, atol=2e-5, err_msg=name)


def test_a_row_read_by_eye(raw: pd.DataFrame, rows: dict, schema: FeatureSchema) -> None:
    # Line 2: 0, I1 = 1, I2 = 1, I3 = 4, … C1 = 05db9164, the most frequent value; C19, C20, C22 empty.
    line = raw.iloc[1]
    assert (line.label, line.I1, line.I2, line.I3, line.C1) == (0, 1, 1, 4, "05db9164")
    names = [f.name for f in schema.sparse]
    sparse = dict(zip(names, rows["sparse"][1].tolist(), strict=True))
    assert sparse["C1"] == 2
    assert [sparse[name] for name in ("C19", "C20", "C22", "C25", "C26")] == [0, 0, 0, 0, 0]
    statistics = schema.provenance["statistics"]["dense"]["I3"]
    expected = (math.log(5) - statistics["mean"]) / statistics["std"]
    assert rows["dense"][1, 2] == pytest.approx(expected, abs=1e-6)


def test_provenance(schema: FeatureSchema) -> None:
    counts = schema.provenance["counts"]
    assert counts["input_rows"] == counts["train_rows"] + counts["valid_rows"] + counts["test_rows"] == 110_000
    assert schema.provenance["source"][0]["name"] == "criteo_kaggle_110k.tsv.gz"


def line(label: object = 0, integer: object = 1, category: str = "68fd1e64") -> str:
    return "\t".join([str(label), *[str(integer)] * 13, *[category] * 26]) + "\n"


def small(tmp_path: Path, text: str, **options: object) -> tuple[FeatureSchema, dict[str, np.ndarray]]:
    """Prepare ``text``; the schema, and the columns of all splits end to end."""
    (tmp_path / "train.txt").write_text(text)
    schema = criteo.prepare(tmp_path, tmp_path / "out", CriteoOptions(**options))
    loaded = [datasets.load_from_disk(str(tmp_path / "out" / split)) for split in ("train", "valid", "test")]
    loaded = [split.with_format("numpy")[:] for split in loaded if split.num_rows]
    return schema, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}


def test_rare_unseen_and_missing_values(tmp_path: Path) -> None:
    text = line(category="aa") * 3 + line(category="bb") * 2 + line(category="") + line(category="cc") * 3
    schema, rows = small(tmp_path, text, train_rows=6, min_count=3, buckets=False)
    # bb is too rare in train; cc comes only after it.
    assert rows["sparse"][:, 0].tolist() == [2, 2, 2, 1, 1, 0, 1, 1, 1]
    assert schema.tables["C1"].rows == 3
    assert schema.rows == {"train": 6, "valid": 3, "test": 0}


def test_hashing(tmp_path: Path) -> None:
    text = line(category="68fd1e64") * 2 + line(category="") + line(category="0b153874")
    schema, rows = small(tmp_path, text, encoding="hash", hash_rows=1000, buckets=False, train_rows=2)
    expected = [2 + int(hashlib.md5(value.encode()).hexdigest()[:8], 16) % 998 for value in ("68fd1e64", "0b153874")]
    assert rows["sparse"][:, 5].tolist() == [expected[0], expected[0], 0, expected[1]]
    assert (schema.tables["C6"].rows, schema.tables["C6"].encoding) == (1000, "hash")


def test_standardising_alone_and_negative_values(tmp_path: Path) -> None:
    text = line(integer=-2) + line(integer=2) + line(integer="") + line(integer=6)
    _, rows = small(tmp_path, text, dense="standard", train_rows=3, min_count=1)
    np.testing.assert_allclose(rows["dense"][:, 0], [-1, 1, 0, 3])
    # Buckets: -2 and 2 are tokens of their own, nothing is missing, and 6 was not in train.
    assert rows["sparse"][:, 26].tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (80, 10, 10)),
        ({"train_fraction": 0.9, "valid_fraction": 0.1}, (90, 10, 0)),
        ({"train_rows": 70}, (70, 30, 0)),
        ({"train_rows": 70, "valid_rows": 20}, (70, 20, 10)),
    ],
)
def test_splits_are_by_row_order(options: dict, expected: tuple[int, int, int]) -> None:
    ends = split_ends(Raw("raw", None, 100, LAYOUT, ()), CriteoOptions(**options))
    assert (ends[0], ends[1] - ends[0], ends[2] - ends[1]) == expected


def test_more_rows_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_rows 8 and valid_rows 3 are more than the 10 rows"):
        small(tmp_path, line() * 10, train_rows=8, valid_rows=3)
    assert not (tmp_path / "out").exists()


def test_an_empty_train_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="criteo: the train split is empty"):
        small(tmp_path, line(), train_fraction=0.5, buckets=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(label=2), r"train.txt, line 4, column 1 \(label\): expected the label, 0 or 1, found '2'"),
        (line(label=""), r"line 4, column 1 \(label\): .* found nothing"),
        (line(integer="many"), r"line 4, column 2 \(I1\): expected a whole number or nothing, found 'many'"),
        (line(integer="nan"), r"line 4, column 2 \(I1\): .* found 'nan'"),
        (line(integer="1.5"), r"line 4, column 2 \(I1\): .* found '1.5'"),
        (line()[:-10] + "\n", r"train.txt, line 4: expected 40 columns parted by '\\t', found 39"),
        (line()[:-1] + "\tx\n", r"train.txt, line 4: expected 40 columns parted by '\\t', found 41"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(tmp_path, line() * 3 + bad + line() * 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt"]


def test_the_result_does_not_depend_on_threads(sample_data: Path, tmp_path: Path) -> None:
    raw = sample_data / "criteo_1tb_day0_10k.tsv.gz"
    written = []
    for threads in (1, 4):
        out = tmp_path / str(threads)
        criteo.prepare(raw, out, CriteoOptions(threads=threads))
        written.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.arrow")})
    assert written[0] == written[1]
    assert len(written[0]) == 3


def test_a_day_of_the_1_tb_logs(sample_data: Path, tmp_path: Path) -> None:
    schema = criteo.prepare(sample_data / "criteo_1tb_day0_10k.tsv.gz", tmp_path / "out")
    assert schema.rows == {"train": 8_000, "valid": 1_000, "test": 1_000}
    splits = [datasets.load_from_disk(str(tmp_path / "out" / split)).with_format("numpy")[:] for split in schema.rows]
    labels = np.concatenate([split["labels"][:, 0] for split in splits])
    assert labels.sum() == 265


def test_whole_days_are_train(tmp_path: Path) -> None:
    for day, rows in ((0, 5), (1, 4), (2, 6)):
        (tmp_path / f"day_{day}").write_text(line() * rows)
    schema = criteo.prepare(tmp_path, tmp_path / "out", CriteoOptions(train_files=2))
    assert schema.rows == {"train": 9, "valid": 3, "test": 3}
    with pytest.raises(DataError, match="train_files 3 leaves none of the 3 files to valid"):
        criteo.prepare(tmp_path, tmp_path / "other", CriteoOptions(train_files=3))


@pytest.mark.parametrize(
    "options",
    [
        {"train_fraction": 0.0},
        {"train_fraction": 0.9, "valid_fraction": 0.2},
        {"valid_rows": 5},
        {"train_rows": 0},
        {"min_count": 0},
        {"hash_rows": 2},
        {"train_files": 0},
    ],
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CriteoOptions(**options)
