"""The one entry: python cli.py COMMAND; `COMMANDS` has them.

Everything heavy is imported on demand.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Our `data` and `kernels` come before any installed package of these names, even under `python -P`.
_ROOT = str(Path(__file__).resolve().parent)
sys.path[:] = [_ROOT, *(entry for entry in sys.path if entry != _ROOT)]
# The user's own package may lie where the command is typed; it comes last.
sys.path.append(os.getcwd())

# Huge pages, where the system has them, for the embedding tables: far fewer address look-ups miss.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Idle OpenMP threads sleep, not spin: on a machine that others use too, spinning stalls every small operation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kunlun.configuration import ConfigError, RunError, closest  # noqa: E402

if TYPE_CHECKING:
    from data.preparation import DataSet

COMMANDS = {
    "fit": "train a model",
    "validate": "metrics of a checkpoint on the valid split",
    "test": "metrics of a checkpoint on the test split",
    "predict": "probabilities of a checkpoint for every row, as Parquet",
    "export": "the model of a checkpoint as a folder that loads without Lightning",
    "benchmark": "how fast a model trains and answers, its FLOPs, MFU, parameters and memory",
    "ablate": "train every variant of a matrix with every seed, and write the table and the report",
    "scaling": "train ladders of models from small to large and fit how quality grows with FLOPs",
    "dashboard": "make the workspace of a W&B project (needs a login)",
    "prepare": "turn the raw files of a data set into prepared data",
    "generate": "write made-up raw files in the layout of a public data set",
    "inspect": "show what is in a prepared data set, as text and as a page with charts",
}
EXAMPLES = """\
  python cli.py fit --config ablations/kunlun.yaml
  python cli.py fit --config ablations/no_gdpa.yaml --trainer.max_epochs 3
  python cli.py ablate --config ablations/matrix.yaml --seeds 3 --jobs 2
  python cli.py prepare criteo --raw train.txt --out prepared/criteo
  python cli.py fit --config data/criteo.yaml --data.path prepared/criteo
  python cli.py test --ckpt_path runs/NAME/TIME/checkpoints/best.ckpt"""


def _sentence(command: str) -> str:
    return COMMANDS[command][0].upper() + COMMANDS[command][1:]


def help_text() -> str:
    commands = "\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: python cli.py COMMAND [options]\n\ncommands:\n{commands}\n\nexamples:\n{EXAMPLES}\n\n"
        "python cli.py COMMAND --help lists the options of a command. A run's configuration is configs/base.yaml,\n"
        "then every --config in turn (as given, or under configs/), then options such as --data.batch_size 256."
    )


def prepare(argv: list[str]) -> int:
    """``prepare DATASET --raw FILE_OR_DIR --out DIR``: its other options are the fields of the data set's dataclass.

    A data set may have other paths than these.
    """
    from data.preparation import DATASETS, DataError

    chosen = _choose("prepare", "data set", DATASETS, ("raw", "out"), argv)
    if isinstance(chosen, int):
        return chosen
    name, paths, options = chosen
    try:
        importlib.import_module(DATASETS[name].module).prepare(*paths, options)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return 0


def generate(argv: list[str]) -> int:
    """``generate LAYOUT --out DIR``: its other options are the fields of the layout's dataclass."""
    from data.generate import LAYOUTS
    from data.generate import generate as write_raw_files
    from data.preparation import DataError

    chosen = _choose("generate", "layout", LAYOUTS, ("out",), argv)
    if isinstance(chosen, int):
        return chosen
    name, (out,), options = chosen
    try:
        write_raw_files(name, out, options)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return 0


def inspect(argv: list[str]) -> int:
    """``inspect DIR``: its options are the fields of InspectionOptions. ``inspect synthetic``: the synthetic world."""
    from data.inspection.options import InspectionOptions
    from data.preparation import DataError

    if argv and argv[0] == "synthetic":
        return _inspect_synthetic(argv[1:])
    if {"-h", "--help"} & set(argv):
        summary = f"{_sentence('inspect')}. Of a synthetic world: inspect synthetic --help."
        return _options_help("inspect DIR", summary, (), InspectionOptions)
    if not argv or argv[0].startswith("-"):
        raise ConfigError("inspect needs a prepared data set first, as in: python cli.py inspect DIR --html page.html")
    _, options = _read_options("inspect", argv[1:], (), InspectionOptions)
    try:
        importlib.import_module("data.inspection.prepared").show_prepared(Path(argv[0]).expanduser(), options)
    except DataError as error:
        raise ConfigError(f"inspect: {error}") from error
    return 0


# Experiments of many runs: the module, its options, the file of an example, and what lies under what.
EXPERIMENTS = {
    "ablate": ("ablate", "matrix.MatrixOptions", "ablations/matrix.yaml", "variant"),
    "scaling": ("scaling", "scaling.ScalingOptions", "scaling/kunlun.yaml", "model"),
}


def experiment(command: str, argv: list[str]) -> int:
    """``COMMAND --config EXPERIMENT.yaml``: its own options are the fields of the experiment's dataclass."""
    package, (name, options, config, each) = "kunlun.experiments", EXPERIMENTS[command]
    if {"-h", "--help"} & set(argv):
        module, _, options_class = options.partition(".")
        text = f"{_sentence(command)}. Further --config files and options of a run lie under every {each}."
        found = getattr(importlib.import_module(f"{package}.{module}"), options_class)
        return _options_help(f"{command} --config {config}", text, (), found)
    return importlib.import_module(f"{package}.{name}").main(argv)


