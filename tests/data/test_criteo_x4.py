"""Criteo_x4 and Criteo_x1, written in their layouts from real rows: splits by file, fitted on train.csv alone."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from data import criteo_x1, criteo_x4
from data.criteo import CATEGORICALS, INTEGERS
from data.criteo_x1 import CriteoX1Options
from data.criteo_x4 import CriteoX4Options
from data.preparation import DataError

ROWS = {"train": 8_000, "valid": 1_000, "test": 1_000}


@pytest.fixture(scope="module")
def frames(sample_data: Path) -> dict[str, pd.DataFrame]:
    """Rows of the Kaggle sample as text, cut into the three splits."""
    columns = ["label", *INTEGERS, *CATEGORICALS]
    path = sample_data / "criteo_kaggle_110k.tsv.gz"
    rows = pd.read_csv(path, sep="\t", header=None, names=columns, dtype=str, nrows=10_000)
    ends = np.cumsum(list(ROWS.values()))
    return {split: rows[end - n : end] for (split, n), end in zip(ROWS.items(), ends, strict=True)}


def write(folder: Path, frames: dict[str, pd.DataFrame]) -> Path:
    folder.mkdir()
    for split, frame in frames.items():
        frame.to_csv(folder / f"{split}.csv", index=False)
    return folder


def read(out: Path, split: str) -> dict[str, np.ndarray]:
    return datasets.load_from_disk(str(out / split)).with_format("numpy")[:]


def encoded(train: pd.Series, column: pd.Series, min_count: int) -> np.ndarray:
    """0 missing, 1 rarer than min_count in train, 2… by falling count, then by value."""
    counts = train.dropna().value_counts()
    known = sorted((-n, value) for value, n in counts.items() if n >= min_count)
    ids = {value: 2 + i for i, (_, value) in enumerate(known)}
    return np.array([0 if pd.isna(value) else ids.get(value, 1) for value in column])


def test_x4_is_encoded_by_its_train_file(frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    raw = write(tmp_path / "Criteo_x4", frames)
    schema = criteo_x4.prepare(raw, tmp_path / "out", CriteoX4Options())
    assert schema.name == "criteo-x4"
    assert schema.rows == ROWS
    assert schema.tasks[0].train_rate == pytest.approx((frames["train"].label == "1").mean())
    names = [f.name for f in schema.sparse]
    first = {"train": 0, "valid": 8_000, "test": 9_000}
    for split, frame in frames.items():
        rows = read(tmp_path / "out", split)
        np.testing.assert_array_equal(rows["key"], first[split] + 1 + np.arange(len(frame)))
        np.testing.assert_array_equal(rows["labels"][:, 0], frame.label.astype(int))
        for name in ("C1", "C3", "C20", "C26"):
            expected = encoded(frames["train"][name], frame[name], 10)
            np.testing.assert_array_equal(rows["sparse"][:, names.index(name)], expected, err_msg=name)


def test_x1_takes_decimals_and_keeps_every_category(frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    codes = {
        name: {v: str(i) for i, v in enumerate(pd.concat(frames.values())[name].unique())} for name in CATEGORICALS
    }
    scaled = {}
    for split, frame in frames.items():
        numbers = frame[list(INTEGERS)].astype(float).fillna(0.0) / 1000
        scaled[split] = frame.assign(**numbers, **{name: frame[name].map(codes[name]) for name in CATEGORICALS})
    raw = write(tmp_path / "Criteo_x1", scaled)
    schema = criteo_x1.prepare(raw, tmp_path / "out", CriteoX1Options())
    assert schema.rows == ROWS
    assert [f.name for f in schema.sparse] == list(CATEGORICALS)
    train = scaled["train"]
    for name in CATEGORICALS:
        assert schema.tables[name].rows == 2 + train[name].nunique()
    for split, frame in scaled.items():
        rows = read(tmp_path / "out", split)
        expected = (frame.I2 - train.I2.mean()) / train.I2.std(ddof=0)
        np.testing.assert_allclose(rows["dense"][:, 1], expected, atol=1e-4)
        np.testing.assert_array_equal(rows["sparse"][:, 4], encoded(train.C5, frame.C5, 1))


def test_x1_has_no_buckets_and_a_folder_of_three_files_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Criteo_x1 are scaled"):
        CriteoX1Options(buckets=True)
    (tmp_path / "train.csv").write_text("label\n")
    with pytest.raises(DataError, match=r"holds none of valid\.csv"):
        criteo_x4.prepare(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="one file; give --raw the folder"):
        criteo_x4.prepare(tmp_path / "train.csv", tmp_path / "out")


def test_whole_numbers_are_demanded_of_x4_only(frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    wrong = {split: frame[:50] for split, frame in frames.items()}
    wrong["valid"] = wrong["valid"].assign(I4="0.5")
    raw = write(tmp_path / "raw", wrong)
    with pytest.raises(DataError, match=r"valid.csv, line 2, column 5 \(I4\): expected a whole number or nothing"):
        criteo_x4.prepare(raw, tmp_path / "out")
    schema = criteo_x1.prepare(raw, tmp_path / "out", CriteoX1Options(encoding="hash", hash_rows=100))
    assert schema.tables["C1"].rows == 100
