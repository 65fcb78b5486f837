"""Intervals of paired differences, and the two forms of a scaling law fitted with intervals.

Legend: S seeds · P points of a ladder (one per size and seed) · C FLOPs per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval; ``low`` and ``high`` are None where one value gives no interval, and
    ``high`` alone where the interval has no upper end."""

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


CURVE_POINTS = 50
EXPONENTS = (0.02, 3.0)
"""What the exponent of a power law is searched between."""


@dataclass(frozen=True)
class _Lines:
    """Least squares of the means of S sizes on each of E sets of places x: ``floor + slope·x``. All are (E,)."""

    sizes: int
    centre: Array
    """Mean of x."""
    spread: Array
    """Sum of (x − centre)²."""
    slope: Array
    floor: Array
    left: Array
    """Sum of squares between the means and the line."""

    @classmethod
    def through(cls, x: Array, mean: Array) -> _Lines:
        """``x`` (E, S), ``mean`` (S,)."""
        centre, level = x.mean(1), mean.mean()
        apart = x - centre[:, None]
        spread = (apart**2).sum(1)
        slope = (apart * (mean - level)).sum(1) / spread
        left = ((mean - level - slope[:, None] * apart) ** 2).sum(1)
        return cls(mean.size, centre, spread, slope, level - slope * centre, left)

    def variance(self, x: Array | float) -> Array:
        """Of the line at ``x``, (…, E), in units of the means' own."""
        return 1 / self.sizes + (x - self.centre) ** 2 / self.spread


def fit_log(flops: Sequence[float], ne: Sequence[float], base: float) -> Fit:
    """``NE = NE₀ − η·log(C/C₀)``, natural logarithm, C₀ = ``base``; P points, seeds beside one another (Kunlun).

    Least squares on the mean of each size, with Student's intervals of as many degrees of freedom as sizes leave:
    seeds of one size share its distance from the law, so they are not independent points. Two sizes have no interval.
    """
    c, y = _points(flops, ne, ("ne0", "eta"))
    sizes, mean = _of_sizes(c, y)
    line = _Lines.through(np.log(sizes / base)[None], mean)
    eta, ne0 = -float(line.slope[0]), float(line.floor[0])
    shown = np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)
    middle = ne0 - eta * np.log(shown / base)
    free = sizes.size - 2
    half = np.zeros_like(shown)
    estimates: dict[str, tuple[float, float | None]] = {"ne0": (ne0, None), "eta": (eta, None)}
    if free:
        wide = float(stats.t.ppf((1 + LEVEL) / 2, free) * np.sqrt(line.left[0] / free))
        half = wide * np.sqrt(line.variance(np.log(shown / base)))
        estimates = {
            "ne0": (ne0, wide * float(np.sqrt(line.variance(0.0)[0]))),
            "eta": (eta, wide / float(np.sqrt(line.spread[0]))),
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
    """``NE = a + b·(C/C₀)^−c`` with b ≥ 0 and c in `EXPONENTS`: the law with a floor, a (Hestness et al. 2017).

    Least squares on the mean of each size, as in `fit_log`. For a given c the law is linear in a and b, so only c is
    searched for. An interval holds every value with which the law, the rest fitted anew, is not significantly farther
    from the means (profile likelihood with Fisher's F): where c is hardly known, a is hardly known. Three sizes have
    no interval.
    """
    c, y = _points(flops, ne, ("a", "b", "c"))
    sizes, mean = _of_sizes(c, y)
    flat = float(((mean - mean.mean()) ** 2).sum())

    def lines(exponents: Array) -> _Lines:
        return _Lines.through((sizes / base) ** -exponents[:, None], mean)

    def left(exponents: Array) -> Array:
        """Squares left with b ≥ 0."""
        found = lines(exponents)
        return np.where(found.slope > 0, found.left, flat)

    grid = np.geomspace(*EXPONENTS, 1_000)
    on_grid = left(grid)
    nearest = int(np.argmin(on_grid))
    bounds = (grid[max(nearest - 1, 0)], grid[min(nearest + 1, grid.size - 1)])
    found = optimize.minimize_scalar(lambda e: left(np.array([e]))[0], bounds=bounds, method="bounded")
    # At an end of the grid the bounded search stops just before it.
    exponent = float(found.x) if found.fun < on_grid[nearest] else float(grid[nearest])
    best = lines(np.array([exponent]))
    b = max(0.0, float(best.slope[0]))
    a = float(mean.mean() - b * best.centre[0])

    shown = np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)
    middle = low = high = a + b * (shown / base) ** -exponent
    edges: dict[str, tuple[float | None, float | None]] = dict.fromkeys("abc", (None, None))
    free = sizes.size - 3
    if free:
        least = float(left(np.array([exponent]))[0])
        allowed = least * (1 + float(stats.f.ppf(LEVEL, 1, free)) / free)
        every = np.append(grid, exponent)
        possible = every[lines(every).left <= allowed]
        near = lines(possible)
        room = np.sqrt(allowed - near.left)

        def reach(value: Array, variance: Array) -> tuple[Array, Array]:
            """The ends, over the exponents, of what is estimated as ``value`` with a variance of ``variance``·σ²."""
            half = np.sqrt(variance) * room
            return (value - half).min(-1), (value + half).max(-1)

        x = (shown[:, None] / base) ** -possible
        low, high = reach(near.floor + near.slope * x, near.variance(x))
        ends = {
            "a": reach(near.floor, near.variance(0.0)),
            "b": np.maximum(reach(near.slope, 1 / near.spread), 0.0),
            "c": (possible.min(), possible.max()),
        }
        edges = {name: (float(lowest), float(highest)) for name, (lowest, highest) in ends.items()}
    values = {"a": a, "b": b, "c": exponent}
    coefficients = {name: Estimate(value, *edges[name], int(sizes.size)) for name, value in values.items()}
    residual = float(np.sqrt(((y - a - b * (c / base) ** -exponent) ** 2).sum() / max(1, c.size - 3)))
    return Fit(coefficients, shown.tolist(), middle.tolist(), low.tolist(), high.tolist(), residual)


