"""Results as one HTML page that needs nothing else: sentences, charts, tables, and how it all was run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kunlun.experiments import numbers as n
from kunlun.experiments.findings import Findings, findings
from kunlun.experiments.grid import Grid
from kunlun.experiments.matrix_charts import Components, Scatter, components, cost_bars, curves, forest, scatters
from kunlun.experiments.matrix_tables import FAMILIES, ordered
from kunlun.experiments.plots import Bars, Block, Plot
from kunlun.experiments.results import MatrixResult, ScalingResult
from kunlun.experiments.scaling_charts import scaling_plot
from kunlun.experiments.table import tables

TEMPLATE = "report.html.j2"
FEW_CHANGES = 6  # of a configuration; more than these are folded


@dataclass(frozen=True)
class Changes:
    """How a variant's configuration differs: (key, in full, here)."""

    name: str
    summary: str
    family: str
    shown: list[tuple[str, str, str]]
    folded: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Part:
    """One result with all that the page shows of it; what it has not is empty and left out."""

    key: str
    found: Findings
    run: list[tuple[str, str]]
    notes: list[str]
    tables: dict[str, Grid]
    forest: list[Block] = field(default_factory=list)
    scatters: list[Scatter] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    components: Components | None = None
    curves: list[tuple[str, list[Plot]]] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    scaling: Plot | None = None


def write_report(results: Sequence[MatrixResult | ScalingResult], path: Path) -> None:
    """Write the page of ``results`` to ``path``; its folder must exist."""
    path.write_text(report(results), encoding="utf-8")


def report(results: Sequence[MatrixResult | ScalingResult]) -> str:
    """The whole page. All text of names and messages is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    environment.filters["wbr"] = _breakable
    parts = [_part(result, f"r{i + 1}") for i, result in enumerate(results)]
    return environment.get_template(TEMPLATE).render(parts=parts)


def _unbroken(value: Any) -> Any:
    """A figure and its percent sign stay on one line."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value


def _breakable(name: str) -> Markup:
    """A name that may be broken after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _part(result: MatrixResult | ScalingResult, key: str) -> Part:
    found, grids = findings(result), {grid.key: grid for grid in tables(result)}
    if isinstance(result, ScalingResult):
        return Part(key, found, _run(result), result.notes, grids, scaling=scaling_plot(result))
    return Part(
        key=key,
        found=found,
        run=_run(result),
        notes=result.notes,
        tables=grids,
        forest=forest(result),
        scatters=scatters(result),
        bars=cost_bars(result),
        components=components(result),
        curves=curves(result),
        changes=_changes(result),
    )


def _run(result: MatrixResult | ScalingResult) -> list[tuple[str, str]]:
    """How it was run, as (what, how)."""
    cells = result.cells()
    commits = sorted({cell.commit for cell in cells if cell.commit})
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    facts = [
        ("Command", shlex.join(result.command)),
        ("Created", result.created),
        ("Data", ", ".join(f"{name} {_plain(value)}" for name, value in result.data.items())),
        ("Device", result.device or ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ("Commit", ", ".join(commits)),
        ("Runs", f"{sum(cell.status == 'done' for cell in cells)} finished, of {len(cells)}"),
        ("Time of the runs", f"{n.significant(sum(seconds) / 3600)} hours together" if seconds else ""),
    ]
    return [(what, how) for what, how in facts if how]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_plain(inner)}' for key, inner in value.items())})"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _changes(result: MatrixResult) -> list[Changes]:
    found = []
    for variant in ordered(result):
        changes = [(key, *(_value(side) for side in sides)) for key, sides in variant.changes.items()]
        pairs = [(key, full, here) for key, full, here in changes]
        family = FAMILIES[variant.family]
        found.append(Changes(variant.name, variant.summary, family, pairs[:FEW_CHANGES], pairs[FEW_CHANGES:]))
    return found


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
