"""The one entry: python cli.py fit | validate | test | predict | prepare. Everything heavy is imported on demand."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

# Our `data` and `kernels` come before any installed package of these names, even under `python -P`.
_ROOT = str(Path(__file__).resolve().parent)
sys.path[:] = [_ROOT, *(entry for entry in sys.path if entry != _ROOT)]
# The user's own package may lie where the command is typed; it comes last.
sys.path.append(os.getcwd())

# Huge pages, where the system has them, for the embedding tables: far fewer address look-ups miss.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Idle OpenMP threads sleep, not spin: on a machine that others use too, spinning stalls every small operation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kunlun.configuration import ConfigError, closest  # noqa: E402

COMMANDS = {
    "fit": "train a model",
    "validate": "metrics of a checkpoint on the valid split",
    "test": "metrics of a checkpoint on the test split",
    "predict": "probabilities of a checkpoint for every row, as Parquet",
    "prepare": "turn the raw files of a data set into prepared data",
}
EXAMPLES = """\
  python cli.py fit --config ablations/kunlun.yaml
  python cli.py fit --config ablations/no_gdpa.yaml --trainer.max_epochs 3
  python cli.py prepare criteo --raw train.txt --out prepared/criteo
  python cli.py fit --config data/criteo.yaml --data.path prepared/criteo
  python cli.py test --ckpt_path runs/NAME/TIME/checkpoints/best.ckpt"""


def help_text() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: python cli.py COMMAND [options]\n\ncommands:\n{commands}\n\nexamples:\n{EXAMPLES}\n\n"
        "python cli.py COMMAND --help lists the options of a command. A run's configuration is configs/base.yaml,\n"
        "then every --config in turn (as given, or under configs/), then options such as --data.batch_size 256."
    )


def prepare(argv: list[str]) -> int:
    """``prepare DATASET --raw FILE_OR_DIR --out DIR``: its other options are the fields of the data set's dataclass."""
    from data.preparation import DATASETS, DataError

    if not argv or argv[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<14}{entry.summary}" for name, entry in DATASETS.items())
        text = f"usage: python cli.py prepare DATASET --raw FILE_OR_DIR --out DIR [options]\n\ndata sets:\n{listed}\n"
        print(
            f"{text}\npython cli.py prepare DATASET --help lists the options.", file=sys.stdout if argv else sys.stderr
        )
        return 0 if argv else 2
    name = argv[0]
    if name not in DATASETS:
        raise ConfigError(f"prepare: unknown data set {name!r}{closest(name, DATASETS)} (known: {', '.join(DATASETS)})")
    module = importlib.import_module(DATASETS[name].module)
    options_class = getattr(module, DATASETS[name].options)
    if {"-h", "--help"} & set(argv):
        return _prepare_help(name, DATASETS[name].summary, options_class)
    raw, out, options = _prepare_options(name, argv[1:], options_class)
    try:
        module.prepare(raw, out, options)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return 0


def _prepare_help(name: str, summary: str, options_class: type) -> int:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"cli.py prepare {name}", description=summary)
    parser.add_argument("--raw", type=str, required=True, help="The raw file, or the directory that holds it.")
    parser.add_argument("--out", type=str, required=True, help="The directory to write.")
    parser.add_class_arguments(options_class)
    parser.print_help()
    return 0


def _prepare_options(name: str, argv: list[str], options_class: type) -> tuple[Path, Path, Any]:
    """The raw and the output path, and the checked options; dashes in their names are as good as underscores."""
    from kunlun.command_line import split_arguments
    from kunlun.config_check import ConfigChecker
    from kunlun.configuration import ConfigTree, Text

    given = {o.key.replace("-", "_"): Text("true" if o.value is None else o.value) for o in split_arguments(argv)[1]}
    paths = [Path(given.pop(key, "")).expanduser() for key in ("raw", "out")]
    if Path() in paths:
        raise ConfigError(f"prepare {name} needs --raw FILE_OR_DIR and --out DIR")
    if not paths[0].exists():
        raise ConfigError(f"prepare {name}: --raw {paths[0]}: no such file or directory")
    checker = ConfigChecker(ConfigTree({"options": given}))
    try:
        checker.arguments("options", given, options_class)
        return paths[0], paths[1], options_class(**checker.settle(given, "options"))
    except ConfigError as error:
        raise ConfigError(str(error).replace("command line: options.", f"prepare {name}: --", 1)) from None
    except ValueError as error:
        raise ConfigError(f"prepare {name}: {error}") from error


def run(argv: list[str]) -> int:
    """Dispatch one command line; the exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise ConfigError(f"unknown command {command!r}{closest(command, COMMANDS)} (known: {', '.join(COMMANDS)})")
    if command == "prepare":
        return prepare(rest)

    # Each of these lines imports more than the one before, so a mistake is refused as early as it can be.
    from kunlun.command_line import read_request

    request = read_request(command, rest)
    from kunlun.training.precheck import precheck

    checker = precheck(request)
    from kunlun.training.cli import main as train

    return train(request, checker)


def main() -> int:
    try:
        return run(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
