"""Small synthetic worlds for tests, and batches compared bit for bit."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from data.synthetic import SyntheticWorld, calibrate
from data.synthetic_presets import PRESETS
from kunlun.features import Batch

TINY = PRESETS["tiny"]
MANY = 1 << 15


def altered(**change: object) -> SyntheticWorld:
    """The tiny world with a change, calibrated on few samples."""
    config = replace(TINY, **change)
    return SyntheticWorld(config, calibrate(config, rows=1 << 13))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Every tensor of a batch by a name."""
    found = {n: getattr(batch, n) for n in ("labels", "dense", "sparse", "row", "request_time", "user")}
    for event, columns in batch.events.items():
        for name, column in columns.items():
            found[f"{event}.{name}"] = column.values
            found[f"{event}.{name}.offsets"] = column.offsets
    return found


def assert_same(one: Batch, other: Batch) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def take(batch: Batch, index: torch.Tensor) -> Batch:
    """The rows ``index`` of a batch, as a batch."""
    rows = {n: getattr(batch, n)[index] for n in ("labels", "dense", "sparse", "row", "request_time", "user")}
    events = {e: {n: c.select(index) for n, c in columns.items()} for e, columns in batch.events.items()}
    return Batch(events=events, **rows)


def digest(batch: Batch) -> str:
    """A hash of everything in a batch."""
    total = hashlib.sha256()
    for name, value in sorted(tensors(batch).items()):
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()
