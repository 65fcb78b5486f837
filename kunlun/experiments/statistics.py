"""Intervals of paired differences, and the two forms of a scaling law fitted with intervals.

Legend: S seeds · P points of a ladder (one per size and seed) · C FLOPs per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval; ``low`` and ``high`` are None where one value gives no interval."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Estimate:
    """Mean of S values and its interval by Student's t with S − 1 degrees of freedom.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size == 0 or not np.isfinite(found).all():
        raise ValueError(f"an interval needs finite values, got {list(values)}")
    mean = float(found.mean())
    if found.size == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, found.size - 1) * found.std(ddof=1) / np.sqrt(found.size))
    return Estimate(mean, mean - half, mean + half, int(found.size))


def paired(values: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """The interval of ``values − reference`` over the seeds that both have; None where they share none."""
    seeds = sorted(values.keys() & reference.keys())
    return interval([values[seed] - reference[seed] for seed in seeds]) if seeds else None


@dataclass(frozen=True)
class Fit:
    """A fitted curve over FLOPs: its coefficients, each with an interval, and the curve with a band.

    ``flops``, ``middle``, ``low``, ``high`` have the same length; the band is of the curve, not of single runs.
    ``residual`` is the standard deviation of the points around it, in NE.
    """

    coefficients: dict[str, Estimate]
    flops: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]
    residual: float


REPEATS = 1_000
CURVE_POINTS = 50


def fit_log(flops: Sequence[float], ne: Sequence[float], base: float) -> Fit:
    """``NE = NE₀ − η·log(C/C₀)``, natural logarithm, C₀ = ``base``; P points, seeds beside one another (Kunlun).

    Least squares on the mean of each size, with Student's intervals of as many degrees of freedom as sizes leave:
    seeds of one size share its distance from the law, so they are not independent points. Two sizes have no interval.
    """
    c, y = _points(flops, ne, ("ne0", "eta"))
    sizes, owner = np.unique(c, return_inverse=True)
    x, mean = np.log(sizes / base), np.bincount(owner, y) / np.bincount(owner)
    spread = float(((x - x.mean()) ** 2).sum())
    eta = -float(((x - x.mean()) * (mean - mean.mean())).sum() / spread)
    ne0 = float(mean.mean() + eta * x.mean())
    shown = np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)
    middle = ne0 - eta * np.log(shown / base)
    free = sizes.size - 2
    half = np.zeros_like(shown)
    estimates: dict[str, tuple[float, float | None]] = {"ne0": (ne0, None), "eta": (eta, None)}
    if free:
        error = float(np.sqrt(((mean - ne0 + eta * x) ** 2).sum() / free))
        wide = float(stats.t.ppf((1 + LEVEL) / 2, free)) * error
        half = wide * np.sqrt(1 / sizes.size + (np.log(shown / base) - x.mean()) ** 2 / spread)
        estimates = {
            "ne0": (ne0, wide * float(np.sqrt(1 / sizes.size + x.mean() ** 2 / spread))),
            "eta": (eta, wide / float(np.sqrt(spread))),
        }
    coefficients = {
        name: Estimate(value, None if w is None else value - w, None if w is None else value + w, int(sizes.size))
        for name, (value, w) in estimates.items()
    }
    residual = float(np.sqrt(((y - ne0 + eta * np.log(c / base)) ** 2).sum() / max(1, c.size - 2)))
    return Fit(
        coefficients, shown.tolist(), middle.tolist(), (middle - half).tolist(), (middle + half).tolist(), residual
    )


