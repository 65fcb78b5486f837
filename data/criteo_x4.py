"""Criteo_x4: the rows of Criteo Kaggle with their raw values in a published random split of 8 : 1 : 1.

A folder of train.csv, valid.csv and test.csv with a header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.criteo import CriteoEncoding, prepare_split
from kunlun.features import FeatureSchema


@dataclass(frozen=True)
class CriteoX4Options(CriteoEncoding):
    """How the values are encoded; the splits are those of the files."""

    min_count: int = 10
    """Values seen less often in train than this are 'unknown' (vocabularies, those of the buckets too)."""


def prepare(raw: Path, out: Path, options: CriteoX4Options = CriteoX4Options()) -> FeatureSchema:
    """Prepare the folder ``raw`` into ``out``. DataError: see data.preparation."""
    return prepare_split("criteo-x4", raw, out, options, scaled=False)
