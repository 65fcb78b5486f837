"""From a matrix's folder to what people read: results.json, table.md, report.html, sweep.yaml, and a run in W&B."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kunlun.configuration import shown
from kunlun.experiments.cells import Cell
from kunlun.experiments.matrix import Matrix, Variant, changes
from kunlun.experiments.published import PUBLISHED
from kunlun.experiments.results import CellResult, MatrixResult, VariantResult, compare, median_efficiency
from kunlun.experiments.sweep import sweep
from kunlun.training import runs


def cells_of(matrix: Matrix) -> list[Cell]:
    """Seed by seed, so that a matrix that is not yet whole compares all variants on the same seeds."""
    o = matrix.options
    folder = o.folder.absolute()
    return [Cell(variant, seed, o.split, o.name, folder) for seed in o.seed_list for variant in matrix.variants]


def efficiency_path(matrix: Matrix, variant: Variant, number: int) -> Path:
    """The benchmark of ``variant`` in round ``number``."""
    return matrix.options.folder / "efficiency" / f"{variant.name}-{variant.key()}-{number}.json"


def collect(matrix: Matrix, command: Sequence[str]) -> MatrixResult:
    """All that the folder holds of this matrix."""
    cells: dict[str, list[CellResult]] = {variant.name: [] for variant in matrix.variants}
    data: dict[str, Any] = {}
    for cell in cells_of(matrix):
        cells[cell.variant.name].append(cell.read())
        data = data or data_of(cell)
    reference = matrix.reference
    rounds = {variant.name: _rounds(matrix, variant) for variant in matrix.variants}
    variants = []
    for variant in matrix.variants:
        own = rounds[variant.name]
        compared = compare(cells[variant.name], cells[reference.name])
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
                efficiency=median_efficiency(list(own.values())),
                ratio=ratios(own, rounds[reference.name]),
                published=published.words if (published := PUBLISHED.get(variant.name)) else None,
            )
        )
    efficiency = variants[0].efficiency or {}
    return MatrixResult(
        name=matrix.options.name,
        split=matrix.options.split,
        reference=reference.name,
        command=["cli.py", *runs.redact_arguments(list(command))],
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        data=data,
        variants=variants,
        oracle=oracle_of(cells[reference.name]),
        device=efficiency.get("device"),
        versions=runs.versions(),
        notes=notes(cells) + _unmeasured(matrix, rounds),
    )


def _unmeasured(matrix: Matrix, rounds: Mapping[str, Mapping[int, Any]]) -> list[str]:
    if not matrix.options.rounds:
        return []
    names = [name for name, own in rounds.items() if len(own) < matrix.options.rounds]
    told = (
        [f"The efficiency of {', '.join(names)} is missing in a round or more; see efficiency/*.log."] if names else []
    )
    devices = {str(own["device"]) for found in rounds.values() for own in found.values() if "device" in own}
    if len(devices) > 1:
        told.append(f"Rounds of the efficiency ran on several devices: {', '.join(sorted(devices))}.")
    return told


def _rounds(matrix: Matrix, variant: Variant) -> dict[int, dict[str, Any]]:
    paths = {number: efficiency_path(matrix, variant, number) for number in range(matrix.options.rounds)}
    return {number: json.loads(path.read_text(encoding="utf-8")) for number, path in paths.items() if path.is_file()}


# What a ratio is of, and where a benchmark has it.
_RATIOS = {
    "flops": ("flops_per_sample",),
    "parameters_dense": ("parameters", "dense"),
    "training_qps": ("training", "samples_per_second"),
    "inference_qps": ("inference", "samples_per_second"),
    "latency_p50": ("inference", "latency_ms", "p50"),
    "peak_memory": ("peak_memory_bytes",),
}


def ratios(own: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Variant over full: the median over the rounds that both have, of the ratio within a round."""
    found = {}
    for name, keys in _RATIOS.items():
        pairs = [(_at(own[n], keys), _at(reference[n], keys)) for n in own.keys() & reference.keys()]
        values = [a / b for a, b in pairs if a is not None and b]
        if values:
            found[name] = statistics.median(values)
    return found


def _at(node: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


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
    commits = {cell.commit for own in cells.values() for cell in own if cell.commit}
    if len(commits) > 1:
        told.append(f"Cells come from {len(commits)} commits: {', '.join(sorted(c[:10] for c in commits))}.")
    for status, words in (("failed", "failed"), ("missing", "have not run")):
        names = sorted({name for name, own in cells.items() for cell in own if cell.status == status})
        if names:
            told.append(f"Cells of {', '.join(names)} {words}.")
    return told


def write_variants(matrix: Matrix) -> dict[str, Path]:
    """The whole configuration of each variant in ``variants/NAME.yaml``: ``fit --config`` runs it alone."""
    folder = matrix.options.folder.absolute() / "variants"
    folder.mkdir(exist_ok=True)
    paths = {variant.name: folder / f"{variant.name}.yaml" for variant in matrix.variants}
    for variant in matrix.variants:
        _write(paths[variant.name], variant.text())
    return paths


def write_outputs(matrix: Matrix, result: MatrixResult) -> None:
    """Write everything into the matrix's folder, show the table, and tell W&B."""
    from kunlun.experiments.dashboard import log_matrix
    from kunlun.experiments.report import write_report
    from kunlun.experiments.table import markdown, terminal

    folder = matrix.options.folder
    _write(folder / "results.json", result.to_json())
    _write(folder / "table.md", markdown(result))
    _write(folder / "sweep.yaml", sweep(matrix, write_variants(matrix)))
    write_report([result], folder / "report.html")
    print(f"\n{terminal(result)}\n")
    for name in ("results.json", "table.md", "report.html", "sweep.yaml"):
        print(f"written: {shown(folder / name)}")
    options = runs.RunOptions(**matrix.reference.values.get("run") or {})
    told = log_matrix(result, options, folder)
    if told:
        print(told, flush=True)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: several machines may write it at the same time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
