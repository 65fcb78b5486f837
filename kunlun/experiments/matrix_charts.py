"""The charts of an ablation matrix: differences with intervals, NE against cost, bars of cost, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kunlun.experiments import numbers as n
from kunlun.experiments.costs import Costs
from kunlun.experiments.matrix_tables import FAMILIES, mark, ordered
from kunlun.experiments.plots import (
    Axis,
    Bar,
    Bars,
    Block,
    Mark,
    Plot,
    Series,
    Span,
    Tick,
    axis,
    decimals,
    labelled,
    path,
    ribbon,
)
from kunlun.experiments.results import MatrixResult, VariantResult
from kunlun.experiments.statistics import Estimate

WIDE, NARROW = 720.0, 270.0  # least widths in pixels of a plot on a large screen and on a phone
MOST_POINTS = 60


def forest(result: MatrixResult) -> list[Block]:
    """Δ NE to full by variant; other models, which may be far off, on a scale of their own."""
    others = [v for v in ordered(result) if v.name != result.reference]
    parts = [
        ("Variants of the model", [v for v in others if v.family != "baseline"]),
        ("Other models", [v for v in others if v.family == "baseline"]),
    ]
    return [_block(title, rows) for title, rows in parts if any("ne" in v.delta_percent for v in rows)]


def _block(title: str, variants: Sequence[VariantResult]) -> Block:
    deltas = {v.name: v.delta_percent["ne"] for v in variants if "ne" in v.delta_percent}
    scale = axis([0.0, *(edge for d in deltas.values() for edge in (d.mean, d.low, d.high) if edge is not None)])
    rows = []
    for variant in variants:
        delta = deltas.get(variant.name)
        if delta is None:
            rows.append(Span(variant.name, "no result", "missing", None))
            continue
        low = None if delta.low is None else scale.at(delta.low)
        high = None if delta.high is None else scale.at(delta.high)
        shown = f"{n.change(delta)} {mark(delta)}".rstrip() + (" (one seed)" if delta.low is None else "")
        rows.append(Span(variant.name, shown, tone(delta), scale.at(delta.mean), low, high))
    values = scale.values(4)
    ticks = [Tick(scale.at(v), n.percent(v, decimals(values))) for v in values]
    return Block(title, rows, ticks, scale.at(0.0))


def tone(delta: Estimate) -> str:
    return "unclear" if not delta.is_clear else "worse" if delta.mean > 0 else "better"


@dataclass(frozen=True)
class Scatter:
    """NE against FLOPs, its labels placed for a wide and for a narrow screen; names that found no room are told."""

    title: str
    wide: Plot
    narrow: Plot
    untold: list[list[str]]
    """Of the wide and of the narrow one."""
    families: list[tuple[str, str]]


def scatters(result: MatrixResult) -> list[Scatter]:
    """NE against FLOPs of all that have both; then the model's own variants closer up, if other models are far off."""
    found = [
        (v, costs.flops, v.metrics["ne"].mean)
        for v in ordered(result)
        if (costs := Costs.of(v.efficiency)).flops and "ne" in v.metrics
    ]
    own = [point for point in found if point[0].family != "baseline"]
    parts = [("All", found), *([("Variants of the model alone", own)] if 2 < len(own) < len(found) else [])]
    return [_scatter(title, points) for title, points in parts if len(points) > 1]


def _scatter(heading: str, found: Sequence[tuple[VariantResult, float | None, float]]) -> Scatter:
    x_axis = axis([flops for _, flops, _ in found if flops], log=True)
    y_axis = axis([ne for *_, ne in found], flipped=True)
    plots: list[Plot] = []
    untold: list[list[str]] = []
    for width, height in ((WIDE, 420), (NARROW, 420)):
        marks = [
            Mark(x_axis.at(f or 1), y_axis.at(ne), f"{v.name}: NE {n.fixed(ne)}, {n.scaled(f)}FLOPs")
            for v, f, ne in found
        ]
        marks = labelled(marks, [v.name for v, *_ in found], width, height)
        untold.append([v.name for (v, *_), m in zip(found, marks, strict=True) if not m.label])
        series = [
            Series(title, family, [m for (v, *_), m in zip(found, marks, strict=True) if v.family == family])
            for family, title in reversed(FAMILIES.items())  # full is drawn last, on top
        ]
        ticks = (flops_ticks(x_axis, 6 if width == WIDE else 3), ne_ticks(y_axis, 6))
        title = f"NE against FLOPs of {len(found)} variants"
        plots.append(Plot(title, [s for s in series if s.marks], *ticks, "FLOPs per sample", "NE", height))
    families = [(s.look, s.name) for s in reversed(plots[0].series)]
    return Scatter(heading, plots[0], plots[1], untold, families)


def flops_ticks(scale: Axis, wanted: int) -> list[Tick]:
    return [Tick(scale.at(v), n.brief(v)) for v in scale.values(wanted)]


