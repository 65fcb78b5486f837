"""``python cli.py scaling``: ladders of models from small to large, the same search for each, and the two laws fitted.

Every size of every model is searched for in the same way: each of its shapes with each learning rate is trained once,
with a seed of its own; the one with the best NE on the valid split is then trained with the seeds that are reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kunlun.configuration import ConfigError
from kunlun.experiments.cells import Cell, Processes
from kunlun.experiments.matrix import Candidate, read_variant
from kunlun.experiments.options import Asked, ExperimentOptions, read_asked
from kunlun.experiments.outputs import about, earlier, notes, oracle_of, publish
from kunlun.experiments.results import Ladder, ScalingPoint, ScalingResult
from kunlun.experiments.running import check_data, exit_code, prepare_folder, run_cells, stoppable
from kunlun.experiments.search import best, lost, search_cell, trials_of
from kunlun.experiments.statistics import Estimate, Fit, fit_log, fit_power, ratio
from kunlun.training.devices import device_name


@dataclass(frozen=True)
class LadderOptions:
    """One model and its sizes, small to large."""

    config: str = "kunlun"
    """Name under configs/ablations, or path of a configuration file."""
    sizes: list[list[dict[str, Any]]] = field(default_factory=list)
    """For each size the shapes to choose among: arguments of the model, as in ``{width: 64, layers: 2}``."""


@dataclass(frozen=True)
class ScalingOptions(ExperimentOptions):
    """Which models, how large, and what is searched for."""

    name: str = "scaling"
    """Name of the experiment, and the W&B group of its runs."""
    seeds: int | list[int] = 3
    """How many seeds (0, 1, …), or which."""
    models: dict[str, LadderOptions] = field(default_factory=dict)
    """Name → ladder."""
    reference: str = "interformer"
    """The model whose slope η the others are divided by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ladders = {k: v if isinstance(v, LadderOptions) else LadderOptions(**v) for k, v in self.models.items()}
        object.__setattr__(self, "models", ladders)
        if self.reference not in self.models:
            raise ValueError(f"the reference {self.reference!r} is not among the models {sorted(self.models)}")
        for name, ladder in self.models.items():
            if len(ladder.sizes) < 2 or not all(ladder.sizes):
                raise ValueError(f"models.{name}.sizes: two sizes or more are needed, each with a shape or more")


@dataclass(frozen=True)
class Plan:
    """Everything that may run: the candidates of every size of every model."""

    options: ScalingOptions
    candidates: list[Candidate]

    def of(self, model: str, size: int) -> list[Candidate]:
        return [c for c in self.candidates if (c.model, c.size) == (model, size)]

    def sizes(self) -> list[tuple[str, int]]:
        """Small sizes of all models first, so that an experiment that is not yet whole has them all."""
        return sorted({(c.model, c.size) for c in self.candidates}, key=lambda pair: (pair[1], pair[0]))


def read_plan(argv: Sequence[str]) -> Plan:
    """The plan that ``argv`` describes; ConfigError if any part of it is wrong."""
    asked = read_asked(argv, "scaling", ScalingOptions)
    for override in asked.overrides:
        if override.key.startswith("model."):
            raise ConfigError(f"command line: --{override.key}: the ladders choose it; see --scaling.models")
    candidates = [
        _candidate(asked, model, size, shape, tried)
        for model, ladder in asked.options.models.items()
        for size, shapes in enumerate(ladder.sizes)
        for shape, tried in itertools.product(shapes, asked.options.tries)
    ]
    return Plan(asked.options, candidates)


def _candidate(
    asked: Asked[ScalingOptions], model: str, size: int, shape: dict[str, Any], tried: dict[str, Any]
) -> Candidate:
    variant = read_variant(
        asked.options.models[model].config,
        asked.configs,
        asked.overrides,
        asked.tree.where(f"scaling.models.{model}.sizes"),
        section="scaling.models",
        changes={**{f"model.init_args.{key}": value for key, value in shape.items()}, **tried},
        name=model,
    )
    return Candidate(model, size, {**shape, **tried}, variant)


