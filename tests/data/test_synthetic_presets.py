"""The shipped worlds and the choice of one in a configuration: sizes, calibration, delayed conversions, refusals."""

from __future__ import annotations

import math
import typing
from dataclasses import replace

import pytest
import torch

from data.module import SyntheticData
from data.synthetic import SyntheticWorld, calibrate
from data.synthetic_config import MAX_ROWS, PARTS, SPLITS
from data.synthetic_presets import CALIBRATIONS, PRESETS, altered, shipped_calibration
from kunlun.features import TIME, Batch

SMALL = PRESETS["small"]
EVERY = sorted(PRESETS)


@pytest.fixture(scope="module", params=EVERY)
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_data_module_accepts_every_preset() -> None:
    hint = typing.get_type_hints(SyntheticData.__init__)["preset"]
    assert sorted(typing.get_args(hint)) == EVERY


def test_constants_of_a_preset_bring_its_mean_probability_to_its_rate(preset: str) -> None:
    config = PRESETS[preset]
    assert shipped_calibration(config) is CALIBRATIONS[preset]
    world = SyntheticWorld(config)
    parts = world.parts(torch.arange(1 << 12 if config.max_events > 100 else 1 << 15))
    p = world.probability(parts)[:, 0]
    assert abs(float(p.mean()) - config.ctr) < 3 * float(p.std()) / math.sqrt(len(p))
    assert float(parts.mean(0).abs().max()) < 0.1
    assert float((parts.std(0) - 1).abs().max()) < 0.1


@pytest.mark.parametrize("name", ["large", "massive"])
def test_a_world_that_no_machine_holds_is_addressable(name: str) -> None:
    world = SyntheticWorld(PRESETS[name])
    train, valid = world.split("train"), world.split("valid")
    chosen = torch.tensor([0, 1, train[-1], valid[0], world.split("test")[-1]])
    batch = world.batch(chosen)
    assert len(train) == {"large": 10**9, "massive": 70 * 10**9}[name]
    assert len(batch.user.unique()) == len(chosen)
    assert int(batch.user.max()) > 10**6, "users come from all over their id space"
    alone = world.batch(chosen[2:3])
    assert torch.equal(alone.sparse[0], batch.sparse[2])
    assert torch.equal(alone.labels[0], batch.labels[2])
    for field in world.schema.sparse:
        column = batch.sparse[:, [f.name for f in world.schema.sparse].index(field.name)]
        assert int(column.max()) < world.schema.tables[field.table].rows
    assert max(int(c["item"].lengths().max()) for c in batch.events.values()) <= 1_000


# Delayed conversions


@pytest.fixture(scope="module")
def few_users() -> Batch:
    """Samples of a few users of the small world with all that they ever did, by user and time."""
    world = SyntheticWorld(replace(SMALL, users=60, max_events=2_000, horizon_days=180), CALIBRATIONS["small"])
    batch = world.batch(torch.arange(600))
    order = sorted(range(600), key=lambda row: (int(batch.user[row]), int(batch.request_time[row])))
    return world.batch(torch.tensor(order))


def past(batch: Batch, event: str, row: int) -> list[tuple[int, int, int]]:
    """(time, item, category) of the events of one row."""
    columns = batch.events[event]
    begin, end = (int(columns["item"].offsets[row + i]) for i in range(2))
    return list(zip(*(columns[n].values[begin:end].tolist() for n in (TIME, "item", "category")), strict=True))


def test_a_conversion_is_known_minutes_to_days_after_a_click_of_its_interest(few_users: Batch) -> None:
    delays, bought, total = [], 0, 0
    for row in range(0, 600, 5):
        clicks = past(few_users, "click", row)
        for time, item, category in past(few_users, "conversion", row):
            same = [t for t, i, _ in clicks if i == item and t < time]
            total += 1
            bought += bool(same)
            if any(c == category and t < time for t, _, c in clicks) and same:
                delays.append(time - max(same))
    assert total > 1_000
    # The others are of the interest, where the click was noise.
    assert bought > 0.85 * total
    minutes = torch.tensor(delays, dtype=torch.float64) / 60
    assert float(minutes.quantile(0.1)) > 1
    assert 30 < float(minutes.median()) < 24 * 60
    assert float((minutes > 24 * 60).double().mean()) > 0.1


