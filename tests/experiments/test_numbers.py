"""Numbers are written so that none reads as another."""

from __future__ import annotations

import pytest

from kunlun.experiments import numbers as n
from kunlun.experiments.statistics import Estimate


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (n.fixed(-0.00001, 4), "0.0000"),
        (n.fixed(0.00001, 4, sign=True), "0.0000"),
        (n.fixed(-1.5, 1, sign=True), "−1.5"),
        (n.fixed(None), n.NONE),
        (n.percent(0.129), "+0.13 %"),
        (n.share(0.2134), "21.3 %"),
        (n.significant(0), "0.00"),
        (n.significant(0.0012345), "0.00123"),
        (n.significant(0.5), "0.500"),
        (n.significant(12.345), "12.3"),
        (n.significant(123456), "123,456"),
        (n.significant(2.5e-6), "2.50e−06"),
        (n.scaled(999.9e3), "1.00 M"),
        (n.scaled(1234), "1.23 k"),
        (n.scaled(41.3e9), "41.3 G"),
        (n.brief(3e6), "3 M"),
        (n.brief(100e6), "100 M"),
        (n.brief(0), "0"),
        (n.size(1.93e9), "1.93 GB"),
        (n.size(512), "512 B"),
        (n.times(0.857), "×0.86"),
        (n.change(None), n.NONE),
        (n.change(Estimate(0.5, None, None, 1)), "+0.50 %"),
        (n.change(Estimate(0.5, 0.4, 0.6, 3)), "+0.50 % (+0.40 … +0.60)"),
        (n.change(Estimate(0.012, 0.004, 0.02, 3)), "+0.012 % (+0.004 … +0.020)"),
        (n.change(Estimate(0.0, 0.0, 0.0, 3)), n.IDENTICAL),
        (n.spread(Estimate(0.81234, 0.8, 0.82, 3), 3), "0.812 (0.800 … 0.820)"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected
