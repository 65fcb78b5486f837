"""A prepared data set that somebody else made: no file but its own, nothing run, no absurd size."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.module import PreparedData
from data.preparation import DataError
from kunlun.features import FeatureSchema, SparseField, Table, Task


def schema_json(**changes) -> dict:
    schema = FeatureSchema("toy", (Task("click", 0.5),), ("a",), (SparseField("f", "f"),), {"f": Table(9)})
    return {**json.loads(schema.to_json()), **changes}


def forged(folder: Path, **changes) -> Path:
    (folder / "schema.json").write_text(json.dumps(schema_json(**changes)))
    return folder


EVENT = {"fields": [{"name": "f", "table": "f"}], "timestamps": False, "mean_length": 1.0, "max_length": 0}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ".", "", "x\0y"])
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = forged(tmp_path, events=[{"name": name, **EVENT}])
    with pytest.raises(ValueError, match=r"schema\.json cannot be read .*its files are named after it"):
        _ = PreparedData(str(folder)).schema


@pytest.mark.parametrize("rows", [10**30, -1, 0, 1e9, "9", None, [9]])
def test_absurd_sizes_are_refused(rows: object, tmp_path: Path) -> None:
    folder = forged(tmp_path, tables={"f": {"rows": rows, "encoding": "hash", "min_count": 1}})
    with pytest.raises(ValueError, match=r"schema\.json cannot be read"):
        _ = PreparedData(str(folder)).schema


def test_a_schema_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"schema\.json cannot be read"):
        _ = PreparedData(str(tmp_path)).schema


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.command = f"touch {witness}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickles_in_the_folder_are_not_opened(tmp_path: Path) -> None:
    witness, evil = tmp_path / "witness", pickle.dumps(Malicious(tmp_path / "witness"))
    folder = forged(tmp_path)
    (folder / "train").mkdir()
    for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json", "data.pkl"):
        (folder / "train" / name).write_bytes(evil)
    with pytest.raises(DataError, match="damaged"):
        len(PreparedData(str(folder)).split("train"))
    assert not witness.exists()
    pickle.loads(evil)
    assert witness.exists()  # the test tests something


def test_a_column_type_that_is_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    """Arrow's extension types for Python held pickles; reading one ran it, in old versions."""
    witness, folder = tmp_path / "witness", forged(tmp_path)
    (folder / "train").mkdir()
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Malicious(witness)),
    }
    columns = pa.schema([pa.field("labels", pa.float32(), metadata=metadata)])
    batch = pa.record_batch([pa.array(np.zeros(3, np.float32))], schema=columns)
    with pa.OSFile(str(folder / "train" / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, columns) as writer:
        writer.write_batch(batch)
    assert len(PreparedData(str(folder)).split("train")) == 3
    assert not witness.exists()