def test_a_conversion_that_is_not_yet_known_is_not_shown(few_users: Batch) -> None:
    """Asked again later, a user has the same conversions and more; some are of clicks that were shown before."""
    late = 0
    for row in range(599):
        if few_users.user[row] != few_users.user[row + 1]:
            continue
        now, known, later = int(few_users.request_time[row]), past(few_users, "conversion", row), []
        later = past(few_users, "conversion", row + 1)
        assert later[: len(known)] == known
        assert all(time < now for time, _, _ in known)
        assert all(time >= now for time, _, _ in later[len(known) :])
        clicked = {item for time, item, _ in past(few_users, "click", row) if time > now - 86_400}
        late += any(item in clicked for time, item, _ in later[len(known) :] if time < now + 86_400)
    assert late > 5


def test_whoever_does_not_click_does_not_convert(few_users: Batch) -> None:
    clicks = few_users.events["click"]["item"].lengths()
    conversions = few_users.events["conversion"]["item"].lengths()
    assert int((clicks == 0).sum()) > 10
    assert int(conversions[clicks == 0].sum()) == 0
    assert bool((conversions <= clicks).all())


def test_nothing_depends_on_what_comes_after_the_request() -> None:
    """A longer horizon moves joins and requests; a shorter history cap and other split sizes move nothing."""
    world = SyntheticWorld(SMALL)
    index = torch.arange(256)
    batch = world.batch(index)
    for columns in batch.events.values():
        owner = columns[TIME].segments()
        assert bool((columns[TIME].values < batch.request_time[owner]).all())
    larger = SyntheticWorld(replace(SMALL, train_rows=10**12))
    assert torch.equal(larger.oracle(index), world.oracle(index))


# The choice of a world in a configuration


def test_overrides_make_another_world_and_leave_the_rest() -> None:
    data = SyntheticData("small", strengths={"recency": 2.0, "motif": 0.0}, ctr=0.1, label_noise=0.2, train_rows=1_000)
    assert data.config.strengths == replace(SMALL.strengths, recency=2.0, motif=0.0)
    assert (data.config.ctr, data.config.label_noise, data.config.max_events) == (0.1, 0.2, SMALL.max_events)
    assert data.config.rows("train") == 1_000
    assert data.schema.tasks[0].train_rate == 0.1
    assert data.max_length == SMALL.max_events
    assert float(data.world.oracle(torch.arange(1 << 13)).mean()) == pytest.approx(0.1, abs=0.01)
    both = SyntheticData("tiny", tasks=["click", "conversion"], conversion_rate=0.1)
    assert [task.name for task in both.schema.tasks] == ["click", "conversion"]
    assert SyntheticData("tiny").config == PRESETS["tiny"]
    assert SyntheticData("small", max_length=7).schema.events[0].max_length == 7


def test_only_rows_may_change_without_calibration() -> None:
    assert shipped_calibration(altered(SMALL, train_rows=7)) is CALIBRATIONS["small"]
    assert shipped_calibration(altered(SMALL, ctr=0.2)) is None
    assert altered(SMALL) == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": {"recency": 12.0}}, r"strengths.recency must lie in \[0, 10\], got 12.0"),
        ({"strengths": {"recency": math.nan}}, r"strengths.recency must lie in \[0, 10\], got nan"),
        ({"strengths": {"recenci": 1.0}}, r"strengths has no part 'recenci'; did you mean 'recency'\? \(known: rec"),
        ({"ctr": 1.0}, r"ctr must lie in \[0.001, 0.999\]"),
        ({"label_noise": -0.1}, r"label_noise must lie in \[0, 1\]"),
        ({"tasks": ["conversion"]}, r"tasks must be \('click',\) or \('click', 'conversion'\)"),
        ({"tasks": ["click", "conversion"], "conversion_rate": 0.5}, r"conversion_rate must lie in \[0.0025, 0.2475\]"),
        ({"world_seed": -1}, r"world_seed .* must lie in \[0, "),
        ({"train_rows": MAX_ROWS + 1}, r"train_rows must lie in \[1, "),
        ({"max_length": 0}, r"data.max_length must be ≥ 1"),
    ],
)
def test_impossible_values_are_refused_with_their_limits(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticData("small", **change)


def test_calibration_of_another_world_finds_its_rate() -> None:
    config = altered(SMALL, ctr=0.03, strengths=dict.fromkeys(PARTS, 0.2))
    assert all(config.rows(split) == SMALL.rows(split) for split in SPLITS)
    world = SyntheticWorld(config, calibrate(config, rows=1 << 13))
    p = world.oracle(torch.arange(1 << 13))
    assert float(p.mean()) == pytest.approx(0.03, abs=4 * float(p.std()) / 90)
