from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kunlun.training.metrics import (
    AUC,
    GAUC,
    Calibration,
    CTRMetrics,
    LogLoss,
    NormalizedEntropy,
    RankingMetrics,
    binary_entropy,
)
from tests.processes import WORLD, spawn

# Few distinct logits and users: most examples hold ties, one-class users and users with one row.
LOGIT = st.one_of(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0]), st.floats(-30, 30, width=32))
ROW = st.tuples(LOGIT, st.booleans(), st.integers(-3, 3), st.floats(0.125, 4, width=32))
ROWS = st.lists(ROW, max_size=60)

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")


def columns(rows: list[tuple[float, bool, int, float]]) -> dict[str, Tensor]:
    logits, labels, user, weight = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "logits": torch.tensor(logits, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.float32),
        "user": torch.tensor(user, dtype=torch.int64),
        "weight": torch.tensor(weight, dtype=torch.float32),
    }


def random_columns(rows: int, users: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, generator=generator).mul(4).round().div(4)
    return {
        "logits": logits,
        "labels": (torch.rand(rows, generator=generator) < logits.sigmoid()).float(),
        "user": torch.randint(users, (rows,), generator=generator),
        "weight": torch.rand(rows, generator=generator) + 0.5,
    }


def brute_auc(logits: list[float], labels: list[float]) -> float:
    positives = [x for x, y in zip(logits, labels, strict=True) if y]
    negatives = [x for x, y in zip(logits, labels, strict=True) if not y]
    if not positives or not negatives:
        return math.nan
    return sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives) / (len(positives) * len(negatives))


def brute_gauc(logits: list[float], labels: list[float], users: list[int]) -> float:
    total = impressions = 0.0
    for user in set(users):
        own = [i for i, other in enumerate(users) if other == user]
        auc = brute_auc([logits[i] for i in own], [labels[i] for i in own])
        if not math.isnan(auc):
            total += auc * len(own)
            impressions += len(own)
    return total / impressions if impressions else math.nan


def computed(metric: Any, *arguments: Tensor) -> Any:
    metric.update(*arguments)
    return metric.compute()


@settings(deadline=None)
@given(ROWS)
def test_auc_and_gauc_equal_brute_force(rows: list[tuple[float, bool, int, float]]) -> None:
    c = columns(rows)
    values = computed(RankingMetrics(), c["logits"], c["labels"], c["user"])
    logits, labels, users = (c[name].tolist() for name in ("logits", "labels", "user"))
    assert values["auc"].item() == pytest.approx(brute_auc(logits, labels), abs=1e-12, nan_ok=True)
    assert values["gauc"].item() == pytest.approx(brute_gauc(logits, labels, users), abs=1e-12, nan_ok=True)
    assert computed(AUC(), c["logits"], c["labels"]).item() == pytest.approx(values["auc"].item(), abs=0, nan_ok=True)
    gauc = computed(GAUC(), c["logits"], c["labels"], c["user"]).item()
    assert gauc == pytest.approx(values["gauc"].item(), abs=0, nan_ok=True)


@settings(deadline=None)
@given(ROWS.filter(lambda rows: len({label for _, label, _, _ in rows}) == 2))
def test_auc_equals_scikit_learn(rows: list[tuple[float, bool, int, float]]) -> None:
    from sklearn.metrics import roc_auc_score  # here, since the spawned processes import this file

    c = columns(rows)
    expected = roc_auc_score(c["labels"].numpy(), c["logits"].numpy())
    assert computed(AUC(), c["logits"], c["labels"]).item() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(ROWS.filter(bool))
def test_log_loss_equals_scikit_learn(rows: list[tuple[float, bool, int, float]]) -> None:
    from sklearn.metrics import log_loss

    c = columns(rows)
    # Both columns from logits: 1 - sigmoid would lose digits that the metric keeps.
    probability = torch.stack([-c["logits"], c["logits"]], 1).double().sigmoid().numpy()
    for weight in (None, c["weight"]):
        expected = log_loss(
            c["labels"].numpy(),
            probability,
            sample_weight=None if weight is None else weight.double().numpy(),
            labels=[0, 1],
        )
        value = LogLoss()
        value.update(c["logits"], c["labels"], weight)
        assert value.compute().item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 9))
