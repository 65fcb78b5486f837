"""A trained model as a folder of plain data: weights, the model's configuration, the schema. Needs no Lightning.

``model.safetensors`` · ``config.yaml``: the ``model`` section of the run · ``schema.json`` · ``export.json``: the
checksums of these, and where the model comes from · ``README.md``: the same for people. Nothing in it is unpickled;
``class_path`` in ``config.yaml`` names the code that is imported.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kunlun.config_check import ConfigChecker
from kunlun.configuration import ConfigError, ConfigTree, RunError, dump_yaml, load_configs, shown
from kunlun.features import SCHEMA_FILE, FeatureSchema

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
RECORD_FILE = "export.json"
README_FILE = "README.md"
EXPORT_FORMAT = 1


class ExportError(RunError):
    """An exported model cannot be written or loaded; the message says which file is at fault and why."""


def write_exported(
    directory: Path, model: nn.Module, config: Mapping[str, Any], schema: FeatureSchema, record: Mapping[str, Any]
) -> None:
    """Write ``model`` to the folder ``directory``, whole or not at all.

    Args:
        directory: must not exist, or be empty.
        model: whose weights are written.
        config: ``class_path`` and ``init_args`` that build it, without the schema.
        schema: that it was built with.
        record: where it comes from, as plain values, for ``export.json``.

    Raises:
        ExportError: the folder holds something, or the disk does not take it.
    """
    directory = directory.resolve()
    partial = directory.with_name(f".{directory.name}.partial-{secrets.token_hex(3)}")
    try:
        partial.mkdir(parents=True)
        save_file(_own_tensors(model), partial / WEIGHTS_FILE)
        (partial / CONFIG_FILE).write_text(dump_yaml({"model": config}), encoding="utf-8")
        # safetensors makes its file for the owner alone; it is as readable as the rest.
        (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
        (partial / SCHEMA_FILE).write_text(schema.to_json(), encoding="utf-8")
        files = {name: _digest(partial / name) for name in (WEIGHTS_FILE, CONFIG_FILE, SCHEMA_FILE)}
        tasks = {task.name: task.train_rate for task in schema.tasks}
        told = {"format": EXPORT_FORMAT, "train_rate": tasks, **record, "files": files}
        (partial / RECORD_FILE).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / README_FILE).write_text(_readme(str(config["class_path"]), schema, record), encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(directory)  # onto nothing, or an empty folder: the system refuses any other
    except (OSError, SafetensorError) as error:
        occupied = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
        reason = "it exists and is not an empty folder" if occupied else getattr(error, "strerror", None) or error
        raise ExportError(f"{shown(directory)} was not written: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_exported(directory: str | Path) -> nn.Module:
    """The model in ``directory``, on the CPU and in eval mode: a Batch → logits (B, tasks).

    The class that ``config.yaml`` names is imported, so one of your own must be importable. The state of torch's random
    number generator stays as it was.

    Raises:
        ExportError: a file is missing, was changed or cut short; the class is not there, or no nn.Module; its arguments
            or its sizes do not fit.
    """
    folder = Path(directory)
    _check_files(folder)
    try:
        schema = FeatureSchema.load(folder)
        tree = load_configs([], base=folder / CONFIG_FILE)
        with torch.random.fork_rng(devices=[]):  # the values drawn at construction are not kept
            model = _build(tree, schema)
        tensors = load_file(folder / WEIGHTS_FILE)
    except (ConfigError, ValueError) as error:
        raise ExportError(str(error)) from error
    except SafetensorError as error:
        raise ExportError(f"{shown(folder / WEIGHTS_FILE)} is no safetensors file: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = "\n".join(str(error).splitlines()[1:4])
        raise ExportError(
            f"{shown(folder / WEIGHTS_FILE)} does not fit the model of {CONFIG_FILE}:\n{first}"
        ) from error
    return model.eval()


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers on the CPU; safetensors takes none that share memory, as tied weights do."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: Path) -> None:
    """ExportError unless every file is there and as it was written."""
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, files = record["format"], dict(record["files"])
    except OSError as error:
        hint = "make one with: python cli.py export --ckpt_path RUN --out DIR"
        raise ExportError(f"{shown(folder)} is no exported model: {RECORD_FILE}: {error.strerror}; {hint}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{shown(path)} cannot be read ({error!r}); export the model again") from error
    if version != EXPORT_FORMAT:
        raise ExportError(f"{shown(path)}: format {version!r} cannot be read here (known: {EXPORT_FORMAT})")
    for name in (WEIGHTS_FILE, CONFIG_FILE, SCHEMA_FILE):
        try:
            digest = _digest(folder / name)
        except OSError as error:
            raise ExportError(f"{shown(folder / name)}: {error.strerror}; export the model again") from error
        if digest != files.get(name):
            raise ExportError(f"{shown(folder / name)} was cut short or changed after the export; export it again")


def _build(tree: ConfigTree, schema: FeatureSchema) -> nn.Module:
    """The model that the ``model`` section of ``tree`` describes; ConfigError or ValueError says what is wrong."""
    checker, section = ConfigChecker(tree), tree.values.get("model")
    try:
        checker.component("model", section, (nn.Module,), linked={"schema"})
        module, _, name = section["class_path"].rpartition(".")  # type: ignore[index]
        cls = getattr(importlib.import_module(module), name) if module else None
    except ImportError as error:
        raise ConfigError(f"{tree.where('model.class_path')}: model.class_path: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        checker.fail("model.class_path", f"{section['class_path']} is no Module")  # type: ignore[index]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "model", skip={"schema"}, instantiate=False)
    try:
        parsed = parser.parse_object({"model": section.get("init_args") or {}})  # type: ignore[union-attr]
        return cls(schema=schema, **vars(parser.instantiate(parsed).model))
    except Exception as error:  # a constructor may raise anything
        raise ConfigError(f"{tree.where('model')}: model: {cls.__name__} cannot be built: {error}") from error


def _readme(class_path: str, schema: FeatureSchema, record: Mapping[str, Any]) -> str:
    lines = [f"- {key}: {value}" for key, value in record.items() if isinstance(value, (str, int))]
    rates = [f"- positive rate of {task.name!r} in training: {task.train_rate:g}" for task in schema.tasks]
    return "\n".join(
        [
            f"# {class_path.rpartition('.')[2]} on {schema.name}",
            "",
            *lines,
            *rates,
            "",
            "```python",
            "from kunlun.exported import load_exported",
            "",
            'model = load_exported("this folder")  # a Batch -> logits (B, tasks)',
            "```",
            "",
            f"`{RECORD_FILE}` has the versions of the libraries and the checksums of the files.",
            "",
        ]
    )
