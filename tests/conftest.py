"""Shared fixtures: the sample data, small schemas and random packed batches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
if not torch.cuda.is_available():  # before triton is imported: its interpreter runs the kernels in the tests
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules first: begun last, one of them would leave all other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real sample rows; the data sets' owners do not let them be copied into the project."""
    folder = Path(os.environ.get("KUNLUN_SAMPLE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "criteo_kaggle_110k.tsv.gz").is_file():
        pytest.skip(f"no sample rows at {folder}; set KUNLUN_SAMPLE_DATA to a folder that has them")
    return folder
