"""The oracle of the synthetic world: labels follow it, its NE and AUC are exact, and parts carry what they should."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from data.synthetic import SyntheticWorld, sigmoid
from data.synthetic_config import PARTS, SPLITS, Strengths
from data.synthetic_oracle import OracleNE, oracle_auc, oracle_ne, part_gains, soft_auc, summarise
from data.synthetic_presets import PRESETS
from tests.data.worlds import MANY, TINY, altered


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(TINY)


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
    assert torch.allclose(sigmoid(x), torch.sigmoid(x), rtol=1e-13, atol=0)
    assert torch.equal(sigmoid(2 * x[:1]), sigmoid(torch.tensor([-40.0], dtype=torch.float64)))


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


def test_two_tasks_conversions_are_clicks_at_their_rate() -> None:
    both = altered(tasks=("click", "conversion"), conversion_rate=0.06)
    index = torch.arange(1 << 13)
    labels, p = both.batch(index).labels, both.oracle(index)
    assert p.shape == labels.shape == (1 << 13, 2)
    assert bool((labels[:, 1] <= labels[:, 0]).all())
    assert bool((p[:, 1] < p[:, 0]).all())
    error = torch.sqrt((p * (1 - p)).sum(0))
    assert bool(((labels - p).sum(0).abs() < 4 * error).all())
    spread = float(p[:, 1].std()) * math.sqrt(2 / (1 << 13))  # calibrated on as many rows
    assert float(p[:, 1].mean()) == pytest.approx(0.06, abs=4 * spread)
    assert oracle_ne(both, "valid", "conversion").ne < 1
    with pytest.raises(ValueError, match="no task 'buy'; there are click, conversion"):
        oracle_ne(both, "valid", "buy")


# AUC


def test_soft_auc_is_the_sum_over_all_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    for n in (2, 7, 40):
        p = torch.randint(1, 12, (n,), generator=random).double() / 12  # with ties
        right = total = 0.0
        for i in range(n):
            for j in range(n):
                if i != j:
                    weight = float(p[i] * (1 - p[j]))
                    total += weight
                    right += weight * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
        assert soft_auc(p)[0] == pytest.approx(right / total, abs=1e-12)
    assert math.isnan(soft_auc(torch.ones(3, dtype=torch.float64))[0])


def hard_auc(p: torch.Tensor, labels: torch.Tensor) -> float:
    """Of distinct p (n,), by ranks."""
    ranks = p.argsort().argsort().double() + 1
    positives = float(labels.sum())
    return (float(ranks[labels > 0].sum()) - positives * (positives + 1) / 2) / positives / (len(p) - positives)


def test_auc_on_sampled_labels_lies_around_the_oracles_as_far_as_it_says(world: SyntheticWorld) -> None:
    p = world.oracle(torch.arange(4_000))[:, 0].unique()
    auc, _, label_error = soft_auc(p)
    random = torch.Generator().manual_seed(0)
    found = [hard_auc(p, torch.rand(len(p), generator=random, dtype=torch.float64) < p) for _ in range(400)]
    scores = torch.tensor(found, dtype=torch.float64)
    assert abs(float(scores.mean()) - auc) < 4 * label_error / 20 + 1e-4
    assert float(scores.std()) == pytest.approx(label_error, rel=0.15)


def test_auc_of_other_samples_of_a_world_differs_as_the_standard_error_says(world: SyntheticWorld) -> None:
    blocks = [soft_auc(p) for p in world.oracle(torch.arange(1 << 16))[:, 0].split(512)]
    scores = torch.tensor([block[0] for block in blocks], dtype=torch.float64)
    error = sum(block[1] for block in blocks) / len(blocks)
    assert float(scores.std()) == pytest.approx(error, rel=0.25)  # of 128 blocks: 6 % in one deviation
    whole = oracle_auc(world, "train")
    assert abs(float(scores.mean()) - whole.auc) < 4 * error / math.sqrt(len(blocks))
    assert whole.rows == 1 << 16
    with pytest.raises(ValueError, match="no task 'buy'; there are click"):
        oracle_auc(world, "valid", "buy")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "rows"), [("tiny", 1_000_000), ("small", 200_000)])
def test_ne_of_the_true_probabilities_on_many_labels_is_the_oracle_ne(preset: str, rows: int) -> None:
    """Of ``small`` a fifth of the rows, whose histories are three times as long."""
    world = SyntheticWorld(PRESETS[preset])
    losses = []
    for chunk in torch.arange(rows).split(1_024):
        batch, p = world.known_batch(chunk)
        losses.append(torch.nn.functional.binary_cross_entropy(p, batch.labels.double(), reduction="none"))
    loss = torch.cat(losses)
    rate = torch.tensor(world.config.ctr, dtype=torch.float64)
    scale = float(torch.nn.functional.binary_cross_entropy(rate, rate))
    logged = summarise(world).nes[0]
    error = math.hypot(logged.standard_error, float(loss.std()) / math.sqrt(rows) / scale)
    assert abs(float(loss.mean()) / scale - logged.ne) < 3 * error
    assert error < 0.005


# What each part carries


def test_parts_without_strength_carry_nothing() -> None:
    for part in part_gains(altered(strengths=Strengths())):
        assert (part.share, part.standard_error) == (0.0, 0.0)
    alone = part_gains(altered(strengths=Strengths(crosses=1.0), label_noise=0.1))
    for part in alone:
        if part.part == "crosses":
            # All of it, but for what the other parts tell of the crosses.
            assert abs(part.share - 1) < min(0.1, 3 * part.standard_error)
        else:
            assert abs(part.share) < 1e-9
            assert part.standard_error < 1e-9
    noise = part_gains(altered(label_noise=1.0))
    assert [part.share for part in noise] == [0.0] * len(PARTS)


def test_gains_are_those_of_integrating_a_part_out_where_it_depends_on_no_other(world: SyntheticWorld) -> None:
    """Device, placement and the like have no part in the events, so the crosses can be drawn from other rows."""
    parts = world.parts(torch.arange(1 << 13))
    found = part_gains(world, "train", max_rows=1 << 13)[PARTS.index("crosses")]
    p, column = world.probability(parts)[:, 0], PARTS.index("crosses")
    mixed, draws = torch.zeros_like(p), 64
    for number in range(draws):
        other = parts.clone()
        other[:, column] = parts[:, column].roll(17 + 101 * number)
        mixed += world.probability(other)[:, 0] / draws
    loss = -(p * mixed.log() + (1 - p) * torch.log1p(-mixed))
    entropy = -(p * p.log() + (1 - p) * torch.log1p(-p))
    whole = -TINY.ctr * math.log(TINY.ctr) - (1 - TINY.ctr) * math.log1p(-TINY.ctr)
    share = float((loss - entropy).mean() / (whole - entropy).mean())
    assert found.share == pytest.approx(share, rel=0.1)


def test_stronger_parts_carry_more_and_the_errors_are_small(world: SyntheticWorld) -> None:
    gains = {part.part: part for part in part_gains(world)}
    assert list(gains) == list(PARTS)
    assert all(0.005 < g.share < 0.5 and 0 < g.standard_error < 0.02 for g in gains.values())
    more = {p.part: p for p in part_gains(altered(strengths=replace(TINY.strengths, memory=1.0)))}
    assert more["memory"].share > 5 * gains["memory"].share
    halves = [part_gains(world, split, max_rows=1 << 13) for split in ("train", "valid")]
    for one, other in zip(*halves, strict=True):
        assert abs(one.share - other.share) < 4 * math.hypot(one.standard_error, other.standard_error)


def test_a_summary_says_it_all_in_a_line_and_in_figures() -> None:
    both = altered(tasks=("click", "conversion"))
    summary = summarise(both, max_rows=4_096)
    figures = summary.figures()
    assert figures["oracle/ne"] == summary.nes[0].ne
    assert figures["oracle/conversion/auc"] == summary.aucs[1].auc
    assert {f"oracle/gain/{part}" for part in PARTS} <= figures.keys()
    assert all(math.isfinite(value) for value in figures.values())
    line = summary.line()
    assert "\n" not in line
    assert f"conversion NE {summary.nes[1].ne:.4f} ± " in line
    assert "recency " in line
    with pytest.raises(ValueError, match="max_rows must be ≥ 1, got 0"):
        summarise(both, max_rows=0)
