"""The chart of a scaling law: NE against compute, every run a point, the fitted laws as lines, the oracle as floor."""

from __future__ import annotations

import math

from kunlun.experiments import numbers as n
from kunlun.experiments.matrix_charts import flops_ticks, ne_ticks
from kunlun.experiments.plots import Axis, Mark, Plot, Series, Tick, axis, path, ribbon
from kunlun.experiments.results import Ladder, ScalingPoint, ScalingResult

LOOKS = ("one", "two", "three", "four", "five")


def scaling_plot(result: ScalingResult) -> Plot | None:
    """Solid: the log-linear law with its band; dashed: the power law. None where no run has finished."""
    runs = [(p.flops, ne) for ladder in result.ladders for p in ladder.points for _, ne in _runs(p)]
    if not runs:
        return None
    floor = result.oracle["ne"] if result.oracle else None
    x_axis = axis([flops for flops, _ in runs], log=True)
    y_axis = axis([*(ne for _, ne in runs), *([floor] if floor is not None else [])], flipped=True)
    series = [_series(ladder, LOOKS[i % len(LOOKS)], x_axis, y_axis) for i, ladder in enumerate(result.ladders)]
    return Plot(
        title="NE against FLOPs per sample",
        series=series,
        x_ticks=flops_ticks(x_axis, 4),
        y_ticks=ne_ticks(y_axis, 6),
        x_title="FLOPs per sample",
        y_title="NE",
        height=420,
        floor=None if floor is None else Tick(y_axis.at(floor), f"oracle {n.fixed(floor)}"),
    )


def _runs(point: ScalingPoint) -> list[tuple[int, float]]:
    """(seed, NE) of what finished."""
    found = [(cell.seed, cell.metrics.get("ne", math.nan)) for cell in point.cells if cell.status == "done"]
    return [(seed, ne) for seed, ne in found if math.isfinite(ne)]


def _series(ladder: Ladder, look: str, x_axis: Axis, y_axis: Axis) -> Series:
    marks = [
        Mark(x_axis.at(p.flops), y_axis.at(ne), f"{ladder.model} {p.size}, seed {seed}: NE {n.fixed(ne)}")
        for p in ladder.points
        for seed, ne in _runs(p)
    ]
    line = band = beside = ""
    if ladder.log is not None:
        x = [x_axis.at(c) for c in ladder.log.flops]
        line = path([*zip(x, map(y_axis.at, ladder.log.middle), strict=True)])
        band = ribbon(x, [*map(y_axis.at, ladder.log.low)], [*map(y_axis.at, ladder.log.high)])
    if ladder.power is not None:
        beside = path(
            [(x_axis.at(c), y_axis.at(ne)) for c, ne in zip(ladder.power.flops, ladder.power.middle, strict=True)]
        )
    return Series(ladder.model, look, marks, line, band, beside)
