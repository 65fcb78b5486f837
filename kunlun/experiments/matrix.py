"""What a matrix asks for: its variants and seeds, each variant's whole configuration, all checked before a cell runs.

Under every variant lie configs/base.yaml and the matrix's configs; the variant's own file comes next, options of the
command line last.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kunlun.command_line import Override, Request, request_of
from kunlun.configuration import ConfigError, closest, find_config, flat, load_configs
from kunlun.experiments.options import OWN_RUN_OPTIONS, ExperimentOptions, read_asked, without_experiments

# Options of a run that change no result.
HARMLESS = ("project", "wandb", "checkpoint_every", "keep_last")
FAMILIES = ("no", "drop")
BASELINES = ("interformer", "wukong", "hstu", "din", "dien", "dcnv2", "dlrm", "logistic_regression")


@dataclass(frozen=True)
class MatrixOptions(ExperimentOptions):
    """Which variants, how often, and how they are run."""

    name: str = "matrix"
    """Name of the matrix, and the W&B group of its runs."""
    variants: list[str] = field(default_factory=list)
    """Names under configs/ablations, or paths of configuration files."""
    reference: str = "kunlun"
    """The variant that all others are compared with."""
    rounds: int = 3
    """How often the efficiency of every variant is measured; 0: not at all."""
    margin: float = 1.0
    """Percent of NE. What saves compute passes where the interval leaves no room for a larger loss than this."""
    peak_flops: float | None = None
    """FLOP/s of the device, for MFU; null: from the table of chips, on a CPU from a measured matmul."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 0:
            raise ValueError(f"rounds must be ≥ 0, got {self.rounds}")
        if not self.margin > 0:
            raise ValueError(f"margin must be above 0 (percent of NE), got {self.margin}")
        if self.peak_flops is not None and not 0 < self.peak_flops < float("inf"):
            raise ValueError(f"peak_flops must be a finite number above 0, got {self.peak_flops}")


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
class Candidate:
    """A variant as it may be chosen for one ``size`` (from 0) of ``model``; ``tried``: key → value."""

    model: str
    size: int
    tried: dict[str, Any]
    variant: Variant


@dataclass(frozen=True)
class Matrix:
    """The whole plan; the reference is the first of the variants, which are as configured until a search has chosen."""

    options: MatrixOptions
    variants: list[Variant]
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def reference(self) -> Variant:
        return self.variants[0]


def read_matrix(argv: Sequence[str]) -> Matrix:
    """The matrix that ``argv`` describes; ConfigError if any part of it is wrong."""
    asked = read_asked(argv, "matrix", MatrixOptions)
    options, where = asked.options, asked.tree.where("matrix.variants")
    if options.reference not in options.variants:
        raise ConfigError(
            f"{where}: matrix.variants: the reference {options.reference!r} is not among them"
            f"{closest(options.reference, options.variants)}; every other variant is compared with it"
        )
    names = list(dict.fromkeys([options.reference, *options.variants]))
    variants = [read_variant(name, asked.configs, asked.overrides, where) for name in names]
    for name, times in Counter(variant.name for variant in variants).items():
        if times > 1:
            raise ConfigError(f"{where}: matrix.variants: {times} files are called {name!r}")
    candidates = [
        Candidate(variant.name, 0, tried, read_variant(name, asked.configs, asked.overrides, where, changes=tried))
        for name, variant in zip(names, variants, strict=True)
        for tried in options.tries
        if tried
    ]
    return Matrix(options, variants, candidates)


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
    without_experiments(tree.values)
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
    own, other = flat(values), flat(reference)
    keys = [k for k in {**other, **own} if not k.startswith("run.") and own.get(k) != other.get(k)]
    return {key: [other.get(key), own.get(key)] for key in keys}
