"""The tables of a scaling law: every size that was trained, and the two laws fitted to each model."""

from __future__ import annotations

import math

from kunlun.experiments import numbers as n
from kunlun.experiments.grid import Column, Grid, Row, trimmed
from kunlun.experiments.published import SCALING_WORDS
from kunlun.experiments.results import ScalingPoint, ScalingResult
from kunlun.experiments.search import words
from kunlun.experiments.statistics import EXPONENTS, Estimate, Fit, interval


def scaling_tables(result: ScalingResult) -> list[Grid]:
    """Every table that the ladders have something for; columns without a value are left out."""
    return trimmed([_points(result), _log(result), _power(result), _search(result), _failures(result)])


def ne_of(point: ScalingPoint) -> Estimate | None:
    """NE over the seeds that finished; None where none did."""
    values = [
        c.metrics["ne"] for c in point.cells if c.status == "done" and math.isfinite(c.metrics.get("ne", math.nan))
    ]
    return interval(values) if values else None


def _points(result: ScalingResult) -> Grid:
    columns = (
        Column("size", number=False),
        Column("FLOPs / sample", "of one forward pass over one sample, a multiply-add counted as 2"),
        Column("dense", "weights outside the embedding tables"),
        Column("embedding", "weights of the embedding tables"),
        Column("NE", f"of the {result.split} split, the mean over seeds with its 95 % interval; lower is better"),
        Column("seeds", "runs that finished, of those planned where some did not", number=False),
        Column("chosen by the search", "every model had the same budget of trials", number=False, wraps=True),
    )
    rows = []
    for ladder in result.ladders:
        for point in ladder.points:
            ne, done = ne_of(point), sum(cell.status == "done" for cell in point.cells)
            cells = [point.size, n.scaled(point.flops)]
            cells += [n.scaled(point.parameters.get("dense")), n.scaled(point.parameters.get("embedding"))]
            cells += [n.NONE if ne is None else n.spread(ne, 4)]
            cells += [str(done) if done == len(point.cells) else f"{done} of {len(point.cells)}"]
            cells += [words(point.chosen)]
            rows.append(Row(tuple(cells), ladder.model))
    note = "An interval is over seeds: another initialisation and another order of the rows."
    if result.oracle:
        note += f" The true probabilities have NE {n.fixed(result.oracle['ne'])}: no model can do better."
    return Grid("points", "Every size", note, columns, tuple(rows))


def _coefficient(fit: Fit, name: str) -> str:
    return n.spread(fit.coefficients[name], 4)


def _log(result: ScalingResult) -> Grid:
    columns = (
        Column("model", number=False),
        Column("η", "how much NE falls when the compute grows e-fold; larger is better"),
        Column(f"η / η of {result.reference}", "scaling efficiency"),
        Column("NE₀", "the NE of the law at C₀"),
        Column("span", "FLOPs of the largest size over those of the smallest"),
        Column("residual", "standard deviation of the runs around the law, in NE"),
    )
    rows = []
    for ladder in result.ladders:
        if ladder.log is None:
            rows.append(Row((ladder.model, "too few sizes", *[n.NONE] * 4)))
            continue
        ratio = result.ratios.get(ladder.model)
        cells = [
            _coefficient(ladder.log, "eta"),
            "1" if ladder.model == result.reference else n.NONE if ratio is None else n.spread(ratio, 2),
        ]
        cells += [_coefficient(ladder.log, "ne0"), f"×{n.significant(ladder.log.flops[-1] / ladder.log.flops[0])}"]
        cells += [n.fixed(ladder.log.residual, 5)]
        rows.append(Row((ladder.model, *cells), strong=ladder.model == result.reference))
    note = (
        f"NE = NE₀ − η · ln(C / C₀), C the FLOPs per sample and C₀ = {n.scaled(result.base)}FLOPs, those of the "
        "smallest point. Intervals are 95 %, from the distance of the sizes' means from the line. "
        f"The paper: {SCALING_WORDS}."
    )
    return Grid("log", "The log-linear law", note, columns, tuple(rows))


def _power(result: ScalingResult) -> Grid:
    columns = (
        Column("model", number=False),
        Column("a", "the NE that no amount of compute goes below"),
        Column("b", "what the smallest size has left to gain"),
        Column("c", "how fast it is gained"),
        Column("residual", "standard deviation of the runs around the law, in NE"),
    )
    rows, ends = [], []
    for ladder in result.ladders:
        if ladder.power is None:
            continue
        if ladder.power.coefficients["b"].mean == 0:
            cells = [n.NONE, "0: NE does not fall", n.NONE]
        else:
            cells = [_coefficient(ladder.power, name) for name in ("a", "b", "c")]
            ends.append(ladder.power.coefficients["c"].mean)
        rows.append(Row((ladder.model, *cells, n.fixed(ladder.power.residual, 5))))
    note = (
        "NE = a + b · (C / C₀)^−c beside it: over a wide range NE cannot fall along a straight line for ever. An "
        "interval is what the sizes' means do not rule out; c is searched from {:g} to {:g}.".format(*EXPONENTS)
    )
    if EXPONENTS[0] in ends:
        note += f" Where c is {EXPONENTS[0]:g} no floor is in sight, and a and b mean little."
    if EXPONENTS[1] in ends:
        note += f" Where c is {EXPONENTS[1]:g} nothing is gained beyond the second size."
    return Grid("power", "The power law", note, columns, tuple(rows))


def _search(result: ScalingResult) -> Grid:
    columns = (
        Column("size", number=False),
        Column("tried", number=False, wraps=True),
        Column("FLOPs / sample"),
        Column("NE on valid", "of one seed, which is not among those that are reported"),
    )
    rows = []
    for ladder in result.ladders:
        chosen = {point.size: point.chosen for point in ladder.points}
        for trial in result.search:
            if trial.model == ladder.model:
                ne = trial.cell.metrics.get("ne")
                told = trial.cell.status if ne is None else n.fixed(ne)
                cells = (trial.size, words(trial.tried), n.scaled(trial.cell.flops), told)
                rows.append(Row(cells, ladder.model, strong=trial.tried == chosen.get(trial.size)))
    note = "Every trial of every size; in bold what was chosen, by NE on valid, and trained again with the seeds."
    return Grid("search", "The search", note, columns, tuple(rows))


def _failures(result: ScalingResult) -> Grid:
    columns = (
        Column("model", number=False),
        Column("size", number=False),
        Column("seed"),
        Column("status", number=False),
        Column("reason", number=False, wraps=True),
    )
    rows = [
        Row((ladder.model, point.size, str(cell.seed), cell.status, cell.reason or "not recorded"))
        for ladder in result.ladders
        for point in ladder.points
        for cell in point.cells
        if cell.status != "done"
    ]
    return Grid("failures", "Runs without a result", "Their sizes rest on fewer seeds.", columns, tuple(rows))
