"""The tables of an ablation matrix: quality, size and compute, speed, the paper beside ours, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kunlun.experiments import numbers as n
from kunlun.experiments.costs import Costs
from kunlun.experiments.grid import Column, Grid, Row, trimmed
from kunlun.experiments.published import PUBLISHED, UTILISATION_WORDS, ours
from kunlun.experiments.results import CellResult, Family, MatrixResult, VariantResult
from kunlun.experiments.search import words
from kunlun.experiments.statistics import Estimate

FAMILIES: dict[Family, str] = {
    "full": "The full model",
    "no": "A component replaced by what the paper compares it with",
    "drop": "An ability taken away",
    "baseline": "Other models",
    "other": "Other variants",
}
WORSE, BETTER = "▲", "▼"
_VARIANT = Column("variant", number=False)


def matrix_tables(result: MatrixResult) -> list[Grid]:
    """Every table that the matrix has something for; columns without a value are left out."""
    rows = ordered(result)
    return trimmed(
        [
            _quality(result, rows),
            _learnt(rows),
            _size(rows),
            _speed(result, rows),
            _published(rows),
            _search(result, rows),
            _failures(rows),
        ]
    )


def ordered(result: MatrixResult) -> list[VariantResult]:
    """The variants by family, the reference before all."""
    families = list(FAMILIES)
    return sorted(result.variants, key=lambda v: (v.name != result.reference, families.index(v.family)))


def mark(estimate: Estimate | None) -> str:
    """Of a change in NE: whether the interval leaves 0 out, and on which side."""
    return "" if estimate is None or not estimate.is_clear else WORSE if estimate.mean > 0 else BETTER


def seeds(variant: VariantResult) -> str:
    """``5``, or ``3 of 5; 1 failed, 1 missing``."""
    done, planned = len(variant.done()), len(variant.cells)
    if done == planned:
        return str(done)
    counts = ((s, sum(cell.status == s for cell in variant.cells)) for s in ("failed", "missing"))
    return f"{done} of {planned}; {', '.join(f'{count} {status}' for status, count in counts if count)}"


def _mean(variant: VariantResult, metric: str) -> float | None:
    return variant.metrics[metric].mean if metric in variant.metrics else None


def _row(variant: VariantResult, cells: Sequence[str]) -> Row:
    return Row((variant.name, *cells), FAMILIES[variant.family], variant.family == "full")


def _delta(variant: VariantResult, reference: str) -> str:
    if variant.name == reference:
        return n.NONE
    delta = variant.delta_percent.get("ne")
    if delta is not None and delta.low is None:
        return f"{n.change(delta)} (one seed)"
    return f"{n.change(delta)} {mark(delta)}".rstrip()


def _quality(result: MatrixResult, variants: Sequence[VariantResult]) -> Grid:
    columns = (
        _VARIANT,
        Column("NE", "normalised entropy, the mean over seeds; lower is better, 1 is no better than the click rate"),
        Column(
            "Δ NE to full",
            "change of NE with its 95 % interval, seed by seed against the full model with the same seed; "
            f"{WORSE} worse, {BETTER} better, where the interval leaves 0 out; no mark: cannot be told apart",
        ),
        Column("AUC", "share of (click, no click) pairs in the right order"),
        Column("GAUC", "the same within each user, weighted by impressions"),
        Column("calibration", "predicted clicks / clicks; 1 is right"),
        Column("of oracle's gain", "how much of the way from the click rate to the true probabilities"),
        Column("seeds", "runs that finished, of those planned where some did not", number=False),
    )
    rows = []
    for variant in variants:
        cells = [n.fixed(_mean(variant, "ne")), _delta(variant, result.reference)]
        cells += [n.fixed(_mean(variant, "auc")), n.fixed(_mean(variant, "gauc"))]
        cells += [n.fixed(_mean(variant, "calibration"), 3), n.share(_mean(variant, "oracle_share"))]
        rows.append(_row(variant, [*cells, seeds(variant)]))
    note = (
        f"Of the {result.split} split. An interval is over seeds: another initialisation and another order of rows. "
        "It says nothing about other test rows or another data set."
    )
    if result.oracle:
        note += f" The true probabilities have NE {n.fixed(result.oracle['ne'])}: no model can do better."
    return Grid("quality", "Quality", note, columns, tuple(rows))


def _learnt(variants: Sequence[VariantResult]) -> Grid:
    """Of data whose click probability is a known sum of parts: how much of each a variant has found."""
    prefix = "learnt/"
    parts = list(dict.fromkeys(m for variant in variants for m in variant.metrics if m.startswith(prefix)))
    columns = (_VARIANT, *(Column(part.removeprefix(prefix)) for part in parts))
    rows = [_row(variant, [n.fixed(_mean(variant, part), 2) for part in parts]) for variant in variants]
    note = (
        "The slope of a model's log-odds on each part of the true log-odds, all other parts given, over the true one; "
        "the mean over seeds. 1: the part counts as much as it should; 0: the model knows nothing of it."
    )
    return Grid("learnt", "What was learnt of each part", note, columns, tuple(rows))


def _size(variants: Sequence[VariantResult]) -> Grid:
    columns = (
        _VARIANT,
        Column("FLOPs / sample", "of one forward pass over one sample, a multiply-add counted as 2"),
        Column("× full", "the column before, divided by full's"),
        Column("dense parameters", "all weights but the embedding tables"),
        Column("× full"),
        Column("embedding parameters", "weights of the embedding tables"),
        Column("peak memory", "the most memory that a training step held on the device"),
        Column("× full"),
    )
    rows = []
    for variant in variants:
        costs, ratio = Costs.of(variant.efficiency), variant.ratio
        cells = [n.scaled(costs.flops), n.times(ratio.get("flops"))]
        cells += [n.scaled(costs.parameters_dense), n.times(ratio.get("parameters_dense"))]
        cells += [n.scaled(costs.parameters_embedding), n.size(costs.peak_memory), n.times(ratio.get("peak_memory"))]
        rows.append(_row(variant, cells))
    return Grid("size", "Size and compute", "", columns, tuple(rows))


def _speed(result: MatrixResult, variants: Sequence[VariantResult]) -> Grid:
    columns = (
        _VARIANT,
        Column("training QPS", "samples trained on per second, reading left out"),
        Column("× full", "the column before, divided by full's in the same round"),
        Column("MFU", "model FLOPs utilisation in training: 3 × forward FLOPs × QPS / the device's peak"),
        Column("inference QPS", "samples scored per second"),
        Column("× full"),
        Column("p50 (ms)", "latency of a scoring call: half of the calls are faster"),
        Column("× full"),
        Column("p99 (ms)", "99 of 100 calls are faster"),
    )
    rows = []
    for variant in variants:
        costs, ratio = Costs.of(variant.efficiency), variant.ratio
        cells = [n.scaled(costs.training_qps), n.times(ratio.get("training_qps")), n.share(costs.mfu)]
        cells += [n.scaled(costs.inference_qps), n.times(ratio.get("inference_qps"))]
        cells += [n.significant(costs.latency_p50), n.times(ratio.get("latency_p50")), n.significant(costs.latency_p99)]
        rows.append(_row(variant, cells))
    note = (
        "Measured apart from quality, on warmed-up steps of a few fixed batches. Figures are of the round in the "
        "middle by training speed, ratios are medians over rounds."
    )
    peaks = (v.efficiency.get("peak_source") for v in variants if v.name == result.reference and v.efficiency)
    peak = next(peaks, None)
    note += f" The peak that MFU is against: {peak}." if peak else ""
    return Grid("speed", "Speed", note, columns, tuple(rows))


def _published(variants: Sequence[VariantResult]) -> Grid:
    columns = (
        Column("quantity", "and the direction in which the paper reports it", number=False),
        Column("paper", "Meta's private data, B200"),
        Column(
            "ours, same direction", "our numbers turned into the paper's direction; added: (with − without) / without"
        ),
        Column("ours, removed", "as in all other tables, (without − full) / full"),
    )
    rows: list[Row] = []
    for variant in variants:
        published = PUBLISHED.get(variant.name)
        words = variant.published or (published.words if published else "")
        heading = f"{variant.name}: {words}"
        if published is None and words:
            rows.append(Row(("in words only", n.NONE, n.NONE, n.NONE), heading))
        for figure in published.figures if published else ():
            paper = "neutral" if figure.percent == 0 else n.percent(figure.percent, 2 if figure.quantity == "NE" else 1)
            removed = replace(figure, direction="removed")
            cells = (
                figure.title,
                paper,
                *(n.change(ours(f, variant), 2 if f.quantity == "NE" else 1) for f in (figure, removed)),
            )
            rows.append(Row(cells, heading))
    note = (
        "The paper mixes “when added” with “when removed”; ours are shown both ways. Another model size, another data "
        f"set, other hardware: the signs are to be compared rather than the digits. In the paper, {UTILISATION_WORDS}."
    )
    return Grid("published", "Beside the paper", note, columns, tuple(rows))


def _search(result: MatrixResult, variants: Sequence[VariantResult]) -> Grid:
    tried = list(dict.fromkeys(words(trial.tried) for trial in result.search))
    columns = (
        _VARIANT,
        Column("chosen", "what had the lowest NE; the seeds were trained with it", number=False),
        *(Column(name) for name in tried),
    )
    rows = []
    for variant in variants:
        found = {
            words(trial.tried): trial.cell.metrics["ne"]
            for trial in result.search
            if trial.model == variant.name and trial.cell.status == "done"
        }
        best = min(found, key=lambda name: found[name]) if found else n.NONE
        rows.append(_row(variant, [best, *(n.fixed(found.get(name)) for name in tried)]))
    note = "NE of valid. Every variant was tried with the same, once each, with a seed that is not reported."
    return Grid("search", "The search", note, columns, tuple(rows))


def _failures(variants: Sequence[VariantResult]) -> Grid:
    columns = (
        _VARIANT,
        Column("seeds", number=False),
        Column("status", number=False),
        Column("reason", number=False, wraps=True),
        Column("log", number=False, wraps=True),
    )
    rows = []
    for variant in variants:
        alike: dict[tuple[str, str], list[CellResult]] = {}
        for cell in variant.cells:
            if cell.status != "done":
                alike.setdefault((cell.status, _reason(cell)), []).append(cell)
        for (status, reason), cells in alike.items():
            logs = ", ".join(cell.log for cell in cells if cell.log)
            rows.append(Row((variant.name, ", ".join(str(cell.seed) for cell in cells), status, reason, logs)))
    return Grid("failures", "Runs without a result", "Their variants rest on fewer seeds.", columns, tuple(rows))


def _reason(cell: CellResult) -> str:
    if cell.reason:
        return cell.reason
    return "not run" if cell.status == "missing" else "no reason was recorded"
