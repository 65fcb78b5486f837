"""The committed FLOPs at the paper's sizes are those that the code counts now."""

from __future__ import annotations

import json

import pytest

from benchmarks import paper_flops
from data import SyntheticData


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("flops") / "deep" / "paper_flops.json"
    paper_flops.main(["--out", str(out)])
    return json.loads(out.read_text())


def test_the_committed_figures_are_those_of_the_code(written):
    assert json.loads(paper_flops.OUT.read_text()) == written


def test_a_saving_is_with_against_without(written):
    assert written["flops_per_sample"] == sum(written["flops"].values())
    assert set(written["savings"]) == {"window", "compskip", "event_personalization"}
    for saving in written["savings"].values():
        change = (written["flops_per_sample"] - saving["flops_without"]) / saving["flops_without"]
        assert saving["change"] == pytest.approx(change, abs=1e-4)
        assert saving["residual"] == pytest.approx(change - saving["published"], abs=1e-4)


def test_the_attention_saved_by_the_window_is_that_of_the_pairs_it_leaves_out():
    """Two towers that attend once: 4·d FLOPs for each pair of events, of which the window leaves T(2w+1) − w(w+1)."""
    schema = SyntheticData("tiny").schema.with_max_length(paper_flops.EVENTS)
    full = paper_flops.count(schema)
    without = paper_flops.count(schema, "ablations/no_window")
    events = paper_flops.EVENTS
    left_out = 0
    for width, window, types in ((256, 100, 1), (128, 50, 2)):
        left_out += types * 4 * width * (events**2 - (events * (2 * window + 1) - window * (window + 1)))
    assert without["attention"] - full["attention"] == left_out
    assert {part for part in full if full[part] != without[part]} == {"attention"}
