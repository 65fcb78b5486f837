"""One run, one directory: ``root/name/<time>-<6 hex>`` with the resolved config, its origins, logs and checkpoints."""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import platform
import re
import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import yaml

from kunlun.configuration import PROJECT_ROOT, dump_yaml, flat

if TYPE_CHECKING:
    from kunlun.features import FeatureSchema

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
CHECKPOINTS = "checkpoints"
_PACKAGES = [
    *("torch", "triton", "lightning", "torchmetrics", "torchdata", "jsonargparse", "safetensors", "wandb"),
    *("datasets", "ibis-framework", "duckdb", "pyarrow", "numpy"),
]
_SECRET_NAME = re.compile(r"(^|[^a-z])(api)?(key|token|secret|password|passwd|credentials?)([^a-z]|$)", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(\w[\w+.-]*://)[^/\s@]+@")
_URL_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password|signature)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
HIDDEN = "***"


@dataclass(frozen=True)
class CheckpointEvery:
    """When a checkpoint is due, besides the end of every epoch: whichever comes first."""

    steps: int | None = None
    """After so many optimizer steps; null: however many."""
    minutes: float | None = 10.0
    """After so many minutes; null: however many."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1 (or null), not {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0 (or null), not {self.minutes}")


@dataclass(frozen=True)
class RunOptions:
    """What a run is called, where it goes, and who is told."""

    name: str = "kunlun"
    """Name of the run, here and in W&B; its directories lie under root/name."""
    root: str = "runs"
    """Directory of all runs."""
    wandb: Literal["auto", "offline", "online", "disabled"] = "auto"
    """W&B mode; auto: online if you are logged in, else offline (WANDB_MODE decides first)."""
    project: str = "kunlun"
    """W&B project."""
    group: str | None = None
    """W&B group, for runs to be compared with one another."""
    monitor: str = "valid/ne"
    """The metric that decides which checkpoint is the best."""
    mode: Literal["min", "max"] = "min"
    """Whether the best is the smallest or the largest."""
    patience: int | None = None
    """Stop after so many validations without a better one; null: never."""
    test: bool = False
    """After training, measure the best checkpoint on the test split, in the same run."""
    checkpoint_every: CheckpointEvery = CheckpointEvery()
    """When a checkpoint is written within an epoch; at its end there always is one."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept, besides the best."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is nan or infinite does: stop the run, or skip the batch's update."""
    nonfinite_limit: int = 10
    """Batches that may be skipped before the run stops all the same."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise ValueError(f"name must be letters, digits and any of . _ + -, not {self.name!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 (or null), not {self.patience}")
        if self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, not {self.keep_last}")
        if self.nonfinite_limit < 0:
            raise ValueError(f"nonfinite_limit must be at least 0, not {self.nonfinite_limit}")


def create_run_directory(options: RunOptions) -> Path:
    """A directory that no other run has; OSError if it cannot be made."""
    parent = Path(options.root).expanduser() / options.name
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def remove_if_unused(directory: Path) -> None:
    """Take back a run directory in which nothing was written."""
    for path in (directory, directory.parent, directory.parent.parent):
        try:
            path.rmdir()
        except OSError:
            return


def redact(value: Any, name: str = "") -> Any:
    """``value`` without secrets: text under names like ``api_key`` or ``token``, and credentials in URLs."""
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if isinstance(value, str) and value:
        if _SECRET_NAME.search(name):
            return HIDDEN
        return _URL_SECRET.sub(rf"\1{HIDDEN}", _URL_LOGIN.sub(rf"\1{HIDDEN}@", value))
    return value


def redact_arguments(argv: list[str]) -> list[str]:
    """A command line without secrets."""
    shown, pending = [], ""
    for token in argv:
        name, equals, value = token.partition("=")
        if token.startswith("--"):
            shown.append(f"{name}={redact(value, name)}" if equals else token)
            pending = "" if equals else name
        else:
            shown.append(redact(token, pending))
            pending = ""
    return shown


def save_run(
    directory: Path,
    config: Mapping[str, Any],
    argv: list[str],
    schema: FeatureSchema,
    resumed_from: str | None = None,
    group: str | None = None,
) -> None:
    """Write config.yaml, which starts the same run again, and run.json, which says what it ran on; ``group``: the W&B
    group that all attempts of the run share."""
    (directory / CONFIG_FILE).write_text(dump_yaml(redact(config)), encoding="utf-8")
    record = {
        "command": ["cli.py", *redact_arguments(argv)],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.get("seed_everything"),
        "resumed_from": resumed_from,
        "group": group,
        "host": platform.node(),
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(),
        "schema": {
            "name": schema.name,
            "sha256": hashlib.sha256(schema.to_json().encode()).hexdigest(),
            "rows": schema.rows,
            "provenance": redact(schema.provenance),
        },
    }
    (directory / RUN_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def wandb_group(directory: Path, options: RunOptions, before: Path | None) -> str:
    """The configured one, or that of the run that is resumed, or one of its own for this run and those after it."""
    if options.group is not None:
        return options.group
    try:
        record = json.loads((before / RUN_FILE).read_text(encoding="utf-8")) if before is not None else {}
    except (OSError, ValueError):
        record = {}
    return record.get("group") or f"{options.name}-{directory.name}"


def changes(before: Path, config: Mapping[str, Any]) -> list[str]:
    """A line for each value of ``config`` that the run in ``before`` had otherwise; what was not there is null."""
    try:
        saved = yaml.safe_load((before / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return []
    old, new = flat(saved), flat(redact(config))
    keys = dict.fromkeys([*new, *old])
    return [f"{k}: {json.dumps(old.get(k))} → {json.dumps(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def versions() -> dict[str, str]:
    """Of Python and the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """The project's commit, and whether files differ from it; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def wandb_mode(options: RunOptions) -> Literal["offline", "online", "disabled"]:
    """The mode that ``auto`` stands for, or the one that was chosen."""
    if options.wandb != "auto":
        return options.wandb
    given = os.environ.get("WANDB_MODE", "")
    if given in ("online", "disabled"):
        return given  # type: ignore[return-value]
    if given:
        return "offline"
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    candidates = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for candidate in candidates:
        path = Path(candidate).expanduser() if candidate else None
        try:
            if path and path.is_file() and host and netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def is_first_process() -> bool:
    """Whether this process is the one of a run that writes and speaks."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0
