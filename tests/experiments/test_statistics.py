"""Intervals cover what they say they cover; fits find the coefficients that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from kunlun.experiments.statistics import Estimate, fit_log, fit_power, interval, paired, ratio

SIZES = np.repeat(np.geomspace(1e6, 2e8, 5), 3)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_paired_intervals_cover_the_true_difference_95_times_in_100(seeds):
    """A seed's own luck is far larger than the difference, and leaves no trace in the paired one."""
    rng = np.random.default_rng(seeds)
    covered, wide = 0, 0
    for _ in range(2_000):
        luck = rng.normal(0.8, 0.5, seeds)
        full = dict(enumerate(luck + rng.normal(0, 0.01, seeds)))
        variant = dict(enumerate(luck + 0.02 + rng.normal(0, 0.01, seeds)))
        found = paired(variant, full)
        covered += found.low <= 0.02 <= found.high
        wide += found.half_width > 0.5
    assert 0.935 <= covered / 2_000 <= 0.965
    assert seeds == 2 or wide == 0


def test_only_seeds_that_both_have_are_compared():
    found = paired({0: 1.0, 1: 2.0, 7: 50.0}, {0: 0.5, 1: 1.0, 2: -9.0})
    assert found.count == 2
    assert found.mean == pytest.approx(0.75)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_a_mean_and_no_interval():
    assert interval([0.5]) == Estimate(0.5, None, None, 1)
    assert not interval([0.5]).is_clear
    with pytest.raises(ValueError, match="finite"):
        interval([0.5, float("nan")])


def test_the_logarithmic_law_finds_what_was_planted():
    planted = 0.9 - 0.02 * np.log(SIZES / 1e6)
    exact = fit_log(SIZES, planted, base=1e6).coefficients
    assert exact["ne0"].mean == pytest.approx(0.9)
    assert exact["eta"].mean == pytest.approx(0.02)


def test_the_power_law_finds_what_was_planted():
    exact = fit_power(SIZES, 0.7 + 0.1 * (SIZES / 1e6) ** -0.4, base=1e6).coefficients
    assert [exact[k].mean for k in "abc"] == pytest.approx([0.7, 0.1, 0.4], rel=1e-3)


@pytest.mark.parametrize("sizes", [4, 6])
def test_the_intervals_of_the_power_law_cover_it(sizes):
    """Though four sizes leave one degree of freedom, and seeds of a size share its distance from the law."""
    planted, repeats = {"a": 0.7, "b": 0.1, "c": 0.4}, 300
    flops = np.repeat(np.geomspace(1e6, 1e8, sizes), 3)
    rng = np.random.default_rng(sizes)
    covered = dict.fromkeys([*planted, "curve"], 0)
    for _ in range(repeats):
        off = np.repeat(rng.normal(0, 0.003, sizes), 3) + rng.normal(0, 0.001, flops.size)
        fit = fit_power(flops, 0.7 + 0.1 * (flops / 1e6) ** -0.4 + off, base=1e6)
        for name, value in planted.items():
            covered[name] += fit.coefficients[name].low <= value <= fit.coefficients[name].high
        middle = len(fit.flops) // 2
        covered["curve"] += fit.low[middle] <= 0.7 + 0.1 * (fit.flops[middle] / 1e6) ** -0.4 <= fit.high[middle]
    assert all(times / repeats >= 0.9 for times in covered.values()), covered


def test_more_sizes_narrow_the_intervals_of_the_power_law():
    def width(sizes: int) -> float:
        flops = np.geomspace(1e6, 1e8, sizes)
        noise = np.random.default_rng(0).normal(0, 0.002, sizes)
        a = fit_power(flops, 0.7 + 0.1 * (flops / 1e6) ** -0.4 + noise, base=1e6).coefficients["a"]
        return a.high - a.low

    assert width(40) < width(8) < 0.15


def test_three_sizes_have_a_power_law_and_no_interval():
    fit = fit_power([1e6, 1e7, 1e8], [0.8, 0.74, 0.715], base=1e6)
    assert fit.coefficients["c"].low is None
    assert fit.low == fit.middle == fit.high


def test_a_curve_that_does_not_fall_has_no_negative_gain():
    fit = fit_power(SIZES, 0.7 + 0.01 * np.log(SIZES), base=1e6)
    assert fit.coefficients["b"].mean == 0
    assert fit.middle == pytest.approx([np.mean(0.7 + 0.01 * np.log(SIZES))] * len(fit.middle))


