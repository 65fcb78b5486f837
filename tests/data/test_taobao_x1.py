"""TaobaoAd_x1: every row and history of the prepared sample against the raw text, worked out here in plain Python."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data import taobao_x1
from data.preparation import DataError
from data.taobao_x1 import LAYOUT, SPARSE, TaobaoX1Options
from kunlun.features import FeatureSchema

CODES = {"pv": "1", "cart": "3", "fav": "4", "buy": "2"}
SPLITS = ("train", "valid", "test")


def load(out: Path) -> dict[str, dict[str, np.ndarray]]:
    loaded = {split: datasets.load_from_disk(str(out / split)) for split in SPLITS}
    return {split: data.with_format("numpy")[:] for split, data in loaded.items() if data.num_rows}


def history(out: Path, event: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.arrow"))).read_all()
    offsets = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.offsets.arrow"))).read_all()
    return table.to_pandas(), offsets["offset"].to_numpy()


def vocabulary(values: list[str], min_count: int) -> dict[str, int]:
    known = sorted((-n, value) for value, n in Counter(values).items() if n >= min_count)
    return {value: 2 + i for i, (_, value) in enumerate(known)}


@pytest.fixture(scope="module")
def raw(sample_data: Path) -> pd.DataFrame:
    return pd.read_csv(sample_data / "taobao_ad_x1_sample.csv.gz", dtype=str).astype(object)


@pytest.fixture(scope="module")
def out(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taobao_x1") / "out"
    taobao_x1.prepare(sample_data / "taobao_ad_x1_sample.csv.gz", out, TaobaoX1Options(min_count=2))
    return out


@pytest.fixture(scope="module")
def schema(out: Path) -> FeatureSchema:
    return FeatureSchema.load(out)


@pytest.fixture(scope="module")
def splits(out: Path) -> dict[str, dict[str, np.ndarray]]:
    return load(out)


def train_rows(splits: dict) -> np.ndarray:
    return splits["train"]["key"] - 1


def test_every_row_is_in_one_split(splits: dict, raw: pd.DataFrame, schema: FeatureSchema) -> None:
    assert len(raw) == 2304
    keys = np.concatenate([split["key"] for split in splits.values()])
    assert sorted(keys) == list(range(1, 2305))
    assert sum(schema.rows.values()) == schema.provenance["counts"]["input_rows"] == 2304
    for name in ("valid", "test"):
        assert abs(schema.rows[name] - 230) < 60  # four standard deviations
    for split in splits.values():
        assert (np.diff(split["key"]) > 0).all()
        np.testing.assert_array_equal(split["labels"][:, 0], raw.clk.astype(int).to_numpy()[split["key"] - 1])
        np.testing.assert_array_equal(split["history"], split["key"] - 1)
    assert schema.tasks[0].train_rate == pytest.approx(raw.clk.astype(int).to_numpy()[train_rows(splits)].mean())


def expected_ids(raw: pd.DataFrame, train: np.ndarray, table: str) -> dict[str, int]:
    fields = {"category": ("cate_id", "cate_his"), "brand": ("brand", "brand_his")}.get(table, (table,))
    values = [v for field in fields for text in raw[field].iloc[train] for v in text.split("^")]
    return vocabulary(values, 2)


def test_sparse_ids(splits: dict, raw: pd.DataFrame, schema: FeatureSchema) -> None:
    assert tuple(f.name for f in schema.sparse) == SPARSE
    assert {f.name: f.table for f in schema.sparse}["cate_id"] == "category"
    for i, f in enumerate(schema.sparse):
        ids = expected_ids(raw, train_rows(splits), f.table)
        assert schema.tables[f.table].rows == 2 + len(ids)
        for split in splits.values():
            expected = [ids.get(value, 1) for value in raw[f.name].iloc[split["key"] - 1]]
            np.testing.assert_array_equal(split["sparse"][:, i], expected, err_msg=f.name)


def test_histories_are_the_lists_in_their_order(
    splits: dict, raw: pd.DataFrame, schema: FeatureSchema, out: Path
) -> None:
    ids = {name: expected_ids(raw, train_rows(splits), name) for name in ("category", "brand")}
    pointers = np.empty((len(raw), len(CODES)), np.int64)
    for split in splits.values():
        pointers[split["history"]] = split["pointers"]
    for e, (event, code) in enumerate(CODES.items()):
        events, offsets = history(out, event)
        assert list(events.columns) == ["category", "brand"]
        assert len(offsets) == len(raw) + 1
        np.testing.assert_array_equal(np.diff(offsets), pointers[:, e])
        category, brand = events.category.to_numpy(), events.brand.to_numpy()
        for row, (codes, categories, brands) in enumerate(zip(raw.btag_his, raw.cate_his, raw.brand_his, strict=True)):
            lists = zip(codes.split("^"), categories.split("^"), brands.split("^"), strict=True)
            expected = [(ids["category"].get(c, 1), ids["brand"].get(b, 1)) for t, c, b in lists if t == code]
            own = slice(offsets[row], offsets[row + 1])
            assert list(zip(category[own], brand[own], strict=True)) == expected, (event, row)


def test_prices_and_users(splits: dict, raw: pd.DataFrame) -> None:
    price = raw.price.astype(float).to_numpy()
    train = price[train_rows(splits)]
    user = raw.userid.rank(method="dense").astype(int).to_numpy() - 1
    for split in splits.values():
        rows = split["key"] - 1
        np.testing.assert_allclose(split["dense"][:, 0], (price[rows] - train.mean()) / train.std(), atol=1e-5)
        np.testing.assert_array_equal(split["user"], user[rows])


def test_schema(splits: dict, schema: FeatureSchema) -> None:
    assert [event.name for event in schema.events] == list(CODES)
    assert not any(event.timestamps for event in schema.events)
    assert (schema.users, schema.request_times) == (True, False)
    means = [event.mean_length for event in schema.events]
    np.testing.assert_allclose(means, splits["train"]["pointers"].mean(0))


def test_a_folder_with_train_and_test(sample_data: Path, splits: dict, tmp_path: Path) -> None:
    lines = gzip.decompress((sample_data / "taobao_ad_x1_sample.csv.gz").read_bytes()).decode().splitlines(True)
    (tmp_path / "train.csv").write_text("".join(lines[:2001]))
    (tmp_path / "test.csv").write_text("".join([lines[0], *lines[2001:]]))
    schema = taobao_x1.prepare(tmp_path, tmp_path / "out", TaobaoX1Options(threads=1))
    rows = load(tmp_path / "out")
    assert rows["test"]["key"].tolist() == list(range(2001, 2305))
    # The valid rows are those that the same seed chose above.
    assert rows["valid"]["key"].tolist() == [key for key in splits["valid"]["key"] if key <= 2000]
    assert schema.rows["train"] + schema.rows["valid"] == 2000


def line(**changes: object) -> str:
    values = dict.fromkeys(LAYOUT.columns, "1") | {"clk": "0", "price": "0.5"}
    values |= {"btag_his": "1^3^1^2", "cate_his": "11^12^13^14", "brand_his": "21^22^^24"}
    return ",".join(str(value) for value in (values | changes).values()) + "\n"


HEADER = ",".join(LAYOUT.columns) + "\n"


def small(tmp_path: Path, text: str, **options: object) -> FeatureSchema:
    (tmp_path / "rows.csv").write_text(text)
    defaults = {"valid_fraction": 0.0, "test_fraction": 0.0, "min_count": 1}
    return taobao_x1.prepare(tmp_path / "rows.csv", tmp_path / "out", TaobaoX1Options(**(defaults | options)))


def test_empty_histories_and_missing_values(tmp_path: Path) -> None:
    text = HEADER + line() + line(btag_his="", cate_his="", brand_his="", price="", brand="") + line()
    text += line(btag_his="4", cate_his="", brand_his="")
    small(tmp_path, text)
    rows = load(tmp_path / "out")["train"]
    assert rows["pointers"].tolist() == [[2, 1, 0, 1], [0, 0, 0, 0], [2, 1, 0, 1], [0, 0, 1, 0]]
    assert rows["dense"][1, 0] == 0
    assert rows["sparse"][1, SPARSE.index("brand")] == 0
    events, offsets = history(tmp_path / "out", "pv")
    assert offsets.tolist() == [0, 2, 2, 4, 4]
    assert events.brand.tolist()[1] == 0  # the brand list has nothing at this place
    assert events.category.tolist()[:2] == events.category.tolist()[2:]
    assert history(tmp_path / "out", "fav")[0].to_dict("list") == {"category": [0], "brand": [0]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(clk="3"), r"rows.csv, line 4, column 1 \(clk\): expected the label, 0 or 1, found '3'"),
        (line(btag_his="1^5^1^1"), r"line 4, column 2 \(btag_his\): expected the codes 1 \(pv\), 3 \(cart\)"),
        (line(btag_his="1^^1^1"), r"line 4, column 2 \(btag_his\)"),
        (line(cate_his="1^2^3"), r"line 4, column 3 \(cate_his\): expected as many whole numbers, joined by \^, as"),
        (line(brand_his="1^2^3^x"), r"line 4, column 4 \(brand_his\)"),
        (line(btag_his=""), r"line 4, column 3 \(cate_his\)"),
        (line(userid=""), r"line 4, column 5 \(userid\): expected a whole number, found nothing"),
        (line(cms_segid="a"), r"line 4, column 6 \(cms_segid\): .* found 'a'"),
        (line(price="nan"), r"line 4, column 19 \(price\): expected a finite number or nothing, found 'nan'"),
        (line(price="inf"), r"line 4, column 19 \(price\): .* found 'inf'"),
        (line()[:-3] + "\n", r"rows.csv, line 4: expected 21 columns parted by ',', found 20"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(tmp_path, HEADER + line() * 2 + bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line() * 3, "rows.csv, line 1: the header must be clk,btag_his,"),
        (HEADER.replace("brand,price", "price,brand") + line(), r"line 1: the header .*'price' as column 18"),
        (HEADER.replace(",btag\n", "\n") + line(), r"line 1: the header .* has 20 names"),
        (HEADER, "rows.csv: there are no rows in it"),
        ("", "rows.csv: there are no rows in it"),
    ],
)
def test_headers_are_checked(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(tmp_path, text)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of train\.csv"):
        taobao_x1.prepare(tmp_path, tmp_path / "out")
    (tmp_path / "train.csv").write_text(HEADER + line())
    with pytest.raises(DataError, match=r"holds none of test\.csv"):
        taobao_x1.prepare(tmp_path, tmp_path / "out")


def test_an_empty_train_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the train split is empty"):
        small(tmp_path, HEADER + line(), valid_fraction=0.9999)


@pytest.mark.parametrize(
    "options", [{"valid_fraction": -0.1}, {"valid_fraction": 0.5, "test_fraction": 0.5}, {"min_count": 0}]
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TaobaoX1Options(**options)
