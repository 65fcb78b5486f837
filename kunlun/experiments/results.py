"""What a finished matrix is: cells, variants, and the JSON that the table, the report and W&B are all made of.

``results.json`` is `MatrixResult` as JSON. Everything shown anywhere is in it, so a report can be drawn again, by
other tools too, without the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from kunlun.experiments.statistics import Estimate, Fit, interval, paired

FORMAT = 1
CHANGES = "+changes"  # after a commit: of files that differed from it
Family = Literal["full", "no", "drop", "baseline", "other"]
Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class CurvePoint:
    """A validation during training: after ``samples`` training samples the valid split had this NE."""

    samples: int
    ne: float


@dataclass(frozen=True)
class CellResult:
    """One variant with one seed. ``metrics`` are of the split that the matrix reports, at the best epoch."""

    seed: int
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    seconds: float | None = None
    flops: float | None = None
    """Forward FLOPs of a sample with histories of the data's mean lengths."""
    parameters: dict[str, int] = field(default_factory=dict)
    """dense and embedding."""
    commit: str | None = None
    """Of the code; it ends in ``+changes`` where files differed from the commit."""
    reason: str | None = None
    """Of a failed cell: the last thing it said."""
    log: str | None = None
    """Of a failed cell: where all it said is, relative to the matrix's folder."""
    name: str | None = None
    """``VARIANT-SEED-HASH``: cells of one name are one training."""


@dataclass(frozen=True)
class VariantResult:
    """A row of the table. ``delta`` is variant − full, paired over seeds; ``ratio`` is variant / full."""

    name: str
    summary: str
    """The comment that heads its configuration file."""
    family: Family
    changes: dict[str, list[Any]]
    """Dotted key → [value in full, value here]; an absent value is null."""
    cells: list[CellResult]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    delta: dict[str, Estimate] = field(default_factory=dict)
    delta_percent: dict[str, Estimate] = field(default_factory=dict)
    """The same in percent of full's mean (NE and log loss)."""
    efficiency: dict[str, Any] | None = None
    """As ``python cli.py benchmark`` writes it; of the round in the middle by training speed."""
    ratio: dict[str, float] = field(default_factory=dict)
    """flops, training_qps, inference_qps, latency_p50, parameters_dense, peak_memory: variant / full, measured in the
    same round."""
    published: str | None = None
    """What the paper reports for this component, in words."""

    def done(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "done"]


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """What the results of every experiment have in common."""

    kind: ClassVar[str]
    title: ClassVar[str]
    name: str
    split: str
    reference: str
    command: list[str]
    created: str
    data: dict[str, Any]
    """name, rows by split, train_rate."""
    oracle: dict[str, float] | None = None
    """ne: of the true probabilities on the labels of the split, in a synthetic world."""
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader must know: cells of several commits, what failed …"""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "kind": self.kind, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def _read(cls, path: Path) -> dict[str, Any]:
        """The fields in a file that `to_json` made; ValueError if it is none, or of another format."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format", None) != FORMAT or raw.pop("kind", None) != cls.kind:
            raise ValueError(f"{path} is no results.json of {cls.title} in format {FORMAT}")
        return raw


@dataclass(frozen=True, kw_only=True)
class MatrixResult(ExperimentResult):
    """A whole matrix."""

    kind = "ablation"
    title = "an ablation matrix"
    variants: list[VariantResult]
    margin: float = 1.0
    """Percent of NE that what saves compute may cost."""
    search: list[Trial] = field(default_factory=list)
    """What every variant was tried with before the seeds; empty: all were trained as configured."""

    def cells(self) -> list[CellResult]:
        """Every training, those of the search too."""
        return [trial.cell for trial in self.search] + [cell for v in self.variants for cell in v.cells]

    def variant(self, name: str) -> VariantResult:
        return next(v for v in self.variants if v.name == name)

    @classmethod
    def load(cls, path: Path) -> MatrixResult:
        """Read ``results.json``; ValueError if it is none or of another format."""
        raw = cls._read(path)
        variants = [_variant(v) for v in raw.pop("variants")]
        search = _search(raw.pop("search", []))
        return cls(**raw, variants=variants, search=search)


def _variant(raw: dict[str, Any]) -> VariantResult:
    for key in ("metrics", "delta", "delta_percent"):
        raw[key] = {name: Estimate(**estimate) for name, estimate in raw[key].items()}
    raw["cells"] = [read_cell(cell) for cell in raw["cells"]]
    return VariantResult(**raw)


Estimates = dict[str, Estimate]


