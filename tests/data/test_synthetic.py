"""The synthetic world: purity, times, lengths, calibration, the oracle, and the effect of each part."""

from __future__ import annotations

import hashlib
import inspect
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.counter import below, below_small, bits, draw, make_key, python_draw
from data.synthetic import OracleNE, SyntheticWorld, _sigmoid, calibrate, oracle_ne
from data.synthetic_config import MAX_ROWS, PARTS, SPLITS, TYPES, Stream, Strengths, SyntheticConfig
from data.synthetic_presets import CALIBRATIONS, PRESETS, shipped_calibration
from data.synthetic_streams import DAY
from kunlun.features import TIME, Batch, FeatureSchema

ROOT = Path(__file__).parents[2]
TINY = PRESETS["tiny"]
MANY = 1 << 15


def altered(**change: object) -> SyntheticWorld:
    """The tiny world with a change, calibrated on few samples."""
    config = replace(TINY, **change)
    return SyntheticWorld(config, calibrate(config, rows=1 << 13))


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(TINY)


@pytest.fixture(scope="module")
def sample(world: SyntheticWorld) -> Batch:
    """The first 4,096 samples in one batch."""
    return world.batch(torch.arange(4_096))


@pytest.fixture(scope="module")
def many_parts(world: SyntheticWorld) -> torch.Tensor:
    return world.parts(torch.arange(MANY))


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


# The counter


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62 - 1))
@settings(max_examples=200, deadline=None)
def test_draw_equals_arithmetic_modulo_two_to_the_64(key: int, counter: int) -> None:
    expected = python_draw(key, counter)
    as_counter = draw(key, torch.tensor([counter]))
    as_key = draw(torch.tensor([key]), torch.tensor(counter))
    with_int = draw(torch.tensor([key]), counter)
    assert int(as_counter) % 2**64 == int(as_key) % 2**64 == int(with_int) % 2**64 == expected
    assert int(bits(as_counter, 60, 4)) == expected >> 60
    assert int(bits(as_counter, 0, 16)) == expected & 0xFFFF


def test_draws_are_uniform_and_uncorrelated() -> None:
    word = draw(make_key(0, 1), torch.arange(1 << 16))
    for values in (below(word, 10), below_small(word, 0, 10), below_small(word, 16, 10)):
        counts = torch.bincount(values, minlength=10).double()
        expected = len(word) / 10
        assert counts.numel() == 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9 degrees, p = 0.001
    unit = torch.stack([below(word, 1 << 20), below(draw(word, 1), 1 << 20), below_small(word, 0, 1 << 15)]).double()
    pairs = torch.corrcoef(torch.cat([unit[:, 1:], unit[:1, :-1]])) - torch.eye(4)
    assert float(pairs.abs().max()) < 4 / math.sqrt(len(word))


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
    assert digest(sample) == "002f3d3caefef26229d3c4f5be73b54e2a0e10d645106ec809d5564d2eda86b8"
    p = hashlib.sha256(world.oracle(torch.arange(4_096)).numpy().tobytes()).hexdigest()
    assert p == "1289157a205c38927f45f81884b8c1b5c0e1acdf4b6bde465ee1f6fdc48daa31"


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


# Calibration and the oracle


def test_labels_follow_the_calibrated_probabilities(world: SyntheticWorld) -> None:
    index = torch.arange(MANY)
    p = world.oracle(index)[:, 0]
    labels = torch.cat([world.batch(part).labels[:, 0] for part in index.split(2_048)]).double()
    spread = float(p.std()) / math.sqrt(MANY)
    assert abs(float(p.mean()) - TINY.ctr) < 4 * spread
    assert abs(float(labels.mean()) - TINY.ctr) < 4 * math.sqrt(TINY.ctr * (1 - TINY.ctr) / MANY)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        inside = (p >= low) & (p < high)
        error = math.sqrt(float((p * (1 - p))[inside].sum()))
        assert int(inside.sum()) > 500
        assert abs(float((labels - p)[inside].sum())) < 4 * error

    oracle = oracle_ne(world, "train", max_rows=16_384)
    p, labels = p[:16_384], labels[:16_384]
    loss = torch.nn.functional.binary_cross_entropy(p, labels)
    rate = torch.tensor(TINY.ctr, dtype=torch.float64)
    empirical = float(loss / torch.nn.functional.binary_cross_entropy(rate, rate))
    assert abs(empirical - oracle.ne) < 4 * oracle.label_error


