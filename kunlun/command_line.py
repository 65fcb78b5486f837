"""The command line of fit, validate, test, predict, export and benchmark, read as far as it can be without torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kunlun.checkpoints import SUFFIX, newest_intact
from kunlun.configuration import (
    COMMAND_LINE,
    CONFIG_ROOT,
    ConfigError,
    ConfigTree,
    Text,
    closest,
    load_configs,
    parse_value,
    shown,
)

SECTIONS = ("seed_everything", "data", "model", "training", "trainer", "run")
OPTIONS = {
    "fit": ("resume", "ckpt_path"),
    "validate": ("ckpt_path",),
    "test": ("ckpt_path",),
    "predict": ("ckpt_path", "output"),
    "export": ("ckpt_path", "out"),
    "benchmark": ("steps", "warmup", "latency_batch", "peak_flops", "out"),
}
FLAGS = ("help", "h", "print_config")


@dataclass(frozen=True)
class Override:
    """``--key=value`` as the user gave it; ``tokens`` are the arguments it took. No value: a bare flag."""

    key: str
    value: str | None
    tokens: tuple[str, ...]


def split_arguments(argv: Iterable[str]) -> tuple[list[str], list[Override]]:
    """The values of ``--config`` / ``-c`` in order, and everything else."""
    arguments = list(argv)
    configs: list[str] = []
    overrides: list[Override] = []
    while arguments:
        token = arguments.pop(0)
        if not token.startswith("-") or token == "-":
            kind = "--config " if token.endswith((".yaml", ".yml")) or (CONFIG_ROOT / f"{token}.yaml").is_file() else ""
            hint = f"; did you mean {kind + token!r}?" if kind else "; options are given as --key value or --key=value"
            raise ConfigError(f"{COMMAND_LINE}: unexpected argument {token!r}{hint}")
        name, equals, value = token.partition("=")
        tokens = [token]
        given: str | None = value if equals else None
        if not equals and arguments and not arguments[0].startswith("--") and arguments[0] not in ("-h", "-c"):
            given = arguments.pop(0)
            tokens.append(given)
        if name in ("--config", "-c"):
            if not given:
                raise ConfigError(f"{COMMAND_LINE}: {name} needs the name of a file, as in: --config ablations/no_gdpa")
            configs.append(given)
        else:
            overrides.append(Override(name.lstrip("-"), given, tuple(tokens)))
    return configs, overrides


@dataclass
class Request:
    """A training command, read as far as it can be without torch.

    The tree holds the values of the command line too, as `Text` where they are yet to be read; ``overrides`` are the
    options that no tree can hold. ``checkpoint`` is the file to go on from or to evaluate, ``run`` the run that it
    belongs to; ``warnings`` are for the user, once there is a run.
    """

    command: str
    argv: list[str]
    configs: list[str]
    tree: ConfigTree
    overrides: list[Override]
    checkpoint: Path | None = None
    run: Path | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def asks_help(self) -> bool:
        return any(o.key in FLAGS or o.key.endswith(".help") for o in self.overrides)

    @property
    def asks_to_resume(self) -> bool:
        return any(o.key == "resume" for o in self.overrides)


def read_request(command: str, argv: list[str]) -> Request:
    """Find and merge the files that ``argv`` names; without --config, those of the run that its checkpoint lies in."""
    configs, overrides = split_arguments(argv)
    given = {o.key: o.value for o in overrides}
    warnings: list[str] = []
    checkpoint: Path | None = None
    if command == "export" and not set(FLAGS) & set(given):
        _check_free(given.get("out") or "")
    if command == "predict":
        overrides = [_as_predict_split(o) if o.key == "split" else o for o in overrides]
    if command == "fit":
        checkpoint = _to_resume(given, configs, overrides, warnings)
    elif "ckpt_path" in given:
        checkpoint = find_checkpoint(given["ckpt_path"] or "", "best.ckpt")
    elif command != "benchmark" and not set(FLAGS) & set(given):
        raise ConfigError(
            f"{command} needs the checkpoint of a trained model, as in: "
            f"python cli.py {command} --ckpt_path runs/NAME/TIME/checkpoints/best.ckpt"
            f"{' --out DIR' if command == 'export' else ''}"
        )
    run = next((p for p in list(checkpoint.parents)[:2] if (p / "config.yaml").is_file()), None) if checkpoint else None
    tree, rest = _merged(command, configs, overrides, run)
    return Request(command, argv, configs, tree, rest, checkpoint, run, warnings)


def _to_resume(
    given: dict[str, str | None], configs: list[str], overrides: list[Override], warnings: list[str]
) -> Path | None:
    """The checkpoint that --resume names, by a path or by ``auto``: the newest of the runs of this name, if any."""
    asked = [option for option in OPTIONS["fit"] if given.get(option)]
    if not asked:
        return None
    if len(asked) > 1:
        raise ConfigError(f"{COMMAND_LINE}: --resume and --ckpt_path mean the same to fit; give one of them")
    name = given[asked[0]] or ""
    if name != "auto":
        found = find_resumable(Path(name).expanduser(), warnings)
        if found is None:
            raise _no_checkpoint(asked[0], name, "last.ckpt", warnings)
        return found
    options = _merged("fit", configs, overrides, None)[0].values.get("run") or {}
    root, run = options.get("root") or "runs", options.get("name") or "kunlun"
    return find_resumable(Path(str(root)).expanduser() / str(run), warnings)


def _merged(
    command: str, configs: list[str], overrides: list[Override], run: Path | None
) -> tuple[ConfigTree, list[Override]]:
    """The configuration that the files and options make, and the options that no tree can hold."""
    tree = load_configs([], base=run / "config.yaml") if run and not configs else load_configs(configs)
    for option in {option for options in OPTIONS.values() for option in options}:
        if tree.values.get(option, "") is None:  # as --print_config prints it
            del tree.values[option]
    check_sections(tree, [], SECTIONS)
    check_sections(tree, overrides, [*SECTIONS, *OPTIONS[command]])
    return tree, placed(command, tree, overrides)


def request_of(
    command: str, argv: Iterable[str], configs: list[str], tree: ConfigTree, overrides: Iterable[Override]
) -> Request:
    """Put ``overrides`` into ``tree``, whose sections are known, and keep what no tree can hold."""
    return Request(command, list(argv), configs, tree, placed(command, tree, overrides))


def placed(command: str, tree: ConfigTree, overrides: Iterable[Override]) -> list[Override]:
    """Put ``overrides`` into ``tree``; returns those that it cannot hold."""
    return apply_values(tree, apply_class_overrides(tree, overrides), own=OPTIONS.get(command, ()))


def apply_class_overrides(tree: ConfigTree, overrides: Iterable[Override]) -> list[Override]:
    """Put ``--x.class_path=C`` and ``--x=C`` into the tree: a new class drops the old arguments. Returns the rest."""
    rest = []
    for override in overrides:
        key, value = override.key, override.value
        node: Any = tree.values
        for part in key.removesuffix(".class_path").split("."):
            node = node.get(part) if isinstance(node, dict) else None
        is_class = key.endswith(".class_path") or (isinstance(node, dict) and "class_path" in node)
        if is_class and value and re.fullmatch(r"[A-Za-z_][\w.]*", value):
            if "." not in value and isinstance(node, dict):  # a sibling of the present class, by its bare name
                value = f"{str(node['class_path']).rpartition('.')[0]}.{value}"
            tree.set(f"{key.removesuffix('.class_path')}.class_path", value)
        else:
            rest.append(override)
    return rest


def apply_values(tree: ConfigTree, overrides: Iterable[Override], own: Collection[str]) -> list[Override]:
    """Put ``--key=value`` into the tree; returns what a tree cannot hold: the command's ``own`` options, flags, and
    what changes lists, as in ``--trainer.callbacks+=Class --trainer.callbacks.argument=value``.
    """
    rest, appended = [], []
    for override in overrides:
        key, value = override.key, override.value
        if "+" in key:
            appended.append(f"{key.partition('+')[0]}.")
        is_own = key in own or key in FLAGS or key.endswith(".help")
        if is_own or value is None or "+" in key or key.startswith(tuple(appended)) or tree.crosses_list(key):
            rest.append(override)
            tree.origins[key.partition("+")[0]] = COMMAND_LINE
        else:
            read = parse_value(value)
            tree.set(key, read if isinstance(read, (dict, list)) else Text(value))
    return rest


def check_sections(tree: ConfigTree, overrides: Iterable[Override], sections: Iterable[str]) -> None:
    """Refuse sections that do not exist, before anything heavy is loaded."""
    known = list(sections)
    listed = ", ".join(known)
    for key in tree.values:
        if key not in known:
            raise ConfigError(f"{tree.where(key)}: {key}: unknown section{closest(key, known)} (known: {listed})")
    for override in overrides:
        section = override.key.split(".")[0].removesuffix("+")
        if section not in (*known, *FLAGS):
            hint = closest(section, [*known, *FLAGS])
            raise ConfigError(f"{COMMAND_LINE}: --{override.key}: unknown option{hint} (known: {listed})")
        if override.value is None and section not in FLAGS and not override.key.endswith(".help"):
            raise ConfigError(f"{COMMAND_LINE}: --{override.key}: a value is missing")


def _check_free(name: str) -> None:
    """ConfigError if ``name`` cannot become the folder of an exported model."""
    if not name:
        raise ConfigError(f"{COMMAND_LINE}: export needs the folder to write, as in: --out exported/kunlun")
    path = Path(name).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{COMMAND_LINE}: --out: {shown(path)} exists and is not an empty folder; name another")


def find_checkpoint(name: str, preferred: str) -> Path:
    """The checkpoint file ``name``, or the ``preferred`` one of that run directory, or of the newest run in it."""
    path = Path(name).expanduser()
    if name and path.is_file():
        return path
    if name and (path / "checkpoints" / preferred).is_file():
        return path / "checkpoints" / preferred
    inside = path.glob(f"*/checkpoints/{preferred}") if name and path.is_dir() else ()
    newest = max(inside, key=lambda p: p.stat().st_mtime, default=None)
    if newest is not None:
        return newest
    raise _no_checkpoint("ckpt_path", name, preferred)


def find_resumable(path: Path, warnings: list[str]) -> Path | None:
    """The file ``path``, or the newest intact checkpoint of that run directory, or of the runs in it; None: there is
    none. Each damaged one that is passed over is a warning."""
    if path.is_file():
        return path
    files = [p for folder in (".", "checkpoints", "*/checkpoints") for p in path.glob(f"{folder}/*{SUFFIX}")]
    newest, rejected = newest_intact(files)
    instead = f"going on from {shown(newest)}" if newest else "there is no intact one"
    warnings += [f"{shown(p)} is damaged, or not written by this program: {instead}" for p in rejected]
    return newest


def _no_checkpoint(option: str, name: str, preferred: str, warnings: Iterable[str] = ()) -> ConfigError:
    latest = sorted(Path("runs").glob(f"*/*/checkpoints/{preferred}"), key=lambda p: p.stat().st_mtime)
    hint = f"; the newest is {shown(latest[-1])}" if latest else ""
    told = "".join(f"\n  {warning}" for warning in warnings)
    return ConfigError(f"{COMMAND_LINE}: --{option}: {name!r} is no checkpoint file and no run directory{hint}{told}")


def _as_predict_split(override: Override) -> Override:
    key = "data.init_args.predict_split"
    return Override(key, override.value, (f"--{key}={override.value}",))