def test_values_do_not_depend_on_batches_or_row_order(
    rows: list[tuple[float, bool, int, float]], random: Any, batch_size: int
) -> None:
    whole, split = CTRMetrics(0.3, users=True), CTRMetrics(0.3, users=True)
    whole.update(**columns(rows))
    shuffled = random.sample(rows, len(rows))
    for start in range(0, len(rows), batch_size):
        split.update(**columns(shuffled[start : start + batch_size]))
    expected, values = whole.compute(), split.compute()
    for name in ("ne", "log_loss", "calibration"):
        assert values[name].item() == pytest.approx(expected[name].item(), rel=1e-12, nan_ok=True), name
    for name in ("auc", "gauc"):  # pairs are counted in integers: equal to the last bit
        torch.testing.assert_close(values[name], expected[name], rtol=0, atol=0, equal_nan=True)


@settings(deadline=None)
@given(ROWS.filter(bool), st.floats(0.01, 0.99))
def test_normalized_entropy_is_log_loss_over_entropy(
    rows: list[tuple[float, bool, int, float]], train_rate: float
) -> None:
    c = columns(rows)
    entropy = -train_rate * math.log(train_rate) - (1 - train_rate) * math.log(1 - train_rate)
    ne = NormalizedEntropy(train_rate)
    ne.update(c["logits"], c["labels"], c["weight"])
    loss = LogLoss()
    loss.update(c["logits"], c["labels"], c["weight"])
    assert ne.compute().item() == pytest.approx(loss.compute().item() / entropy, rel=1e-12)


def test_predicting_the_training_rate_has_normalized_entropy_one() -> None:
    labels = torch.tensor([1.0, 0, 0, 0])
    logits = torch.full((4,), math.log(0.25 / 0.75), dtype=torch.float64)
    assert computed(NormalizedEntropy(0.25), logits, labels).item() == pytest.approx(1.0, rel=1e-12)
    # Against another training rate the same predictions no longer score 1.
    assert computed(NormalizedEntropy(0.1), logits, labels).item() == pytest.approx(
        binary_entropy(0.25) / binary_entropy(0.1), rel=1e-12
    )


def test_extreme_logits_are_exact() -> None:
    logits, labels = torch.tensor([100.0, -100.0, 100.0, -100.0]), torch.tensor([1.0, 0, 0, 1])
    assert computed(LogLoss(), logits, labels).item() == pytest.approx(50.0, rel=1e-12)
    assert computed(LogLoss(), logits[:1], labels[:1]).item() == pytest.approx(math.exp(-100), rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_training_rate_without_both_classes_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NormalizedEntropy(rate)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        CTRMetrics(rate, users=False)


def test_calibration() -> None:
    logits, labels = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0, 0, 0])
    assert computed(Calibration(), logits, labels).item() == pytest.approx(2.0)
    weight = torch.tensor([2.0, 1, 1, 0])
    assert computed(Calibration(), logits, labels, weight).item() == pytest.approx(1.0)
    assert math.isnan(computed(Calibration(), logits[1:], labels[1:]).item())


@pytest.mark.parametrize(
    ("rows", "undefined"),
    [
        ([], {"ne", "log_loss", "calibration", "auc", "gauc"}),
        ([(0.5, True, 1, 1.0)], {"auc", "gauc"}),
        ([(0.5, False, 1, 1.0)], {"auc", "gauc", "calibration"}),
        ([(0.5, True, 1, 1.0), (0.1, True, 1, 1.0)], {"auc", "gauc"}),
        ([(0.5, True, 1, 1.0), (0.1, False, 2, 1.0)], {"gauc"}),
        ([(0.5, True, 1, 1.0), (0.1, False, 1, 1.0)], set()),
        ([(math.nan, True, 1, 1.0), (0.1, False, 1, 1.0)], {"ne", "log_loss", "calibration", "auc", "gauc"}),
    ],
    ids=["no rows", "one positive", "one negative", "one class", "one-class users", "defined", "nan logit"],
)
def test_undefined_values_are_nan(rows: list[tuple[float, bool, int, float]], undefined: set[str]) -> None:
    metrics = CTRMetrics(0.3, users=True)
    metrics.update(**columns(rows))
    assert {name for name, value in metrics.compute().items() if value.isnan()} == undefined


def test_without_any_update_everything_is_nan() -> None:
    values = CTRMetrics(0.3, users=True).compute()
    assert all(value.isnan() for value in values.values())


def test_users_with_one_class_do_not_count() -> None:
    logits = torch.tensor([3.0, 2, 1, 9, 8])
    labels = torch.tensor([1.0, 0, 1, 1, 1])
    users = torch.tensor([7, 7, 7, 8, 8])
    assert computed(GAUC(), logits, labels, users).item() == 0.5


