"""Costs are found in the benchmark's JSON, and what is not there is None."""

from __future__ import annotations

import pytest

from kunlun.experiments.costs import Costs
from tests.experiments.support import efficiency


def test_everything_is_found() -> None:
    written = efficiency(2.0, 0.5)
    costs = Costs.of(written)
    assert costs.flops == written["flops_per_sample"]
    assert costs.training_qps == written["training"]["samples_per_second"]
    assert costs.latency_p99 == written["inference"]["latency_ms"]["p99"]
    assert costs.components is not None
    assert sum(costs.components.values()) == pytest.approx(costs.flops)
    assert None not in vars(costs).values()


@pytest.mark.parametrize(
    "written", [None, {}, {"training": {"mfu": None}}, {"flops_per_sample": float("nan")}, {"flops_per_sample": "many"}]
)
def test_what_is_not_there_is_none(written: dict[str, object] | None) -> None:
    assert Costs.of(written) == Costs()


def test_the_benchmark_of_a_model_without_flops_is_read() -> None:
    written = {**efficiency(1.0, 1.0), "flops_per_sample": None, "flops": {}}
    assert Costs.of(written).flops is None
    assert Costs.of(written).training_qps == written["training"]["samples_per_second"]
