"""How the tables and the report write numbers: the same everywhere, with a true minus and a stated unit."""

from __future__ import annotations

import math

from kunlun.experiments.statistics import Estimate

NONE = "–"
"""What was not measured."""
IDENTICAL = "identical"


def fixed(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """So many decimals; ``sign`` also before what is positive. What rounds to 0 has no sign."""
    if value is None:
        return NONE
    shown = f"{value:{'+' if sign else ''},.{digits}f}"
    if not shown.strip("+-0.,"):
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def percent(value: float | None, digits: int = 2, sign: bool = True) -> str:
    return NONE if value is None else f"{fixed(value, digits, sign)} %"


def share(value: float | None) -> str:
    """A fraction as a percentage."""
    return NONE if value is None else percent(100 * value, 1, sign=False)


def spread(estimate: Estimate, digits: int, sign: bool = False) -> str:
    """``mean (low … high)``; without an interval, the mean alone."""
    mean = fixed(estimate.mean, digits, sign)
    if estimate.low is None:
        return mean
    high = "∞" if estimate.high is None else fixed(estimate.high, digits, sign)
    return f"{mean} ({fixed(estimate.low, digits, sign)} … {high})"


def change(estimate: Estimate | None, single: int = 2) -> str:
    """A change in percent with its interval, and a third decimal where that is narrow; alone, ``single`` decimals."""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return percent(estimate.mean, single)
    if estimate.low == estimate.mean == estimate.high == 0:
        return IDENTICAL
    digits = decimals(estimate)
    ends = f"{fixed(estimate.low, digits, True)} … {fixed(estimate.high, digits, True)}"
    return f"{percent(estimate.mean, digits)} ({ends})"


def decimals(estimate: Estimate) -> int:
    return 3 if estimate.half_width is not None and estimate.half_width < 0.05 else 2


def significant(value: float | None, digits: int = 3) -> str:
    """So many digits that count, whole from there on; an exponent only below 0.0001."""
    if value is None:
        return NONE
    if value and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    rounded = float(f"{value:.{digits - 1}e}")
    power = math.floor(math.log10(abs(rounded))) if value else 0
    return fixed(value, max(0, digits - 1 - power))


def scaled(value: float | None) -> str:
    """Three digits and a prefix: 12.3 M, 4.56 G."""
    if value is None:
        return NONE
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{significant(value / power)} {prefix}"
    return significant(value)


def brief(value: float) -> str:
    """`scaled` without zeros at its end, for axes."""
    figure, _, prefix = scaled(value).partition(" ")
    figure = figure.rstrip("0").rstrip(".") if "." in figure else figure
    return f"{figure} {prefix}".rstrip()


def size(value: float | None) -> str:
    """Bytes, in powers of 1000."""
    return NONE if value is None else f"{scaled(value)}B" if abs(value) >= 999.5 else f"{scaled(value)} B"


def times(value: float | None) -> str:
    """A ratio to full."""
    return NONE if value is None else f"×{fixed(value, 2)}"