@pytest.mark.parametrize(("end", "curve"), [(0.02, [0.9, 0.8, 0.69, 0.5]), (3.0, [0.9, 0.8, 0.8, 0.8])])
def test_an_exponent_at_the_end_of_the_search_is_that_end(end, curve):
    """So that the table can say so."""
    assert fit_power(np.geomspace(1e6, 1e8, 4), curve, base=1e6).coefficients["c"].mean == end


def test_the_interval_of_eta_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        found = fit_log(SIZES, 0.9 - 0.02 * np.log(SIZES / 1e6) + rng.normal(0, 0.01, SIZES.size), base=1e6)
        eta = found.coefficients["eta"]
        covered += eta.low <= 0.02 <= eta.high
    assert covered >= 51  # 95 % of 60 are 57; 51 or less has a chance under 0.5 %


def test_seeds_of_a_size_are_not_independent_points():
    """Sizes lie off the law by more than seeds differ: the interval knows, or it would be three times too narrow."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        off = np.repeat(rng.normal(0, 0.002, 5), 3)
        found = fit_log(SIZES, 0.9 - 0.02 * np.log(SIZES / 1e6) + off + rng.normal(0, 0.0005, SIZES.size), base=1e6)
        eta = found.coefficients["eta"]
        covered += eta.low <= 0.02 <= eta.high
    assert 0.92 <= covered / 400 <= 0.98


def test_two_sizes_have_a_slope_and_no_interval():
    eta = fit_log([1e6, 1e7], [0.9, 0.8], base=1e6).coefficients["eta"]
    assert eta.mean == pytest.approx(0.1 / np.log(10))
    assert eta.low is None


def test_the_band_holds_the_curve():
    noise = np.random.default_rng(1).normal(0, 0.01, SIZES.size)
    fit = fit_log(SIZES, 0.9 - 0.02 * np.log(SIZES / 1e6) + noise, base=1e6)
    true = 0.9 - 0.02 * np.log(np.array(fit.flops) / 1e6)
    assert np.all((np.array(fit.low) <= true) & (true <= np.array(fit.high)))
    assert np.all(np.array(fit.low) < np.array(fit.middle))


def test_fits_refuse_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="1 sizes"):
        fit_log([1e6, 1e6], [0.9, 0.8], base=1e6)
    with pytest.raises(ValueError, match="finite"):
        fit_power([1e6, 1e7, 1e8], [0.9, float("inf"), 0.7], base=1e6)


def test_ratio_of_two_estimates_covers_the_true_ratio():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(2_000):
        a, b = rng.normal(0.04, 0.004), rng.normal(0.02, 0.002)
        found = ratio(
            Estimate(a, a - 1.96 * 0.004, a + 1.96 * 0.004, 5), Estimate(b, b - 1.96 * 0.002, b + 1.96 * 0.002, 5)
        )
        covered += found.low <= 2.0 <= found.high
    assert 0.93 <= covered / 2_000 <= 0.97


def test_a_ratio_to_what_may_be_nothing_has_no_upper_end():
    found = ratio(Estimate(0.04, 0.03, 0.05, 5), Estimate(0.01, -0.01, 0.03, 5))
    assert found.mean == pytest.approx(4.0)
    assert 1 < found.low < 0.04 / 0.03
    assert found.high is None
    unclear = ratio(Estimate(0.04, -0.01, 0.09, 5), Estimate(0.01, -0.01, 0.03, 5))
    assert (unclear.low, unclear.high) == (None, None)
    with pytest.raises(ValueError, match="above 0"):
        ratio(Estimate(0.04, 0.03, 0.05, 5), Estimate(-0.01, -0.02, 0.0, 5))


def test_the_lower_end_covers_the_true_ratio_where_there_is_no_upper_one():
    """A reference whose slope is as large as its error: the ratio 2 is above the lower end 95 times in 100."""
    rng = np.random.default_rng(4)
    covered, without = [], 0
    for _ in range(4_000):
        a, b = rng.normal(0.04, 0.004), rng.normal(0.02, 0.02)
        if b > 0:
            reference = Estimate(b, b - 1.96 * 0.02, b + 1.96 * 0.02, 5)
            found = ratio(Estimate(a, a - 1.96 * 0.004, a + 1.96 * 0.004, 5), reference)
            covered.append(found.low <= 2.0 and (found.high is None or found.high >= 2.0))
            without += found.high is None
    assert without > 2_000
    assert np.mean(covered) >= 0.93
