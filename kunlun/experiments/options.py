"""What every experiment is told, whatever it runs; and how its section of a configuration is read.

An experiment's file is a configuration like any other, with one more section. Further files and options of a run lie
under everything that it runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from kunlun.command_line import SECTIONS, Override, check_sections, split_arguments
from kunlun.config_check import options_of
from kunlun.configuration import ConfigError, ConfigTree, Text, load_configs, parse_value

EXPERIMENTS = {"matrix": "ablations/matrix.yaml", "scaling": "scaling/kunlun.yaml"}
"""Section of an experiment → a file that has it."""
OWN_RUN_OPTIONS = ("name", "root", "group", "test")
"""Options of a run that an experiment gives to each of its cells."""


@dataclass(frozen=True)
class ExperimentOptions:
    """How often, on what, and where."""

    name: str = "experiment"
    """Name of the experiment, and the W&B group of its runs."""
    seeds: int | list[int] = 5
    """How many seeds (0, 1, …), or which."""
    split: Literal["valid", "test"] = "test"
    """The split whose metrics are reported; everything that is chosen is chosen on valid."""
    search: dict[str, list[Any]] = field(default_factory=dict)
    """What everything is tried with before the seeds, as ``{training.optimizer.lr: [0.001, 0.003]}``, in all
    combinations; the best on valid is trained with the seeds."""
    search_seed: int = 1000
    """The seed of the search, not among those that are reported."""
    jobs: int = 1
    """Cells that run at the same time on this machine."""
    gpus: list[int] = field(default_factory=list)
    """GPUs to give out, one to a job; empty: every job sees all of them."""
    out: str | None = None
    """Folder of the experiment; machines that share it share the work. Default: runs/NAME."""

    def __post_init__(self) -> None:
        seeds = self.seed_list
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be a number above 0, or a list of different seeds ≥ 0, got {self.seeds}")
        for key, values in self.search.items():
            if not values:
                raise ValueError(f"search: {key} has no value to try")
        if self.search_seed in seeds:
            raise ValueError(f"seeds are those that are reported, not the search_seed {self.search_seed}")
        if self.jobs < 1:
            raise ValueError(f"it takes jobs ≥ 1, got {self.jobs}")
        if self.gpus and len(self.gpus) < self.jobs:
            raise ValueError(f"gpus: {self.jobs} jobs need as many GPUs, got {self.gpus}")

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def tries(self) -> list[dict[str, Any]]:
        """The combinations of ``search``, each dotted key → value; without a search one that changes nothing."""
        return [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}").expanduser()


O = TypeVar("O", bound=ExperimentOptions)  # noqa: E741


@dataclass(frozen=True)
class Asked(Generic[O]):
    """A command line of an experiment: its own options, and what lies under everything that it runs."""

    options: O
    tree: ConfigTree
    configs: list[str]
    overrides: list[Override]


def read_asked(argv: Sequence[str], section: str, cls: type[O]) -> Asked[O]:
    """What ``argv`` asks of the experiment ``section``; ConfigError if it cannot be.

    Its options may leave out the section: ``--seeds 3`` is ``--matrix.seeds 3``.
    """
    own = [f.name for f in fields(cls)]
    configs, given = split_arguments(argv)
    tree = load_configs(configs)
    check_sections(tree, [], (*SECTIONS, section))
    check_sections(tree, given, (*SECTIONS, section, *sorted(own)))
    if section not in tree.values:
        raise ConfigError(f"the section {section!r} is missing; add --config {EXPERIMENTS[section]}")
    overrides = []
    for override in given:
        key = f"{section}.{override.key}" if override.key in own else override.key
        if key.startswith(f"{section}."):
            read = parse_value(override.value or "")
            tree.set(key, read if isinstance(read, (dict, list)) else Text(override.value or ""))
        else:
            overrides.append(override)
    _check_overrides(overrides, section)
    try:
        options = options_of(tree, section, cls)
    except ValueError as error:
        raise ConfigError(f"{tree.where(section)}: {section}: {error}") from error
    for override in overrides:
        if override.key in options.search:
            raise ConfigError(f"command line: --{override.key}: the search chooses it; see --{section}.search")
    return Asked(options, tree, configs, overrides)


def _check_overrides(overrides: list[Override], section: str) -> None:
    """Refuse options that every cell has of its own."""
    own = {f"run.{name}" for name in OWN_RUN_OPTIONS} | {"seed_everything"}
    for override in overrides:
        if override.key in own:
            raise ConfigError(
                f"command line: --{override.key}: the {section} gives every cell its own; "
                "--name, --out, --seeds and --split are for all of them"
            )


def without_experiments(values: dict[str, Any]) -> None:
    """Take the experiments' sections out of a configuration: what is left is that of a run."""
    for section in EXPERIMENTS:
        values.pop(section, None)