def test_given_its_probability_a_label_depends_on_nothing_shown(world: SyntheticWorld) -> None:
    batch = world.batch(torch.arange(1 << 14))
    p = world.oracle(torch.arange(1 << 14))[:, 0]
    rest = batch.labels[:, 0] - p
    for values in (batch.user, *batch.sparse.T, batch.events["click"]["item"].lengths()):
        groups, index = torch.unique(values, return_inverse=True)
        sums = torch.zeros(len(groups), dtype=torch.float64)
        variance = sums.index_add(0, index, p * (1 - p))
        chi_square = float((sums.index_add(0, index, rest).square() / variance).sum())
        assert abs(chi_square - len(groups)) < 5 * math.sqrt(2 * len(groups)) + 5


def test_sigmoid_is_the_logistic_function() -> None:
    x = torch.linspace(-39, 39, 1_001, dtype=torch.float64)
    assert torch.allclose(_sigmoid(x), torch.sigmoid(x), rtol=1e-13, atol=0)
    assert torch.equal(_sigmoid(2 * x[:1]), _sigmoid(torch.tensor([-40.0], dtype=torch.float64)))


def test_oracle_leaves_much_to_gain(world: SyntheticWorld) -> None:
    found = [oracle_ne(world, split) for split in SPLITS]
    assert all(0.70 < o.ne < 0.85 and o.standard_error < 0.01 for o in found)
    assert [o.rows for o in found] == [65_536, 8_192, 8_192]
    for one in found:
        assert abs(one.ne - found[0].ne) < 4 * math.hypot(one.standard_error, found[0].standard_error)


def test_oracle_of_a_world_without_parts_is_the_base_rate() -> None:
    flat = altered(strengths=Strengths())
    oracle = oracle_ne(flat, "valid")
    assert isinstance(oracle, OracleNE)
    assert oracle.ne == pytest.approx(1.0, abs=1e-6)
    noise = altered(label_noise=1.0)
    assert torch.allclose(noise.oracle(torch.arange(100)), torch.tensor(TINY.ctr, dtype=torch.float64))


def test_shipped_constants_are_those_of_the_world(many_parts: torch.Tensor) -> None:
    assert shipped_calibration(replace(TINY, train_rows=5)) is CALIBRATIONS["tiny"]
    assert shipped_calibration(replace(TINY, seed=1)) is None
    # Parts of one user resemble each other: the means of 1,000 users are what every sample estimates.
    assert float(many_parts.mean(0).abs().max()) < 0.02
    assert float((many_parts.std(0) - 1).abs().max()) < 0.02
    again = calibrate(TINY, rows=1 << 14)
    assert again.bias[0] == pytest.approx(CALIBRATIONS["tiny"].bias[0], abs=0.05)


def test_two_tasks_conversions_are_clicks_at_their_rate() -> None:
    both = altered(tasks=("click", "conversion"), conversion_rate=0.06)
    index = torch.arange(1 << 13)
    labels, p = both.batch(index).labels, both.oracle(index)
    assert p.shape == labels.shape == (1 << 13, 2)
    assert bool((labels[:, 1] <= labels[:, 0]).all())
    assert bool((p[:, 1] < p[:, 0]).all())
    error = torch.sqrt((p * (1 - p)).sum(0))
    assert bool(((labels - p).sum(0).abs() < 4 * error).all())
    assert float(p[:, 1].mean()) == pytest.approx(0.06, abs=0.004)
    assert oracle_ne(both, "valid", "conversion").ne < 1
    with pytest.raises(ValueError, match="no task 'buy'; there are click, conversion"):
        oracle_ne(both, "valid", "buy")


# The parts