def ne_ticks(scale: Axis, wanted: int) -> list[Tick]:
    values = scale.values(wanted)
    return [Tick(scale.at(v), n.fixed(v, decimals(values))) for v in values]


def cost_bars(result: MatrixResult) -> list[Bars]:
    """One chart for each cost that was measured, full first and marked by a line."""
    kinds: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("Training speed (samples / s)", "training_qps", n.scaled),
        ("Inference speed (samples / s)", "inference_qps", n.scaled),
        ("Inference latency, p50 (ms)", "latency_p50", n.significant),
        ("Peak memory in training", "peak_memory", n.size),
        ("FLOPs per sample", "flops", n.scaled),
        ("MFU in training", "mfu", n.share),
    ]
    charts = []
    for title, key, shown in kinds:
        values = {v.name: getattr(Costs.of(v.efficiency), key) for v in ordered(result)}
        most = max((value for value in values.values() if value is not None), default=0.0)
        if most <= 0:
            continue
        rows = [
            Bar(name, shown(value), round(100 * value / most, 2), name == result.reference)
            for name, value in values.items()
            if value is not None
        ]
        charts.append(Bars(title, rows, next((bar.length for bar in rows if bar.strong), None)))
    return charts


@dataclass(frozen=True)
class Share:
    """A part of a model: ``length`` is relative to the longest of all."""

    text: str
    length: float


@dataclass(frozen=True)
class Components:
    """FLOPs per sample of each part of each variant, the parts by full's order of size."""

    parts: list[str]
    rows: list[tuple[str, list[Share | None]]]


def components(result: MatrixResult) -> Components | None:
    """None where no benchmark counted FLOPs by part."""
    found = {v.name: dict(c) for v in ordered(result) if (c := Costs.of(v.efficiency).components)}
    if not found:
        return None
    first = found.get(result.reference) or next(iter(found.values()))
    parts = sorted({part for c in found.values() for part in c}, key=lambda part: (-first.get(part, 0.0), part))
    most = max(value for c in found.values() for value in c.values()) or 1.0
    rows = []
    for name, c in found.items():
        shares = [Share(n.scaled(c[p]), round(100 * c[p] / most, 1)) if p in c else None for p in parts]
        rows.append((name, shares))
    return Components(parts, rows)


Curve = list[tuple[int, float, float, float]]
"""(samples, mean, least, most) over the seeds."""


def curves(result: MatrixResult) -> list[tuple[str, list[Plot]]]:
    """Learning curves by family: each variant beside full; a family has one pair of axes."""
    found = {v.name: (v, _curve(v)) for v in ordered(result)}
    own = found.get(result.reference, (None, []))[1]
    panels: list[tuple[str, list[Plot]]] = []
    for family, title in FAMILIES.items():
        mine = {name: c for name, (v, c) in found.items() if v.family == family and name != result.reference and c}
        if mine:
            panels.append((title, _panels(mine, own)))
    return panels or ([(FAMILIES["full"], _panels({result.reference: own}, []))] if own else [])


def _curve(variant: VariantResult) -> Curve:
    """Mean and range over the seeds at the points that all of them have, thinned."""
    by_seed = [{p.samples: p.ne for p in cell.curve if math.isfinite(p.ne)} for cell in variant.done() if cell.curve]
    if not by_seed:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in by_seed)))
    values = [(s, [curve[s] for curve in by_seed]) for s in common[:: max(1, -(-len(common) // MOST_POINTS))]]
    return [(s, sum(v) / len(v), min(v), max(v)) for s, v in values]


def _panels(mine: dict[str, Curve], full: Curve) -> list[Plot]:
    shown = [*mine.values(), *([full] if full else [])]
    x_axis = axis([0, *(samples for curve in shown for samples, *_ in curve)], room=0.0)
    # The first validations, far above the rest, would press the ends together: they may leave the panel at its top.
    late = [edge for curve in shown for _, _, *edges in curve[len(curve) // 3 :] for edge in edges]
    y_axis = axis(late, flipped=True)
    ticks = ([Tick(x_axis.at(v), n.brief(v)) for v in x_axis.values(3)], ne_ticks(y_axis, 3))
    plots = []
    for name, curve in mine.items():
        series = [_drawn("full", "muted", full, x_axis, y_axis)] if full else []
        plots.append(Plot(name, [*series, _drawn(name, "own", curve, x_axis, y_axis)], *ticks, height=130))
    return plots


def _drawn(name: str, look: str, curve: Curve, x_axis: Axis, y_axis: Axis) -> Series:
    x = [x_axis.at(samples) for samples, *_ in curve]
    middle, low, high = ([y_axis.at(point[i]) for point in curve] for i in (1, 2, 3))
    return Series(name, look, line=path([*zip(x, middle, strict=True)]), band=ribbon(x, low, high))
