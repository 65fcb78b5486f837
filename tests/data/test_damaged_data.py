"""Prepared data that was damaged after it was written: refused by name, never a crash, never quietly other rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data import PreparedData, userbehavior
from data.generate import generate
from data.generate_log import UserBehaviorRaw
from data.preparation import DataError
from data.reader import PreparedSplit
from data.userbehavior import UserBehaviorOptions
from kunlun.features import Batch, FeatureSchema

SHARDS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose splits have several files."""
    folder = tmp_path_factory.mktemp("whole")
    generate("userbehavior", folder / "raw", UserBehaviorRaw(rows=5000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.prepared.SHARD_BYTES", 1)  # a file per batch of the engine
        patch.setattr("data.engine.BATCH_ROWS", 2048)
        userbehavior.prepare(folder / "raw", folder / "out", UserBehaviorOptions(threads=1))
    return folder / "out"


@pytest.fixture
def prepared(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "out")


def read(directory: Path) -> list[Batch]:
    """Every row of every split, in batches."""
    schema = FeatureSchema.load(directory)
    batches = []
    for name in ("train", "valid", "test"):
        split = PreparedSplit(directory, schema, name, share_histories=False)
        batches += [split.__getitems__(rows) for rows in np.array_split(np.arange(len(split)), 4)]
    return batches


def same(one: list[Batch], other: list[Batch]) -> bool:
    def tensors(batches: list[Batch]) -> list[torch.Tensor]:
        found = [t for b in batches for t in (b.labels, b.sparse, b.request_time, b.user)]
        jagged = [j for b in batches for columns in b.events.values() for j in columns.values()]
        return found + [t for j in jagged for t in (j.values, j.offsets)]

    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def shards(directory: Path, split: str = "train") -> list[Path]:
    return sorted((directory / split).glob("*.arrow"))


def test_the_whole_data_set_can_be_read(whole: Path) -> None:
    assert len(shards(whole)) >= SHARDS
    assert sum(len(batch.labels) for batch in read(whole)) == sum(FeatureSchema.load(whole).rows.values())


@pytest.mark.parametrize("number", range(SHARDS))
def test_a_missing_file_of_a_split(prepared: Path, number: int) -> None:
    shards(prepared)[number].unlink()
    with pytest.raises(DataError, match=r"out/train holds [\d,]+ rows where the schema counts [\d,]+: a file"):
        read(prepared)


def test_all_files_of_a_split_missing(prepared: Path) -> None:
    for path in shards(prepared, "test"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"out/test holds no \*\.arrow file"):
        read(prepared)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 400, 0.3, 0.6, 0.9, -200, -9, -8, -7, -1])
@pytest.mark.parametrize("name", ["shard", "pv.arrow", "pv.offsets.arrow"])
def test_a_file_that_was_cut(whole: Path, prepared: Path, name: str, keep: float) -> None:
    path = shards(prepared)[1] if name == "shard" else prepared / "histories" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    if name == "shard" and keep == -8:  # the mark at the end of a stream says nothing: the rows are all there
        assert same(read(prepared), read(whole))
        return
    with pytest.raises(DataError) as error:
        read(prepared)
    assert str(path) in str(error.value) or f"{path.parent} holds" in str(error.value)
    assert "prepare" in str(error.value)


@pytest.mark.parametrize("name", ["pv.arrow", "buy.offsets.arrow"])
def test_a_missing_history(prepared: Path, name: str) -> None:
    (prepared / "histories" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"histories/{name} not found: the data set is incomplete"):
        read(prepared)


@pytest.mark.parametrize("pair", ["pv.arrow cart.arrow", "pv.offsets.arrow cart.offsets.arrow"])
def test_the_history_of_another_event(prepared: Path, pair: str) -> None:
    one, other = (prepared / "histories" / name for name in pair.split())
    shutil.copy(one, other)
    with pytest.raises(DataError, match=r"histories/cart\.arrow holds [\d,]+ events, its offsets [\d,]+"):
        read(prepared)


def test_a_split_of_another_data_set(prepared: Path) -> None:
    shutil.copy(shards(prepared)[0], shards(prepared)[1])
    shutil.copy(shards(prepared)[0], prepared / "train" / "data-99999-of-99999.arrow")
    with pytest.raises(DataError, match="out/train holds"):
        read(prepared)


def rewrite(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Write a shard again with one column changed, keeping its rows."""
    (batch,) = pa.ipc.open_stream(path.read_bytes())
    column = batch.column(name)
    values = (column.flatten() if pa.types.is_fixed_size_list(column.type) else column).to_numpy().copy()
    change(values)
    array = pa.array(values)
    if pa.types.is_fixed_size_list(column.type):
        array = pa.FixedSizeListArray.from_arrays(array, type=column.type)
    columns = [array if other == name else batch.column(other) for other in batch.schema.names]
    with pa.ipc.new_stream(path, batch.schema) as sink:
        sink.write_batch(pa.RecordBatch.from_arrays(columns, schema=batch.schema))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pointers", 10**6, "points outside its history in .*pv.arrow"),
        ("pointers", 2**60, "points outside its history in .*pv.arrow"),
        ("pointers", -1, "points outside its history in .*pv.arrow"),
        ("history", 10**6, r"pv\.arrow has \d+ histories"),
        ("history", -1, r"pv\.arrow has \d+ histories"),
    ],
)
def test_a_pointer_beyond_the_history(prepared: Path, name: str, value: int, message: str) -> None:
    def change(values: np.ndarray) -> None:
        values[0] = value

    rewrite(shards(prepared)[0], name, change)
    with pytest.raises(DataError, match=message):
        read(prepared)


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, -2])
def test_a_schema_that_was_cut(prepared: Path, keep: float) -> None:
    path = prepared / "schema.json"
    text = path.read_text()
    path.write_text(text[: int(keep * len(text)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .*prepare the data set again"):
        _ = PreparedData(str(prepared)).schema


@pytest.mark.parametrize("change", ["[]", "null", '"x"', "{}", "other format", "missing key", "key too many"])
def test_a_schema_of_something_else(prepared: Path, change: str) -> None:
    path = prepared / "schema.json"
    raw = json.loads(path.read_text())
    if change == "other format":
        raw["format"] = 99
    elif change == "missing key":
        del raw["events"]
    elif change == "key too many":
        raw["surprise"] = 1
    else:
        raw = json.loads(change)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        FeatureSchema.load(prepared)
    with pytest.raises(DataError, match="prepared from another source or with other options"):
        userbehavior.prepare(path, prepared)


FLIPS = """
import sys
from pathlib import Path
import numpy as np
from data.reader import PreparedSplit
from kunlun.features import FeatureSchema
directory, name = Path(sys.argv[1]), sys.argv[2]
path = directory / name
whole, generator, refused = path.read_bytes(), np.random.default_rng(7), 0
ends = [i for i in range(len(whole)) if not 900 <= i < len(whole) - 900]  # where the description of the data is
for place in generator.choice(ends, 300):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << generator.integers(8)
    path.write_bytes(damaged)
    try:
        split = PreparedSplit(directory, FeatureSchema.load(directory), "train", False)
        split.__getitems__(np.arange(len(split)))
    except Exception as error:
        refused += 1
print("refused", refused)
"""


@pytest.mark.parametrize("name", ["train", "histories/pv.arrow", "histories/pv.offsets.arrow"])
def test_flipped_bits_end_no_process(prepared: Path, name: str) -> None:
    """What describes the buffers is checked before they are read; a value that is another cannot be seen."""
    path = shards(prepared)[1].relative_to(prepared) if name == "train" else Path(name)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(prepared), str(path)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0