def fit_power(flops: Sequence[float], ne: Sequence[float], base: float) -> Fit:
    """``NE = a + b·(C/C₀)^−c`` with b ≥ 0 and c in [0.02, 3]: the law with a floor, a (Hestness et al. 2017).

    For a given c the rest is linear, so only c is searched for.
    """

    def linear(c: Array, y: Array, exponent: float) -> tuple[Array, float]:
        x = (c / base) ** -exponent
        slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()))
        a = float(y.mean() - slope * x.mean())
        return np.array([a, slope, exponent]), float(((y - a - slope * x) ** 2).sum())

    def solve(c: Array, y: Array) -> Array:
        grid = np.geomspace(0.02, 3.0, 25)
        best = int(np.argmin([linear(c, y, float(e))[1] for e in grid]))
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)])
        found = optimize.minimize_scalar(lambda e: linear(c, y, e)[1], bounds=bounds, method="bounded")
        return linear(c, y, float(found.x))[0]

    return _fit(flops, ne, ("a", "b", "c"), solve, lambda p, c: p[0] + p[1] * (c / base) ** -p[2])


def _fit(
    flops: Sequence[float],
    ne: Sequence[float],
    names: tuple[str, ...],
    solve: Callable[[Array, Array], Array],
    curve: Callable[[Array, Array], Array],
) -> Fit:
    c, y = _points(flops, ne, names)
    sizes = np.unique(c)
    parameters = solve(c, y)
    residuals = y - curve(parameters, c)
    free = max(1, c.size - len(names))
    draws = _resampled(c, curve(parameters, c), residuals, solve, len(names))
    shown = np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)
    low, high = np.quantile([curve(p, shown) for p in draws], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    edges = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    coefficients = {
        name: Estimate(float(parameters[i]), float(edges[0, i]), float(edges[1, i]), int(c.size))
        for i, name in enumerate(names)
    }
    spread = float(np.sqrt((residuals**2).sum() / free))
    return Fit(coefficients, shown.tolist(), curve(parameters, shown).tolist(), low.tolist(), high.tolist(), spread)


def _points(flops: Sequence[float], ne: Sequence[float], names: tuple[str, ...]) -> tuple[Array, Array]:
    c, y = np.asarray(flops, dtype=np.float64), np.asarray(ne, dtype=np.float64)
    sizes = np.unique(c).size
    if sizes < len(names) or not (np.isfinite(y).all() and (c > 0).all()):
        raise ValueError(
            f"a fit of {', '.join(names)} needs finite NE at {len(names)} sizes or more, got {sizes} sizes"
        )
    return c, y


def _resampled(
    c: Array, fitted: Array, residuals: Array, solve: Callable[[Array, Array], Array], coefficients: int
) -> Array:
    """(REPEATS, coefficients): fits of the fitted values plus residuals drawn anew: of a size, as a whole, and of the
    seeds within sizes (a bootstrap of both levels; the size's own distance from the law is shared by its seeds)."""
    generator = np.random.default_rng(0)
    sizes, owner = np.unique(c, return_inverse=True)
    counts = np.bincount(owner)
    between = np.bincount(owner, residuals) / counts
    within = (residuals - between[owner]) * np.sqrt(counts[owner] / np.maximum(counts[owner] - 1, 1))
    between = between * np.sqrt(sizes.size / max(1, sizes.size - coefficients))
    return np.stack(
        [
            solve(c, fitted + generator.choice(between, sizes.size)[owner] + generator.choice(within, c.size))
            for _ in range(REPEATS)
        ]
    )


def ratio(value: Estimate, reference: Estimate) -> Estimate:
    """``value / reference`` with its interval by Fieller's theorem (normal errors, independent).

    Where the reference's interval holds 0 the ratio has no bounded interval: low and high are None.
    """
    mean = value.mean / reference.mean if reference.mean else float("nan")
    if value.half_width is None or reference.half_width is None or not reference.is_clear:
        return Estimate(mean, None, None, min(value.count, reference.count))
    a, b, da, db = value.mean, reference.mean, value.half_width, reference.half_width
    denominator = b * b - db * db
    root = np.sqrt(max(0.0, (a * b) ** 2 - (a * a - da * da) * denominator))
    low, high = sorted(((a * b - root) / denominator, (a * b + root) / denominator))
    return Estimate(mean, float(low), float(high), min(value.count, reference.count))