def compare(cells: Sequence[CellResult], reference: Sequence[CellResult]) -> dict[str, Estimates]:
    """``metrics``, ``delta`` and ``delta_percent`` of a VariantResult."""
    own, full = _by_metric(cells), _by_metric(reference)
    delta = {name: d for name, values in own.items() if (d := paired(values, full.get(name, {}))) is not None}
    percent: Estimates = {}
    for name in ("ne", "log_loss"):
        if name in delta:
            base = sum(full[name].values()) / len(full[name])
            percent[name] = scaled(delta[name], 100 / base)
    metrics = {name: interval(list(values.values())) for name, values in own.items()}
    return {"metrics": metrics, "delta": delta, "delta_percent": percent}


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate in other units; ``factor`` > 0."""
    low = None if estimate.low is None else estimate.low * factor
    high = None if estimate.high is None else estimate.high * factor
    return Estimate(estimate.mean * factor, low, high, estimate.count)


def _by_metric(cells: Sequence[CellResult]) -> dict[str, dict[int, float]]:
    """Metric → seed → value, of the cells that are done; a value that is not finite is left out."""
    found: dict[str, dict[int, float]] = {}
    for cell in cells:
        if cell.status == "done":
            for name, value in cell.metrics.items():
                if abs(value) < float("inf"):
                    found.setdefault(name, {})[cell.seed] = value
    return found


def median_efficiency(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One benchmark of a variant: the round in the middle by training speed, so that its numbers belong together."""
    if not rounds:
        return None
    ordered = sorted(rounds, key=lambda r: r["training"]["samples_per_second"])
    return dict(ordered[(len(ordered) - 1) // 2])


@dataclass(frozen=True)
class ScalingPoint:
    """One size of one model: the NE of each seed, and what it costs."""

    size: str
    flops: float
    parameters: dict[str, int]
    """dense and embedding."""
    cells: list[CellResult]
    chosen: dict[str, Any] = field(default_factory=dict)
    """What the search chose: arguments of the model, and dotted keys of the configuration."""


@dataclass(frozen=True)
class Trial:
    """One training of the search for ``size`` of ``model``, in a matrix of a variant; its metrics are of valid."""

    model: str
    size: str
    tried: dict[str, Any]
    """As `ScalingPoint.chosen`."""
    cell: CellResult


@dataclass(frozen=True)
class Ladder:
    """A model over its sizes. ``log`` has the coefficients ne0 and eta, ``power`` a, b and c; None: too few sizes."""

    model: str
    summary: str
    points: list[ScalingPoint]
    log: Fit | None = None
    power: Fit | None = None


@dataclass(frozen=True, kw_only=True)
class ScalingResult(ExperimentResult):
    """Several ladders on one data set. ``ratios``: model → η / η of the reference."""

    kind = "scaling"
    title = "a scaling law"
    ladders: list[Ladder]
    ratios: dict[str, Estimate]
    base: float
    """C₀ of the laws: the fewest FLOPs of any point."""
    search: list[Trial] = field(default_factory=list)
    """What was tried for every size of every model."""

    def cells(self) -> list[CellResult]:
        """Every training, those of the search too."""
        reported = [cell for ladder in self.ladders for point in ladder.points for cell in point.cells]
        return [trial.cell for trial in self.search] + reported

    @classmethod
    def load(cls, path: Path) -> ScalingResult:
        """Read ``results.json``; ValueError if it is none or of another format."""
        raw = cls._read(path)
        ladders = [_ladder(ladder) for ladder in raw.pop("ladders")]
        ratios = {name: Estimate(**estimate) for name, estimate in raw.pop("ratios").items()}
        search = _search(raw.pop("search", []))
        return cls(**raw, ladders=ladders, ratios=ratios, search=search)


def _ladder(raw: dict[str, Any]) -> Ladder:
    for law in ("log", "power"):
        if raw[law] is not None:
            coefficients = {name: Estimate(**e) for name, e in raw[law].pop("coefficients").items()}
            raw[law] = Fit(coefficients=coefficients, **raw[law])
    raw["points"] = [ScalingPoint(**{**p, "cells": [read_cell(cell) for cell in p["cells"]]}) for p in raw["points"]]
    return Ladder(**raw)


def _search(raw: Sequence[dict[str, Any]]) -> list[Trial]:
    return [Trial(**{**trial, "cell": read_cell(trial["cell"])}) for trial in raw]


def read_cell(raw: dict[str, Any]) -> CellResult:
    """A cell from its JSON."""
    return CellResult(**{**raw, "curve": [CurvePoint(**point) for point in raw["curve"]]})
