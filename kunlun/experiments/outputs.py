"""From an experiment's folder to what people read: results.json, table.md, report.html, and a run in W&B."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kunlun.configuration import shown
from kunlun.experiments.cells import Cell, last_line, restore, write_whole
from kunlun.experiments.costs import Costs
from kunlun.experiments.matrix import Matrix, Variant, changes
from kunlun.experiments.options import ExperimentOptions
from kunlun.experiments.published import PUBLISHED
from kunlun.experiments.results import (
    CHANGES,
    CellResult,
    MatrixResult,
    ScalingResult,
    Trial,
    VariantResult,
    compare,
    median_efficiency,
)
from kunlun.experiments.search import lost, trials_of
from kunlun.experiments.sweep import sweep
from kunlun.training import runs


def cells_of(matrix: Matrix) -> list[Cell]:
    """Seed by seed, so that a matrix that is not yet whole compares all variants on the same seeds."""
    o = matrix.options
    folder = o.folder.absolute()
    return [Cell(variant, seed, o.split, o.name, folder) for seed in o.seed_list for variant in matrix.variants]


def efficiency_path(matrix: Matrix, variant: Variant, number: int) -> Path:
    """The benchmark of ``variant`` in round ``number``."""
    given = [matrix.options.peak_flops] if matrix.options.peak_flops else []
    return matrix.options.folder / "efficiency" / f"{variant.name}-{variant.key(*given)}-{number}.json"


Result = TypeVar("Result", MatrixResult, ScalingResult)


def earlier(folder: Path, kind: type[Result]) -> Result | None:
    """What ``results.json`` of the folder says, if there is one. All that is done in it is kept as cells of the folder,
    asked for now or not: the file is about to be written anew."""
    path = folder / "results.json"
    try:
        result = kind.load(path)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        print(f"{shown(path)} is not read: {error}", flush=True)
        return None
    kept = restore(folder, result.cells())
    if kept:
        print(f"{kept} cells are known from {shown(path)}", flush=True)
    return result


def collect(matrix: Matrix, command: Sequence[str], before: MatrixResult | None = None) -> MatrixResult:
    """All that the folder holds of this matrix; ``before`` is what it said when the command began."""
    planned = cells_of(matrix)
    cells: dict[str, list[CellResult]] = {variant.name: [] for variant in matrix.variants}
    for cell in planned:
        cells[cell.variant.name].append(cell.read())
    reference = matrix.reference
    rounds = {variant.name: _rounds(matrix, variant) for variant in matrix.variants}
    variants = []
    for variant in matrix.variants:
        own = rounds[variant.name]
        compared = compare(cells[variant.name], cells[reference.name])
        efficiency, ratio = median_efficiency(list(own.values())), ratios(own, rounds[reference.name])
        if not matrix.options.rounds and before is not None:
            efficiency, ratio = _known_costs(before, cells[variant.name], cells[reference.name])
        if not efficiency:  # never measured: what a fit can count of itself
            efficiency, full = _counted(cells[variant.name]), _counted(cells[reference.name])
            ratio = ratios({0: efficiency}, {0: full}) if efficiency and full else {}
        variants.append(
            VariantResult(
                name=variant.name,
                summary=variant.summary,
                family="full" if variant is reference else variant.family,
                changes=changes(variant.values, reference.values),
                cells=cells[variant.name],
                metrics=compared["metrics"],
                delta=compared["delta"],
                delta_percent=compared["delta_percent"],
                efficiency=efficiency,
                ratio=ratio,
                published=published.words if (published := PUBLISHED.get(variant.name)) else None,
            )
        )
    trials = trials_of(matrix.options, matrix.candidates)
    return MatrixResult(
        **about(matrix.options, command, planned, before),
        reference=reference.name,
        variants=variants,
        margin=matrix.options.margin,
        search=trials,
        oracle=oracle_of(cells[reference.name]),
        device=(variants[0].efficiency or {}).get("device"),
        notes=notes(cells) + _lost(matrix, trials) + _unmeasured(matrix, rounds),
    )


def _lost(matrix: Matrix, trials: Sequence[Trial]) -> list[str]:
    names = [variant.name for variant in matrix.variants]
    return [told for name in names for told in lost(name, [trial for trial in trials if trial.model == name])]


def _known_costs(
    before: MatrixResult, own: Sequence[CellResult], reference: Sequence[CellResult]
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Efficiency and ratios that an earlier command measured of the same two configurations."""
    known = {cell.name: variant for variant in before.variants for cell in variant.cells}
    variant, full = (next((known[c.name] for c in cells if c.name in known), None) for cells in (own, reference))
    if variant is None or full is None or full.name != before.reference:
        return None, {}
    return variant.efficiency, variant.ratio


def _counted(cells: Sequence[CellResult]) -> dict[str, Any] | None:
    """FLOPs and parameters of a variant, as a benchmark has them; None where no cell knows them."""
    known = next((cell for cell in cells if cell.status == "done" and cell.flops is not None), None)
    return {"flops_per_sample": known.flops, "parameters": known.parameters} if known else None


