"""Costs are found in the benchmark's JSON, and what is not there is None."""

from __future__ import annotations

import pytest

from kunlun.experiments.costs import Costs
from tests.experiments.support import efficiency


def test_everything_is_found() -> None:
    written = efficiency(2.0, 0.5)
    costs = Costs.of(written)
    assert costs.flops == written["flops"]["forward"]
    assert costs.training_qps == written["training"]["samples_per_second"]
    assert costs.latency_p99 == written["inference"]["latency_ms"]["p99"]
    assert costs.components is not None
    assert sum(costs.components.values()) == pytest.approx(costs.flops)
    assert None not in vars(costs).values()


@pytest.mark.parametrize("written", [None, {}, {"training": {"mfu": None}}, {"flops": float("nan")}, {"flops": "many"}])
def test_what_is_not_there_is_none(written: dict[str, object] | None) -> None:
    assert Costs.of(written) == Costs()


def test_flops_may_be_a_plain_number() -> None:
    assert Costs.of({"flops": 12}).flops == 12.0