def dashboard(argv: list[str]) -> int:
    """``dashboard --project P``: its options are the fields of DashboardOptions."""
    from kunlun.experiments.dashboard import DashboardOptions, save_workspace

    if {"-h", "--help"} & set(argv):
        return _options_help("dashboard", f"{_sentence('dashboard')}.", (), DashboardOptions)
    _, options = _read_options("dashboard", argv, (), DashboardOptions)
    print(f"saved: {save_workspace(options)}")
    return 0


def _inspect_synthetic(argv: list[str]) -> int:
    from data.preparation import DataError
    from data.synthetic_options import SyntheticInspectionOptions

    if {"-h", "--help"} & set(argv):
        summary = "Show what is in a synthetic world, and what its oracle knows."
        return _options_help("inspect synthetic", summary, (), SyntheticInspectionOptions)
    _, options = _read_options("inspect synthetic", argv, (), SyntheticInspectionOptions)
    try:
        importlib.import_module("data.synthetic_inspection").show_world(options)
    except DataError as error:
        raise ConfigError(f"inspect synthetic: {error}") from error
    return 0


# The options that are paths: what stands for one in the usage, and the help.
PATHS = {
    "raw": ("FILE_OR_DIR", "The raw file, the directory or zip archive that holds it, or hf://datasets/OWNER/NAME."),
    "impressions": ("FILE_OR_DIR", "The table of impressions: Parquet or CSV, a file or a directory of files."),
    "events": ("FILE_OR_DIR", "The event log that histories are made of, likewise; without it there are none."),
    "schema": ("FILE.yaml", "What the columns mean."),
    "out": ("DIR", "The directory to write."),
}


def _choose(
    command: str, kind: str, entries: Mapping[str, DataSet], paths: tuple[str, ...], argv: list[str]
) -> tuple[str, list[Any], Any] | int:
    """The name that ``argv`` chooses among ``entries``, its paths and its checked options; the exit code after help.

    ``paths``: the options of entries that name none of their own.
    """
    if not argv or argv[0] in ("-h", "--help"):
        usage = f"usage: python cli.py {command} {kind.replace(' ', '').upper()} {_usage(paths)} [options]"
        listed = "\n".join(f"  {name:<14}{entry.summary}" for name, entry in entries.items())
        text = f"{usage}\n\n{kind}s:\n{listed}\n\npython cli.py {command} {usage.split()[4]} --help lists the options."
        print(text, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name = argv[0]
    if name not in entries:
        known = ", ".join(entries)
        raise ConfigError(f"{command}: unknown {kind} {name!r}{closest(name, entries)} (known: {known})")
    entry = entries[name]
    options_class = getattr(importlib.import_module(entry.module), entry.options)
    if {"-h", "--help"} & set(argv):
        return _options_help(f"{command} {name}", entry.summary, entry.paths or paths, options_class, entry.optional)
    return name, *_read_options(f"{command} {name}", argv[1:], entry.paths or paths, options_class, entry.optional)


def _usage(paths: tuple[str, ...]) -> str:
    return " ".join(f"--{key} {PATHS[key][0]}" for key in paths)


def _options_help(
    command: str, summary: str, paths: tuple[str, ...], options_class: type, optional: tuple[str, ...] = ()
) -> int:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"cli.py {command}", description=summary)
    for key in paths:
        parser.add_argument(f"--{key}", type=str, required=key not in optional, help=PATHS[key][1])
    parser.add_class_arguments(options_class)
    parser.print_help()
    return 0


def _read_options(
    command: str, argv: list[str], paths: tuple[str, ...], options_class: type, optional: tuple[str, ...] = ()
) -> tuple[list[Any], Any]:
    """The paths and the checked options; dashes in their names are as good as underscores.

    An ``optional`` path that is not given is None.
    """
    from data.hub import HUB, locate
    from kunlun.command_line import split_arguments
    from kunlun.config_check import read_options
    from kunlun.configuration import Text

    given = {o.key.replace("-", "_"): Text("true" if o.value is None else o.value) for o in split_arguments(argv)[1]}
    needed = tuple(key for key in paths if key not in optional or key in given)
    found = {key: os.path.expanduser(given.pop(key, "")) for key in needed}
    if "" in found.values():
        raise ConfigError(f"{command} needs {_usage(needed).replace(' --', ' and --')}")
    for key, path in found.items():
        if key != "out" and not (os.path.exists(path) or (key == "raw" and path.startswith(HUB))):
            raise ConfigError(f"{command}: --{key} {path}: no such file or directory")
    options: Any = read_options(command, given, options_class)
    try:
        places = {key: locate(path) if key == "raw" else Path(path) for key, path in found.items()}
    except ValueError as error:
        raise ConfigError(f"{command}: {error}") from error
    return [places.get(key) for key in paths], options


# The commands that read their arguments themselves.
OWN = {"prepare": prepare, "generate": generate, "inspect": inspect, "dashboard": dashboard}


def run(argv: list[str]) -> int:
    """Dispatch one command line; the exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise ConfigError(f"unknown command {command!r}{closest(command, COMMANDS)} (known: {', '.join(COMMANDS)})")
    if command in EXPERIMENTS:
        return experiment(command, rest)
    if command in OWN:
        return OWN[command](rest)

    # Each of these lines imports more than the one before, so a mistake is refused as early as it can be.
    from kunlun.command_line import read_request

    request = read_request(command, rest)
    from kunlun.training.precheck import precheck

    checker = precheck(request)
    if command == "benchmark":
        from kunlun.experiments.benchmark import main as measure

        return measure(request, checker)
    from kunlun.training.cli import main as train

    return train(request, checker)


def main() -> int:
    try:
        return run(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
