"""The paper's figures keep the direction that they were reported in, and ours are turned into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kunlun.experiments.published import PUBLISHED, Figure, added, ours
from kunlun.experiments.statistics import Estimate
from tests.experiments.support import matrix, variant

ABLATIONS = Path(__file__).resolve().parents[2] / "configs" / "ablations"


def test_every_published_variant_is_one_of_ours() -> None:
    assert {name for name in PUBLISHED if not (ABLATIONS / f"{name}.yaml").exists()} == set()


def test_the_figures_are_in_the_words() -> None:
    """One figure, written twice, cannot drift apart: every number is in the words, and its sign or its sense."""
    for published in PUBLISHED.values():
        for figure in published.figures:
            number = f"{abs(figure.percent):g} %"
            assert (number if figure.percent else "NE neutral") in published.words


@pytest.mark.parametrize(("without", "with_it"), [(1.5, 1.0), (0.8, 1.0), (2.0, 1.0), (100.0, 57.0)])
def test_added_is_the_change_from_without_to_with(without: float, with_it: float) -> None:
    removed = 100 * (without - with_it) / with_it
    assert added(Estimate(removed, None, None, 1)).mean == pytest.approx(100 * (with_it - without) / without)


def test_the_ends_of_an_interval_change_places() -> None:
    turned = added(Estimate(25.0, 0.0, 100.0, 5))
    assert (turned.low, turned.mean, turned.high, turned.count) == (-50.0, pytest.approx(-20.0), 0.0, 5)
    assert turned.is_clear == Estimate(25.0, 0.0, 100.0, 5).is_clear


def test_ours_follows_the_direction_of_the_figure() -> None:
    window = variant("no_window", [], [], ratio={"flops": 1.25, "training_qps": 0.8})
    assert ours(Figure("FLOPs", -29.5, "added"), window) == Estimate(pytest.approx(-20.0), None, None, 1)
    assert ours(Figure("FLOPs", -29.5, "removed"), window) == Estimate(pytest.approx(25.0), None, None, 1)
    assert ours(Figure("QPS", 31.1, "added"), window) == Estimate(pytest.approx(25.0), None, None, 1)
    assert ours(Figure("NE", 0.0, "added"), window) is None


def test_ne_that_is_better_when_added_is_worse_when_removed() -> None:
    hsp = matrix().variant("no_hsp")
    removed, turned = (ours(Figure("NE", -0.08, d), hsp) for d in ("removed", "added"))  # type: ignore[arg-type]
    assert removed == hsp.delta_percent["ne"]
    assert removed is not None
    assert turned is not None
    assert removed.mean > 0 > turned.mean