def test_log_odds_are_the_strengths_times_the_parts(world: SyntheticWorld, many_parts: torch.Tensor) -> None:
    strengths = torch.tensor(list(TINY.strengths.by_part().values()), dtype=torch.float64)
    log_odds = torch.logit(world.oracle(torch.arange(MANY))[:, 0])
    assert torch.allclose(log_odds, CALIBRATIONS["tiny"].bias[0] + many_parts @ strengths, atol=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_labels_respond_to_a_part_by_its_strength(part: str) -> None:
    """Logistic regression of labels on all parts finds 1 for the part that is up and 0 for all others."""
    config = replace(TINY, strengths=Strengths(**{part: 1.0}))
    index = torch.arange(1 << 13)
    world = SyntheticWorld(config, replace(CALIBRATIONS["tiny"], bias=(-1.25,)))
    x = torch.cat([torch.ones(len(index), 1, dtype=torch.float64), world.parts(index)], dim=1)
    y = world.batch(index).labels[:, 0].double()
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(8):  # Newton's method
        p = torch.sigmoid(x @ weights)
        curvature = x.T @ (x * (p * (1 - p))[:, None])
        weights = weights + torch.linalg.solve(curvature, x.T @ (y - p))
    errors = torch.linalg.inv(curvature).diagonal().sqrt()
    expected = torch.tensor([-1.25] + [float(name == part) for name in PARTS], dtype=torch.float64)
    assert bool(((weights - expected).abs() < 4.5 * errors).all()), (weights, errors)
    assert float(errors.max()) < 0.06


def naive_parts(world: SyntheticWorld, batch: Batch, row: int) -> dict[str, float]:
    """Event parts of one sample by the formulas of the documentation, in plain Python."""
    now, candidate = int(batch.request_time[row]), int(batch.sparse[row, 2]) - 2
    device, groups = int(batch.sparse[row, 4]) - 2, world.config.groups
    pasts = {}
    for event in TYPES:
        columns = batch.events[event]
        begin, end = (int(columns["item"].offsets[row + i]) for i in range(2))
        times = [now - int(t) for t in columns[TIME].values[begin:end]]
        pasts[event] = list(zip(times, (int(c) - 2 for c in columns["category"].values[begin:end]), strict=True))

    def decay(age: int, shift: int) -> float:
        whole, rest = divmod(age, 1 << shift)
        return 2.0**-whole * (1 - rest / (1 << shift) / 2)

    def fresh(event: str, shift: int) -> float:
        total = sum(decay(age, shift) for age, category in pasts[event] if category == candidate)
        return total / (1 + total)

    group = candidate % groups
    clicks = [(age, category % groups) for age, category in pasts["click"]]
    net = 0
    for (age, g), (next_age, next_g) in pairwise(clicks):
        if age - next_age <= 3600:
            net += (g == group and next_g == (group + 1) % groups) - (g == (group + 1) % groups and next_g == group)
    everything = [category % groups for past in pasts.values() for _, category in past]
    signs = [(-1) ** ((device + 1) & (g ^ group)).bit_count() if g != group else 0 for _, g in clicks]
    bought = sum(category % groups == group for _, category in pasts["conversion"])
    return {
        "recency": 2 * (fresh("click", 16) - fresh("click", 12)) + fresh("click", 20),
        "motif": net / (1 + abs(net)),
        "long_range": everything.count(group) / (len(everything) + 4),
        "context": sum(signs) / (len(clicks) + 4),
        "event_types": 2 * bought / (1 + bought) - fresh("impression", 18),
    }


def test_parts_are_what_the_shown_events_say(world: SyntheticWorld, sample: Batch) -> None:
    calibration = CALIBRATIONS["tiny"]
    parts = world.parts(torch.arange(300)) * torch.tensor(calibration.std) + torch.tensor(calibration.mean)
    for row in range(300):
        for name, value in naive_parts(world, sample, row).items():
            assert float(parts[row, PARTS.index(name)]) == pytest.approx(value, abs=2e-3), (row, name)


def test_crosses_and_memory_depend_on_the_shown_fields_only(world: SyntheticWorld) -> None:
    """Equal shown fields give equal parts; no single field has an effect of its own on the crosses."""
    batch, parts = world.batch(torch.arange(1 << 14)), world.parts(torch.arange(1 << 14))
    crosses, memory = parts[:, PARTS.index("crosses")], parts[:, PARTS.index("memory")]
    for columns, part in (((1, 3, 4, 5, 6), crosses), ((0, 1), memory)):
        _, key = torch.unique(batch.sparse[:, columns], dim=0, return_inverse=True)
        low = torch.full((int(key.max()) + 1,), math.inf, dtype=torch.float64).scatter_reduce_(0, key, part, "amin")
        high = torch.full_like(low, -math.inf).scatter_reduce_(0, key, part, "amax")
        assert float((high - low).max()) < 1e-12
        assert len(low) < len(part)
    for column in (3, 4, 5, 6):
        values = batch.sparse[:, column] - 2
        means = torch.zeros(int(values.max()) + 1, dtype=torch.float64).index_add_(0, values, crosses)
        assert float((means / torch.bincount(values)).abs().max()) < 0.3


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