def _unmeasured(matrix: Matrix, rounds: Mapping[str, Mapping[int, Any]]) -> list[str]:
    if not matrix.options.rounds:
        return []
    told = [
        f"The efficiency of {variant.name} is missing in a round or more{_why_unmeasured(matrix, variant)}."
        for variant in matrix.variants
        if len(rounds[variant.name]) < matrix.options.rounds
    ]
    devices = {str(own["device"]) for found in rounds.values() for own in found.values() if "device" in own}
    if len(devices) > 1:
        told.append(f"Rounds of the efficiency ran on several devices: {', '.join(sorted(devices))}.")
    return told


def _why_unmeasured(matrix: Matrix, variant: Variant) -> str:
    paths = [efficiency_path(matrix, variant, number) for number in range(matrix.options.rounds)]
    logs = [path.with_suffix(".log") for path in paths if not path.is_file()]
    log = next((log for log in logs if log.is_file()), None)
    return f": {last_line(log)} (efficiency/{log.name})" if log else ""


def _rounds(matrix: Matrix, variant: Variant) -> dict[int, dict[str, Any]]:
    paths = {number: efficiency_path(matrix, variant, number) for number in range(matrix.options.rounds)}
    return {number: json.loads(path.read_text(encoding="utf-8")) for number, path in paths.items() if path.is_file()}


RATIOS = ("flops", "parameters_dense", "training_qps", "inference_qps", "latency_p50", "peak_memory")


def ratios(own: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Variant over full: the median over the rounds that both have, of the ratio within a round."""
    pairs = [(Costs.of(own[n]), Costs.of(reference[n])) for n in own.keys() & reference.keys()]
    found = {}
    for name in RATIOS:
        both = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
        values = [a / b for a, b in both if a is not None and b]
        if values:
            found[name] = statistics.median(values)
    return found


def data_of(cell: Cell) -> dict[str, Any]:
    """Of the data set, as the cell's run saw it; empty where it has not run."""
    summaries = sorted(cell.path.glob("runs/*/*/summary.json"))
    return json.loads(summaries[-1].read_text(encoding="utf-8"))["data"] if summaries else {}


def oracle_of(cells: Sequence[CellResult]) -> dict[str, float] | None:
    """The best that is possible on the very labels of the reported split, where the data know it."""
    found = [cell.metrics["oracle_ne"] for cell in cells if "oracle_ne" in cell.metrics]
    return {"ne": statistics.fmean(found)} if found else None


def notes(cells: Mapping[str, Sequence[CellResult]]) -> list[str]:
    """What a reader must know before the numbers."""
    told = []
    of_runs = {cell.commit for own in cells.values() for cell in own if cell.commit}
    commits = {commit.removesuffix(CHANGES) for commit in of_runs}
    if len(commits) > 1:
        told.append(f"Cells come from {len(commits)} commits: {', '.join(sorted(c[:10] for c in commits))}.")
    if any(commit.endswith(CHANGES) for commit in of_runs):
        told.append("Some cells ran code that no commit holds: files had been changed.")
    for status, words in (("failed", "failed"), ("missing", "have not run")):
        names = sorted({name for name, own in cells.items() for cell in own if cell.status == status})
        if names:
            told.append(f"Cells of {', '.join(names)} {words}.")
    return told


def about(
    options: ExperimentOptions,
    command: Sequence[str],
    cells: Sequence[Cell],
    before: MatrixResult | ScalingResult | None = None,
) -> dict[str, Any]:
    """What an experiment's result says of itself, whatever it ran; ``before`` may hold cells whose runs are gone."""
    seen = next((found for cell in cells if (found := data_of(cell))), {})
    return {
        "name": options.name,
        "split": options.split,
        "command": ["cli.py", *runs.redact_arguments(list(command))],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": seen or (before.data if before else {}),
        "versions": runs.versions(),
    }


def write_plan(matrix: Matrix) -> None:
    """The whole configuration of each variant in ``variants/NAME.yaml``, which ``fit --config`` runs alone, and the
    same cells as a sweep."""
    folder = matrix.options.folder.absolute()
    (folder / "variants").mkdir(exist_ok=True)
    paths = {variant.name: folder / "variants" / f"{variant.name}.yaml" for variant in matrix.variants}
    for variant in matrix.variants:
        write_whole(paths[variant.name], variant.text())
    write_whole(folder / "sweep.yaml", sweep(matrix, paths))


def publish(result: MatrixResult | ScalingResult, folder: Path, variant: Variant) -> None:
    """Write the results into the experiment's folder, show the tables, and tell W&B, as ``variant`` is told to."""
    from kunlun.experiments.dashboard import log_result
    from kunlun.experiments.report import write_report
    from kunlun.experiments.table import markdown, terminal

    write_whole(folder / "results.json", result.to_json())
    write_whole(folder / "table.md", markdown(result))
    write_report([result], folder / "report.html")
    print(f"\n{terminal(result)}\n")
    for name in ("results.json", "table.md", "report.html", "sweep.yaml"):
        if (folder / name).is_file():
            print(f"written: {shown(folder / name)}")
    told = log_result(result, runs.RunOptions(**variant.values.get("run") or {}), folder)
    if told:
        print(told, flush=True)
