"""The parts of the synthetic click probability: their formulas in plain Python, their scale, their effect on labels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from data.synthetic import SyntheticWorld, calibrate
from data.synthetic_config import PARTS, TYPES, Strengths
from data.synthetic_parts import FACTORS
from data.synthetic_presets import CALIBRATIONS, shipped_calibration
from data.synthetic_streams import SEGMENTS
from kunlun.features import TIME, Batch
from tests.data.worlds import MANY, TINY


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(TINY)


@pytest.fixture(scope="module")
def sample(world: SyntheticWorld) -> Batch:
    """The first 300 samples in one batch."""
    return world.batch(torch.arange(300))


@pytest.fixture(scope="module")
def many_parts(world: SyntheticWorld) -> torch.Tensor:
    return world.parts(torch.arange(MANY))


def test_shipped_constants_are_those_of_the_world(many_parts: torch.Tensor) -> None:
    assert shipped_calibration(replace(TINY, train_rows=5)) is CALIBRATIONS["tiny"]
    assert shipped_calibration(replace(TINY, seed=1)) is None
    # Parts of one user resemble each other: what every sample estimates are the means over users.
    assert float(many_parts.mean(0).abs().max()) < 0.02
    assert float((many_parts.std(0) - 1).abs().max()) < 0.02
    again = calibrate(TINY, rows=1 << 14)
    assert again.bias[0] == pytest.approx(CALIBRATIONS["tiny"].bias[0], abs=0.05)


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
    device = int(batch.sparse[row, 4]) - 2
    pasts = {}
    for event in TYPES:
        columns = batch.events[event]
        begin, end = (int(columns["item"].offsets[row + i]) for i in range(2))
        times = [now - int(t) for t in columns[TIME].values[begin:end]]
        pasts[event] = list(zip(times, (int(c) - 2 for c in columns["category"].values[begin:end]), strict=True))

    def decay(age: int, shift: int) -> float:
        whole, rest = divmod(age, 1 << shift)
        return 2.0**-whole * (1 - rest / (1 << shift) / 2)

    def decayed(event: str, shift: int) -> float:
        return sum(decay(age, shift) for age, category in pasts[event] if category == candidate)

    def sat(x: float) -> float:
        return x / (1 + abs(x))

    clicks = pasts["click"]
    categories = [category for _, category in clicks]
    followers = [after // world.config.groups % 2 for own, after in pairwise(categories) if own == candidate]
    present = decayed("click", 18)
    bought = sum(category == candidate for _, category in pasts["conversion"])
    return {
        "recency": 2 * (sat(decayed("click", 16)) - sat(decayed("click", 12))) + sat(decayed("click", 20)),
        "motif": sat(sum(followers)) - sat(len(followers) - sum(followers)) / 2,
        "long_range": sat(categories.count(candidate) - present) - sat(present),
        "context": (1, -1, -1, 1)[device] * sat(decayed("click", 20)),
        "event_types": 2 * sat(bought) - sat(decayed("impression", 18)),
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
    for columns, part in (((1, 2, 3, 4, 5, 6), crosses), ((0, 1), memory)):
        _, key = torch.unique(batch.sparse[:, columns], dim=0, return_inverse=True)
        low = torch.full((int(key.max()) + 1,), math.inf, dtype=torch.float64).scatter_reduce_(0, key, part, "amin")
        high = torch.full_like(low, -math.inf).scatter_reduce_(0, key, part, "amax")
        assert float((high - low).max()) < 1e-12
        assert len(low) < len(part)
    for column in (2, 3, 4, 5, 6):
        values = batch.sparse[:, column] - 2
        means = torch.zeros(int(values.max()) + 1, dtype=torch.float64).index_add_(0, values, crosses)
        assert float((means / torch.bincount(values)).abs().max()) < 0.3


def test_a_cross_of_two_fields_is_a_dot_product_of_hidden_vectors(world: SyntheticWorld) -> None:
    """What segment and category do together, beyond each alone, has as many directions as there are factors."""
    index = torch.arange(MANY)
    batch, crosses = world.batch(index), world.parts(index)[:, PARTS.index("crosses")]
    crosses = crosses * CALIBRATIONS["tiny"].std[PARTS.index("crosses")]
    segment, category = batch.sparse[:, 6] - 2, batch.sparse[:, 2] - 2
    cell = segment * world.config.categories + category
    cells = SEGMENTS * world.config.categories
    total = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, crosses)
    seen = torch.bincount(cell, minlength=cells)
    together = (total / seen.clamp(min=1)).view(SEGMENTS, -1)
    together = together - together.mean(0) - together.mean(1, keepdim=True) + together.mean()
    sizes = torch.linalg.svdvals(together)
    assert float(sizes[FACTORS - 1]) > 2 * float(sizes[FACTORS])