def test_reset_forgets_all_rows() -> None:
    metrics, fresh = CTRMetrics(0.3, users=True), CTRMetrics(0.3, users=True)
    metrics.update(**random_columns(50, 5, seed=0))
    before = metrics.compute()
    metrics.reset()
    later = random_columns(70, 5, seed=1)
    metrics.update(**later)
    fresh.update(**later)
    assert metrics.compute() == fresh.compute() != before


def test_states_may_cross_the_border_of_inference_mode() -> None:
    metrics, fresh = CTRMetrics(0.3, users=True), CTRMetrics(0.3, users=True)
    c = random_columns(30, 3, seed=0)
    with torch.inference_mode():
        metrics.reset()
        metrics.update(**c)
    metrics.update(**c)
    for _ in range(2):
        fresh.update(**c)
    assert metrics.compute() == fresh.compute()


def test_names_and_required_user() -> None:
    c = random_columns(20, 3, seed=0)
    metrics = CTRMetrics(0.3, users=False)
    metrics.update(c["logits"], c["labels"])
    assert list(metrics.compute()) == ["ne", "log_loss", "calibration", "auc"]
    with pytest.raises(ValueError, match="users=True"):
        CTRMetrics(0.3, users=True).update(c["logits"], c["labels"])


@pytest.mark.parametrize("metric", [LogLoss(), Calibration(), AUC()])
def test_wrong_shapes_are_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"logits\[:, task\]"):
        metric.update(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"logits \(4,\) and labels \(3,\)"):
        metric.update(torch.zeros(4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"users \(2,\)"):
        GAUC().update(torch.zeros(4), torch.zeros(4), torch.zeros(2, dtype=torch.int64))


def test_states_are_compact_detached_copies() -> None:
    logits = torch.zeros(8, 3, requires_grad=True)
    user = torch.arange(8)
    metrics = RankingMetrics()
    metrics.update(logits[:, 0], torch.ones(8), user)
    user += 100
    kept = [metrics.logits[-1], metrics.labels[-1], metrics.users[-1]]
    assert [state.dtype for state in kept] == [torch.float32, torch.bool, torch.int64]
    assert sum(state.untyped_storage().nbytes() for state in kept) == 13 * 8
    assert not any(state.requires_grad for state in kept)
    assert kept[2].tolist() == list(range(8))


def test_casting_the_module_leaves_the_sums_exact() -> None:
    module = nn.ModuleDict({"metrics": CTRMetrics(0.3, users=True), "layer": nn.Linear(1, 1)})
    c = random_columns(1000, 10, seed=0)
    module["metrics"].update(**c)
    expected = module["metrics"].compute()
    module.to(torch.bfloat16)
    assert module["layer"].weight.dtype == torch.bfloat16
    values = copy.deepcopy(module)["metrics"].compute()
    assert values == expected
    module["metrics"].reset()
    module["metrics"].update(**c)
    assert module["metrics"].compute() == expected


# Rows of process 0, the rest belongs to process 1: equal and unequal shards, one process without rows or batches.
SHARDS = (500, 137, 1000, 0)


def _evaluate_shard(rank: int, folder: Path) -> None:
    c = random_columns(1000, 40, seed=3)
    results = []
    for first in SHARDS:
        own = slice(0, first) if rank == 0 else slice(first, None)
        shard = {name: column[own] for name, column in c.items()}
        metrics = CTRMetrics(0.3, users=True)
        for start in range(0, len(shard["logits"]), 64):
            metrics.update(**{name: column[start : start + 64] for name, column in shard.items()})
        results.append(metrics.compute())
        # The gathered rows must not stay: a later update continues from this process's own.
        assert sum(len(rows) for rows in metrics.ranking.logits) == len(shard["logits"])
    torch.save(results, folder / f"{rank}.pt")


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    spawn(_evaluate_shard, tmp_path)
    single = CTRMetrics(0.3, users=True)
    single.update(**random_columns(1000, 40, seed=3))
    expected = single.compute()
    for rank in range(WORLD):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(results) == len(SHARDS)
        for values in results:
            assert values["auc"] == expected["auc"]
            assert values["gauc"] == expected["gauc"]
            for name in ("ne", "log_loss", "calibration"):
                assert values[name].item() == pytest.approx(expected[name].item(), rel=1e-12), name