def _of_sizes(c: Array, y: Array) -> tuple[Array, Array]:
    """The sizes, ascending, and the mean of each."""
    sizes, owner = np.unique(c, return_inverse=True)
    return sizes, np.bincount(owner, y) / np.bincount(owner)


def _points(flops: Sequence[float], ne: Sequence[float], names: tuple[str, ...]) -> tuple[Array, Array]:
    c, y = np.asarray(flops, dtype=np.float64), np.asarray(ne, dtype=np.float64)
    sizes = np.unique(c).size
    if sizes < len(names) or not (np.isfinite(y).all() and (c > 0).all()):
        raise ValueError(
            f"a fit of {', '.join(names)} needs finite NE at {len(names)} sizes or more, got {sizes} sizes"
        )
    return c, y


def ratio(value: Estimate, reference: Estimate) -> Estimate:
    """``value / reference`` with its interval by Fieller's theorem (normal errors, independent); ``reference`` is taken
    not to be below 0, and its mean must be above.

    Where the reference's interval holds 0 the ratio has no upper end: high is None, and low too unless ``value`` is
    clearly above 0.
    """
    if not reference.mean > 0:
        raise ValueError(f"a ratio needs a reference above 0, got {reference.mean}")
    mean, count = value.mean / reference.mean, min(value.count, reference.count)
    if value.half_width is None or reference.half_width is None:
        return Estimate(mean, None, None, count)
    a, b, da, db = value.mean, reference.mean, value.half_width, reference.half_width
    denominator = b * b - db * db
    root = np.sqrt(max(0.0, (a * b) ** 2 - (a * a - da * da) * denominator))
    if denominator > 0:
        low, high = sorted(((a * b - root) / denominator, (a * b + root) / denominator))
        return Estimate(mean, float(low), float(high), count)
    # What Fieller does not rule out lies outside the two roots, of which one is below 0.
    at_least = float((a * b - root) / denominator) if a > da and denominator else None
    return Estimate(mean, at_least, None, count)