def main(argv: Sequence[str]) -> int:
    """Run the experiment; 0 if every cell that is reported is done, 1 if some failed."""
    plan = read_plan(argv)
    folder = plan.options.folder
    prepare_folder(folder)
    check_data(plan.candidates[0].variant)
    before = earlier(folder, ScalingResult)
    with stoppable() as processes:
        searched = [search_cell(plan.options, c) for model, size in plan.sizes() for c in plan.of(model, size)]
        _run(plan, f"{plan.options.name}, search", searched, processes)
        reported = [cell for model, size in plan.sizes() for cell in reported_cells(plan, model, size)]
        _run(plan, f"{plan.options.name}, seeds", reported, processes)
    result = collect(plan, ["scaling", *argv], before)
    publish(result, folder, plan.candidates[0].variant)
    return exit_code(processes, folder, (cell.read() for cell in (*searched, *reported)))


def _run(plan: Plan, title: str, cells: list[Cell], processes: Processes) -> None:
    if not processes.stopped.is_set():
        run_cells(title, cells, plan.options.jobs, plan.options.gpus, processes)


def reported_cells(plan: Plan, model: str, size: int) -> list[Cell]:
    """The trainings of the best candidate; none where the whole search failed."""
    o, chosen = plan.options, best(plan.options, plan.of(model, size))
    if chosen is None:
        return []
    return [Cell(chosen.variant, seed, o.split, o.name, o.folder.absolute()) for seed in o.seed_list]


def collect(plan: Plan, command: Sequence[str], before: ScalingResult | None = None) -> ScalingResult:
    """All that the folder holds of this experiment; ``before`` is what its results said when the command began."""
    o = plan.options
    ladders = {model: _ladder(plan, model) for model in o.models}
    base = min((p.flops for ladder in ladders.values() for p in ladder.points), default=1.0)
    fitted = {model: _fitted(ladder, base) for model, ladder in ladders.items()}
    reference = _eta(fitted[o.reference])
    etas = {model: eta for model, ladder in fitted.items() if (eta := _eta(ladder)) is not None}
    cells = {f"{m} {p.size}": p.cells for m, ladder in fitted.items() for p in ladder.points}
    told = notes(cells)
    search = []
    for model, size in plan.sizes():
        trials = trials_of(o, plan.of(model, size))
        search += trials
        missing = lost(f"Size {size + 1} of {model}", trials)
        told += missing
        if not missing and str(size + 1) not in {point.size for point in ladders[model].points}:
            told.append(f"Size {size + 1} of {model} has no point: the model has no flops(lengths).")
    return ScalingResult(
        **about(o, command, [c for model, size in plan.sizes() for c in reported_cells(plan, model, size)], before),
        reference=o.reference,
        ladders=list(fitted.values()),
        # A slope that is not above 0 is nothing to be a multiple of.
        ratios={
            model: ratio(eta, reference)
            for model, eta in etas.items()
            if reference is not None and reference.mean > 0 and model != o.reference
        },
        base=base,
        search=search,
        oracle=oracle_of([cell for own in cells.values() for cell in own]),
        device=device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        notes=told,
    )


def _ladder(plan: Plan, model: str) -> Ladder:
    points, summary = [], ""
    for size in range(len(plan.options.models[model].sizes)):
        chosen = best(plan.options, plan.of(model, size))
        if chosen is None:
            continue
        summary, trial = chosen.variant.summary, search_cell(plan.options, chosen).read()
        cells = [cell.read() for cell in reported_cells(plan, model, size)]
        if trial.flops is not None:
            points.append(ScalingPoint(str(size + 1), trial.flops, trial.parameters, cells, chosen.tried))
    return Ladder(model, summary, points)


def _fitted(ladder: Ladder, base: float) -> Ladder:
    pairs = [(p.flops, c.metrics["ne"]) for p in ladder.points for c in p.cells if c.status == "done"]
    flops, ne = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    sizes = len(set(flops))
    log: Fit | None = fit_log(flops, ne, base) if sizes >= 2 else None
    power: Fit | None = fit_power(flops, ne, base) if sizes >= 4 else None
    return replace(ladder, log=log, power=power)


def _eta(ladder: Ladder) -> Estimate | None:
    return ladder.log.coefficients["eta"] if ladder.log else None
