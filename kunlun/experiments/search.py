"""The search before the seeds, the same for all: each candidate is trained once, and the best NE on valid is chosen.

It has a seed of its own, so that what is reported was not chosen by its own luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kunlun.experiments.cells import Cell
from kunlun.experiments.matrix import Candidate, Matrix
from kunlun.experiments.options import ExperimentOptions
from kunlun.experiments.results import Trial


def search_cell(options: ExperimentOptions, candidate: Candidate) -> Cell:
    """The one training that ``candidate`` is judged by."""
    return Cell(candidate.variant, options.search_seed, "valid", f"{options.name}-search", options.folder.absolute())


def best(options: ExperimentOptions, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the lowest NE on valid; None until one of them is done."""
    trials = [(candidate, search_cell(options, candidate).read()) for candidate in candidates]
    done = [pair for pair in trials if pair[1].status == "done"]
    return min(done, key=lambda pair: pair[1].metrics["ne"])[0] if done else None


def trials_of(options: ExperimentOptions, candidates: Sequence[Candidate]) -> list[Trial]:
    """What is known of each of ``candidates``."""
    return [Trial(c.model, str(c.size + 1), c.tried, search_cell(options, c).read()) for c in candidates]


def chosen(matrix: Matrix) -> Matrix:
    """``matrix`` with the variants that its search has found best; as configured where nothing of it is done."""
    found = {
        variant.name: best(matrix.options, [c for c in matrix.candidates if c.model == variant.name])
        for variant in matrix.variants
    }
    variants = [candidate.variant if (candidate := found[v.name]) else v for v in matrix.variants]
    return replace(matrix, variants=variants)


def lost(name: str, trials: Sequence[Trial]) -> list[str]:
    """For the notes: what of the search for ``name`` has no result."""
    reasons = [trial.cell.reason or "not run" for trial in trials if trial.cell.status != "done"]
    return [f"{name} lost {len(reasons)} of {len(trials)} trials of its search: {reasons[0]}."] if reasons else []


def words(tried: Mapping[str, Any]) -> str:
    """``width 64, lr 0.003``: what of a trial can be said in a line."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value}" for key, value in tried.items() if not isinstance(value, dict | list)
    )
