"""A scaling experiment from its command to its slopes: the same search for all, planted laws found again."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest

from kunlun.configuration import ConfigError
from kunlun.experiments import scaling
from kunlun.experiments.results import ScalingResult
from kunlun.experiments.scaling_tables import scaling_tables
from kunlun.training.cli import KunlunCLI
from kunlun.training.precheck import precheck
from kunlun.training.utilization import flops_at_mean_lengths
from tests.experiments.fits import Fits

SHARED = ["--config", "scaling/kunlun.yaml", "--data.preset", "tiny", "--run.wandb", "disabled", "--seeds", "3"]


def flops(config):
    arguments = config["model"]["init_args"]
    return 1e4 * arguments["width"] ** 2 * arguments["layers"]


def planted(config, seed):
    """η is 0.02 for Kunlun, 0.01 for InterFormer, 0.005 for Wukong; the larger learning rate is worse."""
    eta = {"Kunlun": 0.02, "InterFormer": 0.01, "Wukong": 0.005}[config["model"]["class_path"].rpartition(".")[2]]
    luck = np.random.default_rng([seed, int(flops(config))]).normal(0, 2e-4)
    worse = 0.1 * (config["training"]["optimizer"]["lr"] > 0.005)
    return 0.9 - eta * math.log(flops(config) / 1e6) + worse + luck


def run(fits, folder, monkeypatch, *more):
    @contextmanager
    def stoppable():
        yield fits

    monkeypatch.setattr(scaling, "stoppable", stoppable)
    code = scaling.main([*SHARED, "--out", str(folder), *more])
    return code, ScalingResult.load(folder / "results.json")


def test_planted_slopes_are_found_and_their_ratio(tmp_path, monkeypatch, capsys):
    fits = Fits(planted, flops)
    code, result = run(fits, tmp_path / "s", monkeypatch)
    assert code == 0
    assert len(fits.commands) == 3 * 4 * 4 + 3 * 4 * 3  # shapes × rates of each size, then the seeds
    etas = {ladder.model: ladder.log.coefficients["eta"] for ladder in result.ladders}
    for model, eta in (("kunlun", 0.02), ("interformer", 0.01), ("wukong", 0.005)):
        assert etas[model].mean == pytest.approx(eta, rel=0.03)
    assert result.ratios["kunlun"].low <= 2.0 <= result.ratios["kunlun"].high
    assert "interformer" not in result.ratios
    kunlun = result.ladders[0]
    assert all(point.chosen["training.optimizer.lr"] == 0.003 for point in kunlun.points)
    assert kunlun.points[0].chosen["layers"] == 2  # more FLOPs, lower NE
    assert result.base == min(point.flops for ladder in result.ladders for point in ladder.points)
    assert result.oracle == {"ne": 0.5}
    assert "scaling" in capsys.readouterr().out
    assert "kunlun" in (tmp_path / "s/report.html").read_text()

    again = Fits(planted, flops)
    assert run(again, tmp_path / "s", monkeypatch)[1].ratios == result.ratios
    assert not again.commands


def test_it_goes_on_from_its_results_json_alone(tmp_path, monkeypatch, capsys):
    """The runs are gone: neither the search nor the seeds are trained again, and a new seed is."""
    whole = run(Fits(planted, flops), tmp_path / "s", monkeypatch)[1]
    assert len(whole.search) == 3 * 4 * 4
    (shown,) = (grid for grid in scaling_tables(whole) if grid.key == "search")
    assert (len(shown.rows), sum(row.strong for row in shown.rows)) == (48, 12)  # one of each size was chosen
    (tmp_path / "clone").mkdir()
    (tmp_path / "s/results.json").rename(tmp_path / "clone/results.json")
    more = Fits(planted, flops)
    result = run(more, tmp_path / "clone", monkeypatch, "--seeds", "4")[1]
    assert "84 cells are known from" in capsys.readouterr().out
    assert len(more.commands) == 3 * 4
    assert result.search == whole.search
    assert result.data == whole.data
    assert [len(point.cells) for ladder in result.ladders for point in ladder.points] == [4] * 12


def test_the_search_of_one_model_is_as_large_as_that_of_another():
    plan = scaling.read_plan(SHARED)
    counts = {pair: len(plan.of(*pair)) for pair in plan.sizes()}
    assert set(counts.values()) == {4}
    assert len(counts) == 12
    assert [size for _, size in plan.sizes()] == sorted(size for _, size in plan.sizes())


def test_a_failed_candidate_is_not_chosen_and_a_failed_search_is_told(tmp_path, monkeypatch):
    def fragile(config, seed):
        if config["model"]["class_path"].endswith("Wukong") or config["training"]["optimizer"]["lr"] == 0.003:
            raise RuntimeError("too steep")
        return planted(config, seed)

    code, result = run(Fits(fragile, flops), tmp_path / "s", monkeypatch)
    assert code == 1
    kunlun = next(ladder for ladder in result.ladders if ladder.model == "kunlun")
    assert all(point.chosen["training.optimizer.lr"] == 0.01 for point in kunlun.points)
    wukong = next(ladder for ladder in result.ladders if ladder.model == "wukong")
    assert (wukong.points, wukong.log) == ([], None)
    assert "Size 1 of wukong lost 4 of 4 trials of its search: too steep (exit code 1)." in result.notes
    assert "Size 1 of kunlun lost 2 of 4 trials of its search: too steep (exit code 1)." in result.notes


def test_a_size_whose_seeds_all_failed_is_shown_with_its_reason(tmp_path, monkeypatch):
    """It was searched for, so it has FLOPs; the other sizes are fitted without it."""

    def late(config, seed):
        if seed != 1000 and config["model"]["class_path"].endswith("Kunlun") and flops(config) > 1e8:
            raise RuntimeError("too large")
        return planted(config, seed)

    code, result = run(Fits(late, flops), tmp_path / "s", monkeypatch)
    assert code == 1
    kunlun = next(ladder for ladder in result.ladders if ladder.model == "kunlun")
    assert [cell.reason for cell in kunlun.points[-1].cells] == ["too large (exit code 1)"] * 3
    assert kunlun.log.coefficients["eta"].count == 3
    (shown,) = (grid for grid in scaling_tables(result) if grid.key == "failures")
    assert len(shown.rows) == 3
    assert "Cells of kunlun 4 failed." in result.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "interfromer"], "the reference 'interfromer' is not among the models"),
        (["--seeds", "[1000]"], "not the search_seed"),
        (["--search", "{training.optimizer.lr: []}"], "search: training.optimizer.lr has no value to try"),
        (["--scaling.models.kunlun.sizes", "[[{widht: 8}], [{width: 16}]]"], "widht"),
        (["--scaling.models.kunlun.sizes", "[[{width: 8}]]"], "two sizes or more"),
        (["--scaling.models.kunlun.config", "kunlnu"], "did you mean"),
        (["--sizes", "3"], "unknown option"),
        (["--training.optimizer.lr", "0.1"], "the search chooses it"),
        (["--seed_everything", "3"], "gives every cell its own"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_place(arguments, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        scaling.read_plan([*SHARED, *arguments])


@pytest.mark.slow
def test_the_shipped_ladders_span_a_hundredfold_in_compute():
    plan = scaling.read_plan([*SHARED, "--search", "{training.optimizer.lr: [0.001]}"])
    for model in plan.options.models:
        found = [[flops_of(c.variant.request) for c in plan.of(model, size)] for size in range(4)]
        assert max(found[-1]) / min(found[0]) >= 80, (model, found)
        assert all(max(small) < min(large) for small, large in itertools.pairwise(found)), (model, found)


def flops_of(request):
    module = KunlunCLI(request, precheck(request)).model
    return flops_at_mean_lengths(module.model, module.schema)
