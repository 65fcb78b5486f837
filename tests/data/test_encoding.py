"""Encoders: hashes that are the same everywhere and scatter well, standardisation with exact statistics."""

from __future__ import annotations

import hashlib
from typing import cast

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.encoding import Standardisation, hash_id, hash_integer, hash_text, mix
from data.preparation import Workspace

VALUES = [0, 1, 2, 3, 1000, 2**31, 2**32 - 1, 2**32, 2**40 + 17, 2**62, 2**63 - 1, -1, -(2**40)]


def test_the_engine_and_python_hash_alike() -> None:
    table = ibis.memtable({"value": VALUES})
    hashed = table.select(hash=hash_integer(table.value, 7, 3)).to_pyarrow()["hash"].to_pylist()
    assert hashed == [hash_integer(value, 7, 3) for value in VALUES]
    assert all(0 <= value < 2**32 for value in hashed)
    assert len(set(hashed)) == len(VALUES)


def test_the_hash_does_not_change() -> None:
    # Prepared data of one version must mean the same items in the next.
    assert [hash_integer(value) for value in (0, 1, 2, 5127784)] == [4243941292, 1402979721, 3903695779, 4162023006]


def test_every_bit_reaches_every_bit() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 4000, np.int64)
    base = mix(words)
    for bit in range(32):
        flipped = base ^ mix(words ^ (1 << bit))
        shares = [((flipped >> out) & 1).mean() for out in range(32)]
        assert max(abs(share - 0.5) for share in shares) < 0.06, bit


def test_consecutive_ids_spread_like_random_ones() -> None:
    ids = pd.Series([hash_integer(value) % 1000 for value in range(100_000)]).value_counts()
    assert len(ids) == 1000
    # Chi-square with 999 degrees of freedom: mean 999, standard deviation 44.7.
    assert abs(((ids - 100) ** 2 / 100).sum() - 999) < 5 * 44.7


def test_salts_make_other_hashes() -> None:
    one = np.array([hash_integer(value, 1, 0) % 400 for value in range(20_000)])
    other = np.array([hash_integer(value, 1, 1) % 400 for value in range(20_000)])
    assert abs((one == other).mean() - 1 / 400) < 0.002
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_text_hashes_are_the_head_of_md5() -> None:
    texts = ["68fd1e64", "", "naïve", "x" * 100]
    table = ibis.memtable({"text": texts})
    assert table.select(hash=hash_text(table.text)).to_pyarrow()["hash"].to_pylist() == [
        int(hashlib.md5(text.encode()).hexdigest()[:8], 16) for text in texts
    ]


def test_hashed_ids_avoid_the_reserved_ones_and_keep_missing_missing() -> None:
    table = ibis.memtable(pd.DataFrame({"value": pd.array([*range(500), None], dtype="Int64")}))
    ids = table.select(id=hash_id(hash_integer(table.value), 12)).to_pyarrow()["id"].to_pylist()
    assert set(ids[:-1]) == set(range(2, 12))
    assert ids[-1] == 0


class InMemory:
    """What fitting needs of a workspace."""

    @staticmethod
    def batches(table: ibis.Table) -> list[pa.RecordBatch]:
        return table.to_pyarrow().to_batches()


WORKSPACE = cast("Workspace", InMemory)


@pytest.mark.parametrize("transform", ["log", "standard"])
def test_standardised_values_have_mean_0_and_deviation_1(transform: str) -> None:
    values = [-3, -1, 0, 0, 0, 5, 7, 100, 100_000, None]
    table = ibis.memtable(pd.DataFrame({"x": pd.array(values, dtype="Int64")}))
    fitted = Standardisation.fit(WORKSPACE, table.x, transform)
    x = table.select(x=fitted.apply(table.x)).to_pyarrow()["x"].to_numpy()
    assert x[:-1].mean() == pytest.approx(0, abs=1e-6)
    assert x[:-1].std() == pytest.approx(1, abs=1e-6)
    assert x[-1] == 0  # missing is the mean
    assert (np.diff(x[[0, 1, 2, 5, 6, 7, 8]]) > 0).all()
    expected = np.sign(values[1]) * np.log1p(1) if transform == "log" else values[1]
    assert x[1] * fitted.std + fitted.mean == pytest.approx(expected, abs=1e-4 * fitted.std)


@pytest.mark.parametrize(("values", "expected"), [([4, 4, None], [0, 0, 0]), ([None, None], [0, 0])])
def test_columns_without_spread_stay_finite(values: list, expected: list) -> None:
    table = ibis.memtable(pd.DataFrame({"x": pd.array(values, dtype="Int64")}))
    fitted = Standardisation.fit(WORKSPACE, table.x, "standard")
    assert table.select(x=fitted.apply(table.x)).to_pyarrow()["x"].to_pylist() == expected


def test_a_constant_decimal_has_no_spread() -> None:
    table = ibis.memtable(pd.DataFrame({"x": [0.1] * 3}))
    assert Standardisation.fit(WORKSPACE, table.x, "standard") == Standardisation("standard", 0.1, 1.0)


@pytest.mark.parametrize("transform", ["log", "standard"])
def test_chunks_of_values_add_up(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 5, 1_000).round(1)
    table = ibis.memtable(pd.DataFrame({"x": values}))
    whole = Standardisation.fit(WORKSPACE, table.x, transform)
    monkeypatch.setattr("data.encoding.CHUNK", 7)
    parts = Standardisation.fit(WORKSPACE, table.x, transform)
    assert (parts.mean, parts.std) == (pytest.approx(whole.mean), pytest.approx(whole.std))
    expected = np.sign(values) * np.log1p(np.abs(values)) if transform == "log" else values
    assert (whole.mean, whole.std) == (pytest.approx(expected.mean()), pytest.approx(expected.std()))
