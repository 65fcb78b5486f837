"""A small prepared data set with everything a data set can have, and the wide rows it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.prepared import PreparedWriter
from kunlun.features import BagField, EventType, FeatureSchema, SparseField, Table, Task

USERS = 20
ROWS = {"train": 700, "valid": 150, "test": 90}
START = 1_700_000_000  # 2023-11-14 22:13:20 UTC
HOSTILE = "<script>alert('x')</script>&\x1b[31m"
FIELDS = (SparseField("item", "item"), SparseField("shop", "shop"))
SCHEMA = FeatureSchema(
    name=f"toy {HOSTILE}",
    tasks=(Task("click", 0.0), Task("buy", 0.0)),
    dense=("price", "age"),
    sparse=(*FIELDS, SparseField(HOSTILE, "device")),
    tables={"item": Table(50, "hash"), "shop": Table(12, "vocabulary", 3), "device": Table(5), "tag": Table(9)},
    bags=(BagField("tags", "tag", "sum"),),
    events=(EventType("view", FIELDS), EventType("cart", FIELDS[:1])),
    users=True,
    request_times=True,
)
PROVENANCE = {
    "source": [{"name": "raw <b>.csv", "bytes": 1_234_567, "sha256": "0123456789abcdef" * 4}],
    "options": {"min_count": 3, "seed": 2017, "start": "2023-11-14"},
    "counts": {"input_rows": 1000, "dropped_duplicates": 60},
    "versions": {"python": "3.11"},
    "created": "2024-01-02T03:04:05+00:00",
    "statistics": {"price": [1.0, 2.0]},
}


@dataclass(frozen=True)
class Toy:
    """The prepared directory, its impressions as one frame per split, and its events per type."""

    path: Path
    frames: dict[str, pd.DataFrame]
    events: dict[str, pd.DataFrame]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    random = np.random.default_rng(3)
    frames = {split: _impressions(random, rows) for split, rows in ROWS.items()}
    events = {event.name: _events(random, event) for event in SCHEMA.events}
    path = tmp_path_factory.mktemp("prepared") / "toy"
    path.mkdir()
    writer = PreparedWriter(path, "f" * 64)
    for split, frame in frames.items():
        batch = pa.RecordBatch.from_pydict({name: frame[name].tolist() for name in frame})
        writer.write_split(split, SCHEMA, [batch.slice(0, 60), batch.slice(60)])
    for event in SCHEMA.events:
        batch = pa.RecordBatch.from_pandas(events[event.name], preserve_index=False)
        writer.write_history(event, SCHEMA.tables, USERS, [batch])
    writer.finish(SCHEMA, PROVENANCE)
    return Toy(path, frames, events)


def _impressions(random: np.random.Generator, rows: int) -> pd.DataFrame:
    user = random.integers(0, USERS, rows)
    return pd.DataFrame(
        {
            "label:click": random.integers(0, 2, rows),
            "label:buy": (random.random(rows) < 0.1).astype(int),
            "dense:price": (1000 + random.normal(size=rows)).astype(np.float32),
            "dense:age": (random.normal(size=rows) * (random.random(rows) < 0.7)).astype(np.float32),
            "sparse:item": random.integers(0, 50, rows),
            "sparse:shop": random.integers(0, 12, rows),
            f"sparse:{HOSTILE}": random.integers(0, 5, rows),
            "bag:tags": [random.integers(0, 9, n).tolist() for n in random.integers(0, 4, rows)],
            "request_time": START + np.sort(random.integers(0, 6 * 86_400, rows)),
            "user": user,
            "history": user,
            "pointer:view": (random.pareto(1.0, rows) * 5).astype(int),
            "pointer:cart": random.integers(0, 3, rows),
            "weight": random.random(rows).astype(np.float32) + 0.5,
        }
    )


def _events(random: np.random.Generator, event: EventType) -> pd.DataFrame:
    history = np.sort(random.integers(0, USERS, 400))
    columns = {f.name: random.integers(0, SCHEMA.tables[f.table].rows, 400) for f in event.fields}
    return pd.DataFrame({"history": history, "time": START + np.arange(400), **columns})
