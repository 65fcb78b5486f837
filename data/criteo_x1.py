"""Criteo_x1: Criteo Kaggle as published with its splits, the 13 numbers already scaled and the categories encoded.

A folder of train.csv, valid.csv and test.csv with a header. Every category occurs often enough to have its own id, so
the default is to keep all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.criteo import CriteoEncoding, prepare_split
from kunlun.features import FeatureSchema


@dataclass(frozen=True)
class CriteoX1Options(CriteoEncoding):
    """How the values are encoded; the splits are those of the files."""

    min_count: int = 1
    """Categories seen less often in train than this are 'unknown'."""
    dense: Literal["log", "standard"] = "standard"
    """The 13 numbers: standardised on train; or their log(1 + |x|) with the sign of x, standardised."""
    buckets: bool = False
    """Not with this version: the numbers are scaled, so they have no buckets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets:
            raise ValueError("buckets are of whole numbers; those of Criteo_x1 are scaled (criteo-x4 has the raw ones)")


def prepare(raw: Path, out: Path, options: CriteoX1Options = CriteoX1Options()) -> FeatureSchema:
    """Prepare the folder ``raw`` into ``out``. DataError: see data.preparation."""
    return prepare_split("criteo-x1", raw, out, options, scaled=True)
