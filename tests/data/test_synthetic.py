"""The synthetic world: a sample is a pure function of (seed, index); times, lengths, ids, splits; bad input."""

from __future__ import annotations

import hashlib
import inspect
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.module import SyntheticData
from data.order import BatchOrder
from data.synthetic import SyntheticWorld
from data.synthetic_config import MAX_ROWS, SPLITS, TYPES, Stream, Strengths, SyntheticConfig
from data.synthetic_presets import CALIBRATIONS
from data.synthetic_streams import DAY
from kunlun.features import TIME, Batch, FeatureSchema
from tests.data.worlds import TINY, assert_same, digest, take, tensors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(TINY)


@pytest.fixture(scope="module")
def sample(world: SyntheticWorld) -> Batch:
    """The first 4,096 samples in one batch."""
    return world.batch(torch.arange(4_096))


# A sample is a pure function of (seed, index)


@given(st.lists(st.integers(0, 4_095), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_sample_is_the_same_in_any_batch(world: SyntheticWorld, sample: Batch, chosen: list[int]) -> None:
    index = torch.tensor(chosen)
    assert_same(world.batch(index), take(sample, index))


def test_probability_is_the_same_in_any_batch(world: SyntheticWorld) -> None:
    index = torch.arange(200)
    alone = torch.cat([world.oracle(index[i : i + 1]) for i in range(200)])
    assert torch.equal(world.oracle(index), alone)


def test_far_indices_and_an_empty_batch(world: SyntheticWorld) -> None:
    far = torch.tensor([70_000_000_000, 2**62 - 1])
    assert_same(world.batch(far), take(world.batch(torch.cat([far, torch.arange(5)])), torch.arange(2)))
    empty = world.batch(torch.arange(0))
    assert len(empty) == 0
    assert len(empty.events["click"]["item"]) == 0


def test_the_tiny_world_is_the_one_that_was_published(world: SyntheticWorld, sample: Batch) -> None:
    """What was measured on it stays comparable: no change of the program may change a sample of it."""
    assert digest(sample) == "526ffe64f30d1100bded0d042795612453a3456edc38deae1da26c1615ea4a48"
    p = hashlib.sha256(world.oracle(torch.arange(4_096)).numpy().tobytes()).hexdigest()
    assert p == "b773e71c55f047916440b269890fd4e5183b99c743818ad926f1518b22cdaac7"


def test_another_process_makes_the_same_world(sample: Batch) -> None:
    code = "\n".join(
        [
            "import hashlib, torch",
            "from data.synthetic import PRESETS, SyntheticWorld",
            "torch.set_num_threads(2)",
            inspect.getsource(tensors).replace(": Batch", ""),
            inspect.getsource(digest).replace(": Batch", ""),
            "print(digest(SyntheticWorld(PRESETS['tiny']).batch(torch.arange(4_096))))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == digest(sample)


def test_another_seed_makes_another_world(sample: Batch) -> None:
    other = SyntheticWorld(replace(TINY, seed=1), CALIBRATIONS["tiny"]).batch(torch.arange(4_096))
    assert float((other.sparse == sample.sparse).double().mean()) < 0.3
    assert float((other.labels == sample.labels).double().mean()) < 0.75


def test_samples_of_different_splits_share_nothing(world: SyntheticWorld) -> None:
    splits = [world.split(name) for name in SPLITS]
    assert [len(s) for s in splits] == [65_536, 8_192, 8_192]
    for one, other in pairwise(splits):
        assert one.start + MAX_ROWS <= other.start
    words = torch.cat([torch.arange(s.start, s.start + 4_096) for s in splits])
    batch = world.batch(words)
    rows = torch.cat([batch.sparse, batch.request_time[:, None]], dim=1)
    assert len(torch.unique(rows, dim=0)) > 0.999 * len(words)
    larger = SyntheticWorld(replace(TINY, train_rows=10**10))
    assert larger.split("valid") == world.split("valid")
    assert len(larger.split("train")) == 10**10


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_with_and_without_workers_give_the_samples_of_the_world(world: SyntheticWorld, workers: int) -> None:
    """Any batch size, in this process or in others: row i is sample i, each once."""
    data = SyntheticData("tiny", train_rows=500, batch_size=96, eval_batch_size=1_500, num_workers=workers)
    rows = []
    for batch in data.train_dataloader():
        rows.append(batch.row)
        assert_same(batch, world.batch(batch.row))
    assert len(torch.cat(rows).unique()) == len(torch.cat(rows)) == 5 * 96  # the last, smaller batch is left out
    start, seen = world.split("valid").start, 0
    for batch in data.val_dataloader():
        assert torch.equal(batch.row, torch.arange(seen, seen + len(batch)))
        seen += len(batch)
        assert_same(replace(batch, row=batch.row + start), world.batch(batch.row + start))
    assert seen == 8_192


def test_no_sample_comes_twice_on_any_rank(world: SyntheticWorld) -> None:
    order = [BatchOrder(4_096, 64, shuffle=True, seed=3, rank=rank, world=4) for rank in range(4)]
    batches = [world.batch(torch.from_numpy(rows)) for of_rank in order for rows in of_rank]
    assert np.array_equal(torch.cat([b.row for b in batches]).sort().values.numpy(), np.arange(4_096))
    shown = torch.cat([torch.cat([b.user[:, None], b.sparse, b.request_time[:, None]], dim=1) for b in batches])
    assert len(shown.unique(dim=0)) > 0.999 * 4_096


# What a sample holds


def test_ids_lie_inside_their_tables(world: SyntheticWorld, sample: Batch) -> None:
    schema = world.schema
    for column, field in enumerate(schema.sparse):
        values = sample.sparse[:, column]
        assert int(values.min()) >= 2
        assert int(values.max()) < schema.tables[field.table].rows
        assert len(values.unique()) > 0.8 * (schema.tables[field.table].rows - 2)
    items, categories = sample.sparse[:, 1] - 2, sample.sparse[:, 2] - 2
    assert torch.equal(items % TINY.categories, categories)
    for event in schema.events:
        columns = sample.events[event.name]
        for field in event.fields:
            values = columns[field.name].values
            assert int(values.min()) >= 2
            assert int(values.max()) < schema.tables[field.table].rows
        assert torch.equal((columns["item"].values - 2) % TINY.categories, columns["category"].values - 2)


def test_events_lie_before_the_request_oldest_first(sample: Batch) -> None:
    for columns in sample.events.values():
        times, owner = columns[TIME].values, columns[TIME].segments()
        assert bool((times < sample.request_time[owner]).all())
        inside = owner[1:] == owner[:-1]
        assert bool((times.diff()[inside] > 0).all())


def test_lengths_are_heavy_tailed_and_capped(world: SyntheticWorld, sample: Batch) -> None:
    for event in world.schema.events:
        lengths = sample.events[event.name]["item"].lengths().double()
        assert 0.05 < float((lengths == 0).double().mean()) < 0.6
        assert float(lengths.max()) <= TINY.max_events == event.max_length
        assert float(lengths.std()) > 0.7 * float(lengths.mean())
        assert abs(float(lengths.mean()) / event.mean_length - 1) < 0.1
    total = sum(columns["item"].lengths() for columns in sample.events.values())
    assert bool((total == 0).any()), "samples without any event must occur"


def test_a_user_asked_later_has_the_same_past_and_more() -> None:
    few = SyntheticWorld(replace(TINY, users=10, max_events=1_000), CALIBRATIONS["tiny"])
    batch = few.batch(torch.arange(200))
    for event in TYPES:
        grew = 0
        for user in batch.user.unique():
            rows = (batch.user == user).nonzero().view(-1)
            rows = rows[batch.request_time[rows].argsort()]
            pasts = [[c.select(r[None]).values for c in batch.events[event].values()] for r in rows]
            for earlier, later in pairwise(pasts):
                shared = len(earlier[0])
                grew += len(later[0]) > shared
                for old, new in zip(earlier, later, strict=True):
                    assert torch.equal(old, new[:shared])
        assert grew > 3


def test_the_cap_keeps_the_newest_events(sample: Batch) -> None:
    uncut = SyntheticWorld(replace(TINY, max_events=1_000), CALIBRATIONS["tiny"]).batch(torch.arange(4_096))
    for event in TYPES:
        cut_at_cap = 0
        for row in range(0, 4_096, 16):
            all_events = uncut.events[event]["item"].select(torch.tensor([row])).values
            shown = sample.events[event]["item"].select(torch.tensor([row])).values
            assert torch.equal(shown, all_events[-TINY.max_events :])
            cut_at_cap += len(all_events) > TINY.max_events
        assert event == "conversion" or cut_at_cap > 0


def test_max_length_shows_the_newest_events_and_leaves_labels(world: SyntheticWorld, sample: Batch) -> None:
    short = world.batch(torch.arange(4_096), max_length=5)
    assert torch.equal(short.labels, sample.labels)
    for event, columns in short.events.items():
        assert columns["item"].max_length == 5
        full = sample.events[event]
        assert torch.equal(columns["item"].lengths(), full["item"].lengths().clamp(max=5))
        for name, column in columns.items():
            last = full[name].offsets[1:][full[name].lengths() > 0] - 1
            own = column.offsets[1:][column.lengths() > 0] - 1
            assert torch.equal(column.values[own], full[name].values[last])
    with pytest.raises(ValueError, match=r"max_length must lie in \[1, 48\], got 49"):
        world.batch(torch.arange(2), max_length=49)


def test_dense_features_are_standardised(sample: Batch) -> None:
    assert sample.dense.dtype == torch.float32
    assert float(sample.dense.mean(0).abs().max()) < 0.15
    assert float((sample.dense.std(0) - 1).abs().max()) < 0.15


def test_requests_follow_the_day(sample: Batch) -> None:
    hours = torch.bincount(sample.sparse[:, 3] - 2, minlength=24)
    assert torch.equal(sample.sparse[:, 3] - 2, sample.request_time % DAY // 3600)
    assert int(hours[18:22].sum()) > 2 * int(hours[2:6].sum())


def test_schema_describes_the_batch_and_survives_json(world: SyntheticWorld, sample: Batch) -> None:
    schema = world.schema
    assert FeatureSchema.from_json(schema.to_json()).tables == schema.tables
    assert schema.users
    assert schema.request_times
    assert schema.rows == {"train": 65_536, "valid": 8_192, "test": 8_192}
    assert sample.dense.shape == (4_096, len(schema.dense))
    assert sample.sparse.shape == (4_096, len(schema.sparse))
    assert sample.labels.shape == (4_096, 1)
    assert [t.name for t in schema.tasks] == ["click"]
    assert schema.tasks[0].train_rate == TINY.ctr


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ctr": 0.0}, r"ctr must lie in \[0.001, 0.999\], got 0.0"),
        ({"ctr": math.nan}, r"ctr must lie in"),
        ({"users": 0}, r"users must lie in \[1, 1,000,000,000\], got 0"),
        ({"items": 10**9 + 24}, r"items must lie in \[32, 1,000,000,000\]"),
        ({"items": 1_000}, r"items must be a multiple of categories \(32\), got 1000"),
        ({"groups": 12}, r"groups must be 8, 16, 32 or 64 and divide categories"),
        ({"max_events": 0}, r"max_events must lie in \[1, 100,000\]"),
        ({"request_days": 60}, r"request_days must lie in \[1, 59\] \(less than horizon_days\), got 60"),
        ({"train_rows": 0}, r"train_rows must lie in \[1, "),
        ({"label_noise": 1.5}, r"label_noise must lie in \[0, 1\]"),
        ({"tasks": ("conversion",)}, r"tasks must be \('click',\) or \('click', 'conversion'\)"),
        ({"tasks": ("click", "conversion"), "conversion_rate": 0.3}, r"conversion_rate must lie in"),
    ],
)
def test_impossible_worlds_are_refused_with_their_limits(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_impossible_strengths_streams_and_indices_are_refused(world: SyntheticWorld) -> None:
    with pytest.raises(ValueError, match=r"strengths.motif must lie in \[0, 10\], got -1"):
        Strengths(motif=-1)
    with pytest.raises(ValueError, match=r"noise must lie in \[0, 1\]"):
        Stream((1,), noise=2.0)
    with pytest.raises(ValueError, match=r"number of a stream's periods must lie in \[1, 64\]"):
        Stream((), noise=0.0)
    with pytest.raises(TypeError, match=r"int64 of shape \(B,\), got torch.float32"):
        world.batch(torch.zeros(3))
    with pytest.raises(IndexError, match=r"\[0, 2\^62\)"):
        world.batch(torch.tensor([-1]))
    with pytest.raises(ValueError, match="no split 'training'; there are train, valid, test"):
        world.split("training")
    assert SyntheticConfig(strengths=Strengths()).streams()[0].noise == 0.125
