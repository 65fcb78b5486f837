"""Predictions on disk: every row once, in order, with the data set's own keys, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kunlun.training.prediction import InOrder, PredictionWriter


class Keyed(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, row: int) -> int:
        return row

    def keys(self, rows: np.ndarray) -> pa.Array:
        return pa.array([f"key {row}" for row in rows])


def trainer_for(dataset: object) -> SimpleNamespace:
    return SimpleNamespace(predict_dataloaders=SimpleNamespace(dataset=dataset))


def outputs(rows: range, tasks: int) -> dict[str, torch.Tensor]:
    row = torch.tensor(list(rows))
    probability = (row[:, None] + torch.arange(tasks)) / 100
    return {"row": row, "probability": probability.to(torch.bfloat16) if tasks == 1 else probability}


def test_rows_keys_and_probabilities_are_written_batch_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.parquet"
    writer, trainer = PredictionWriter(path, ["click"]), trainer_for(Keyed())
    for i, rows in enumerate((range(3), range(3, 7))):
        writer.on_predict_batch_end(trainer, None, outputs(rows, 1), None, i)
        assert not path.exists()
    writer.on_predict_end(trainer, None)
    table = pq.read_table(path)
    assert table.column_names == ["row", "key", "probability"]
    assert table["row"].to_pylist() == list(range(7))
    assert table["key"].to_pylist() == [f"key {row}" for row in range(7)]
    np.testing.assert_allclose(table["probability"].to_numpy(), np.arange(7) / 100, rtol=1e-2)
    assert writer.rows == 7
    assert list(path.parent.iterdir()) == [path]


def test_several_tasks_have_a_column_each(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    writer, trainer = PredictionWriter(path, ["click", "conversion"]), trainer_for(object())
    writer.on_predict_batch_end(trainer, None, outputs(range(2), 2), None, 0)
    writer.on_predict_end(trainer, None)
    table = pq.read_table(path)
    assert table.column_names == ["row", "probability_click", "probability_conversion"]
    assert table["probability_conversion"].to_pylist() == pytest.approx([0.01, 0.02])


def test_an_interrupted_prediction_leaves_nothing(tmp_path: Path) -> None:
    writer, trainer = PredictionWriter(tmp_path / "predictions.parquet", ["click"]), trainer_for(Keyed())
    writer.on_predict_batch_end(trainer, None, outputs(range(2), 1), None, 0)
    writer.on_exception(trainer, None, RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_a_loader_keeps_its_order_and_its_data_set() -> None:
    dataset = Keyed()
    loader = InOrder(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=list))
    assert list(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3
    assert loader.dataset is dataset
