"""The random streams behind the synthetic world: uniform where they should be, and independent of one another."""

from __future__ import annotations

import math

import pytest
import torch

from data.synthetic import SyntheticWorld
from data.synthetic_presets import PRESETS
from data.synthetic_streams import DAY, EPOCH, Impressions, People

ROWS = 1 << 15
SMALL = PRESETS["small"]


@pytest.fixture(scope="module")
def impressions() -> Impressions:
    people = People(SMALL)
    chunks = [people.impressions(chunk) for chunk in torch.arange(ROWS).split(1_024)]
    columns = ("word", "user", "request_time", "item", "category", "hour", "device", "placement", "segment", "join_day")
    return Impressions(
        **{name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in columns}, events=chunks[0].events
    )


def chi_square(values: torch.Tensor, shares: list[float]) -> float:
    """In standard deviations from what it should be."""
    counts = torch.bincount(values, minlength=len(shares)).double()
    assert counts.numel() == len(shares)
    expected = torch.tensor(shares, dtype=torch.float64) / sum(shares) * len(values)
    freedom = len(shares) - 1
    return (float(((counts - expected).square() / expected).sum()) - freedom) / math.sqrt(2 * freedom)


def test_fields_are_drawn_with_their_shares(impressions: Impressions) -> None:
    assert abs(chi_square(impressions.device, [6, 5, 3, 2])) < 4
    assert abs(chi_square(impressions.placement, [1] * 6)) < 4
    assert abs(chi_square(impressions.user * 64 // SMALL.users, [1] * 64)) < 4
    # What belongs to a user comes with every sample of the user.
    users, owner = impressions.user.unique(return_inverse=True)
    segment, join_day = (
        torch.zeros_like(users).scatter_(0, owner, x) for x in (impressions.segment, impressions.join_day)
    )
    assert abs(chi_square(segment, [1] * 8)) < 4
    assert abs(chi_square(join_day, [1] * (SMALL.horizon_days - SMALL.request_days))) < 4
    # A request that follows a click comes when the click does: at most one of the user's periods off.
    days, off = (impressions.request_time - EPOCH) // DAY, max(SMALL.click.periods) + 1
    assert int(days.min()) >= SMALL.horizon_days - SMALL.request_days - off
    assert int(days.max()) < SMALL.horizon_days + off
    assert int((days < SMALL.horizon_days - SMALL.request_days).sum()) < 0.1 * ROWS


def test_no_field_follows_another_or_that_of_the_sample_before(impressions: Impressions) -> None:
    names = ("user", "device", "placement", "segment", "join_day", "category")
    columns = torch.stack([getattr(impressions, name).double() for name in names])
    both = torch.cat([columns[:, 1:], columns[:, :-1]])
    correlations = torch.corrcoef(both) - torch.eye(len(both))
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(ROWS)


def test_the_random_bits_of_samples_differ_even_where_their_numbers_hardly_do(impressions: Impressions) -> None:
    assert len(impressions.word.unique()) == ROWS
    apart = impressions.word[1:] ^ impressions.word[:-1]
    flipped = torch.stack([(apart >> bit) & 1 for bit in range(64)]).double().mean(1)
    assert float((flipped - 0.5).abs().max()) < 4.5 / (2 * math.sqrt(ROWS))


def test_the_uniform_behind_a_label_follows_nothing_that_is_shown() -> None:
    """Labels less their probabilities: uncorrelated with every field, with the history, and with the label before."""
    world = SyntheticWorld(SMALL)
    rest, columns = [], []
    for chunk in torch.arange(ROWS // 2).split(1_024):
        batch, p = world.known_batch(chunk)
        rest.append((batch.labels.double() - p)[:, 0] / (p * (1 - p)).sqrt()[:, 0])
        lengths = [batch.events[event]["item"].lengths() for event in batch.events]
        columns.append(torch.stack([*batch.sparse.T, *lengths, batch.request_time]).double())
    residual, shown = torch.cat(rest), torch.cat(columns, dim=1)
    table = torch.cat([residual[None, 1:], residual[None, :-1], shown[:, 1:]])
    assert float(torch.corrcoef(table)[0, 1:].abs().max()) < 4.5 / math.sqrt(len(residual))
    assert float(residual.square().mean()) == pytest.approx(1.0, abs=0.05)
