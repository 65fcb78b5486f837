"""What a matrix asks for: its variants and seeds, each variant's whole configuration, all checked before a cell runs.

A matrix file is a configuration like any other, with one more section, ``matrix``. Under every variant lie
configs/base.yaml and the matrix's configs; the variant's own file comes next, options of the command line last.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kunlun.command_line import SECTIONS, Override, Request, check_sections, request_of, split_arguments
from kunlun.config_check import ConfigChecker
from kunlun.configuration import ConfigError, ConfigTree, Text, closest, find_config, load_configs, parse_value

# Options of a run that the matrix gives itself, and those that change no result.
OWN_RUN_OPTIONS = ("name", "root", "group", "test")
HARMLESS = ("project", "wandb", "checkpoint_every", "keep_last")
FAMILIES = ("no", "drop")
BASELINES = ("interformer", "wukong", "hstu", "din", "dien", "dcnv2", "dlrm", "logistic_regression")


@dataclass(frozen=True)
class MatrixOptions:
    """Which variants, how often, and how they are run."""

    variants: list[str] = field(default_factory=list)
    """Names under configs/ablations, or paths of configuration files."""
    name: str = "matrix"
    """Name of the matrix, and the W&B group of its runs."""
    reference: str = "kunlun"
    """The variant that all others are compared with."""
    seeds: int | list[int] = 5
    """How many seeds (0, 1, …), or which."""
    split: Literal["valid", "test"] = "test"
    """The split whose metrics are reported; the epoch is always chosen on valid."""
    rounds: int = 3
    """How often the efficiency of every variant is measured; 0: not at all."""
    jobs: int = 1
    """Cells that run at the same time on this machine."""
    gpus: list[int] = field(default_factory=list)
    """GPUs to give out, one to a job; empty: every job sees all of them."""
    out: str | None = None
    """Folder of the matrix; machines that share it share the work. Default: runs/NAME."""

    def __post_init__(self) -> None:
        seeds = self.seed_list
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be a number above 0, or a list of different seeds ≥ 0, got {self.seeds}")
        if self.rounds < 0 or self.jobs < 1:
            raise ValueError(f"rounds must be ≥ 0 and jobs ≥ 1, got {self.rounds} and {self.jobs}")
        if self.gpus and len(self.gpus) < self.jobs:
            raise ValueError(f"gpus: {self.jobs} jobs need as many GPUs, got {self.gpus}")

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}").expanduser()


@dataclass(frozen=True)
class Variant:
    """One configuration of the matrix. ``request`` is that of a fit; its tree is settled, plain values."""

    name: str
    summary: str
    config: Path
    request: Request

    @property
    def values(self) -> dict[str, Any]:
        return self.request.tree.values

    @property
    def family(self) -> Literal["no", "drop", "baseline", "other"]:
        prefix = self.name.partition("_")[0]
        if prefix in FAMILIES:
            return prefix  # type: ignore[return-value]
        return "baseline" if self.name in BASELINES else "other"

    @property
    def extra(self) -> list[str]:
        """Arguments that no configuration file can hold, as ``--trainer.callbacks+=…``."""
        return [token for override in self.request.overrides for token in override.tokens]

    def text(self) -> str:
        """The whole configuration, for ``fit --config``."""
        return self.request.tree.dump()

    def key(self, *more: Any) -> str:
        """A short hash of all that can change a result; what a run is called and where it goes cannot."""
        values = {name: value for name, value in self.values.items() if name not in ("run", "seed_everything")}
        run = self.values.get("run") or {}
        values["run"] = {name: value for name, value in run.items() if name not in (*OWN_RUN_OPTIONS, *HARMLESS)}
        told = json.dumps([values, self.extra, data_version(values), *more], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Matrix:
    """The whole plan; the reference is the first of the variants."""

    options: MatrixOptions
    variants: list[Variant]

    @property
    def reference(self) -> Variant:
        return self.variants[0]


def read_matrix(argv: Sequence[str]) -> Matrix:
    """The matrix that ``argv`` describes; ConfigError if any part of it is wrong.

    Options of the matrix may leave out its section: ``--seeds 3`` is ``--matrix.seeds 3``.
    """
    own = {f.name for f in fields(MatrixOptions)}
    configs, overrides = split_arguments(argv)
    tree = load_configs(configs)
    check_sections(tree, [], (*SECTIONS, "matrix"))
    check_sections(tree, overrides, (*SECTIONS, "matrix", *sorted(own)))
    if "matrix" not in tree.values:
        raise ConfigError("ablate needs a matrix: python cli.py ablate --config ablations/matrix.yaml")
    overrides = [sectioned(o, own, "matrix") for o in overrides]
    mine = [o for o in overrides if o.key.startswith("matrix.")]
    rest = [o for o in overrides if not o.key.startswith("matrix.")]
    check_overrides(rest, "matrix")
    for override in mine:
        read = parse_value(override.value or "")
        tree.set(override.key, read if isinstance(read, (dict, list)) else Text(override.value or ""))
    options = section_options(tree, "matrix", MatrixOptions)
    names = list(dict.fromkeys([options.reference, *options.variants]))
    if options.reference not in options.variants:
        where = tree.where("matrix.variants")
        raise ConfigError(
            f"{where}: matrix.variants: the reference {options.reference!r} is not among them"
            f"{closest(options.reference, options.variants)}; every other variant is compared with it"
        )
    variants = [read_variant(name, configs, rest, tree.where("matrix.variants")) for name in names]
    for name, times in Counter(variant.name for variant in variants).items():
        if times > 1:
            raise ConfigError(f"{tree.where('matrix.variants')}: matrix.variants: {times} files are called {name!r}")
    return Matrix(options, variants)


def check_overrides(overrides: list[Override], experiment: str) -> None:
    """Refuse options that every cell has of its own."""
    own = {f"run.{name}" for name in OWN_RUN_OPTIONS} | {"seed_everything"}
    for override in overrides:
        if override.key in own:
            raise ConfigError(
                f"command line: --{override.key}: the {experiment} gives every cell its own; "
                "--name, --out, --seeds and --split are for all of them"
            )


def section_options(tree: ConfigTree, section: str, cls: type[Any]) -> Any:
    """The dataclass ``cls`` from a section of the configuration, checked."""
    values = tree.values.get(section) or {}
    checker = ConfigChecker(tree)
    checker.arguments(section, values, cls)
    try:
        return cls(**checker.settle(values, section))
    except ValueError as error:
        raise ConfigError(f"{tree.where(section)}: {section}: {error}") from error


def read_variant(
    config: str,
    configs: list[str],
    overrides: list[Override],
    where: str,
    *,
    section: str = "matrix.variants",
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Variant:
    """The variant ``config`` over ``configs`` and under ``overrides``, with its values checked.

    Args:
        where, section: for messages: where the variant was asked for, and under which key.
        changes: dotted key → value, between the variant's file and the overrides.
        name: of the variant; that of its file without one.
    """
    # Lightning takes seconds to import; a misspelt variant is refused before.
    path = find_variant(config, where, section)
    from kunlun.training.cli import check_lightning
    from kunlun.training.precheck import precheck

    tree = load_configs([*configs, str(path)])
    for experiment in ("matrix", "scaling"):
        tree.values.pop(experiment, None)
    for key, value in (changes or {}).items():
        tree.set(key, value, origin=where)
    request = request_of("fit", [], [*configs, str(path)], tree, overrides)
    checker = precheck(request)
    check_lightning(checker, tree.values)
    tree.values = checker.settle(tree.values)
    trainer = tree.values.get("trainer") or {}
    if trainer.get("fast_dev_run") or trainer.get("logger") is False:
        raise ConfigError("trainer.fast_dev_run and trainer.logger=false leave no run to read a result from")
    whole = load_configs([])
    whole.lay(tree.values)
    if whole.values != tree.values:
        raise ConfigError(
            f"{where}: {section}: {config}: a class is changed and then changed back, which one file over "
            "configs/base.yaml cannot say; leave the first change out"
        )
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    summary = first.lstrip("# ").strip() if first.startswith("#") else ""
    return Variant(name or path.stem, summary, path, request)


def find_variant(name: str, where: str, section: str) -> Path:
    """The file of a variant: under configs/ablations, or as any configuration is found."""
    try:
        return find_config(name if "/" in name or name.endswith(".yaml") else f"ablations/{name}.yaml")
    except ConfigError as error:
        raise ConfigError(f"{where}: {section}: {error}") from None


def data_version(values: dict[str, Any]) -> str | None:
    """Of prepared data: the checksum of its schema, so that other data under the same path are other cells."""
    path = ((values.get("data") or {}).get("init_args") or {}).get("path")
    schema = Path(str(path)).expanduser() / "schema.json" if path else None
    return hashlib.sha256(schema.read_bytes()).hexdigest() if schema and schema.is_file() else None


def changes(values: dict[str, Any], reference: dict[str, Any]) -> dict[str, list[Any]]:
    """Dotted key → [value in ``reference``, value in ``values``], of all that differ but the run's name."""
    own, other = dict(_leaves(values)), dict(_leaves(reference))
    keys = [k for k in {**other, **own} if not k.startswith("run.") and own.get(k) != other.get(k)]
    return {key: [other.get(key), own.get(key)] for key in keys}


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), node)]


def sectioned(override: Override, own: Collection[str], section: str) -> Override:
    """``--seeds`` as ``--matrix.seeds``."""
    key = override.key
    return Override(f"{section}.{key}", override.value, override.tokens) if key in own else override
