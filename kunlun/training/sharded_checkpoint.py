"""Sharded tables on disk: a folder of safetensors beside the checkpoint, that any number of processes reads.

``torch.distributed.checkpoint`` writes and reads it, each process its own rows and no table whole, in the format that
needs no pickle. Needs no TorchRec, so that a plain model can take the tables over.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from kunlun.configuration import RunError, shown
from kunlun.layers.embedding import EmbeddingTables

KEY = "sharded_tables"
"""Of a checkpoint: the path of the folder with its tables, which is looked for beside the checkpoint first."""


def write_tables(folder: Path, tensors: Mapping[str, Any], names: list[str]) -> None:
    """Write what this process has of the tables; all processes have to call it.

    Args:
        folder: to make; the caller names it when all are done.
        tensors: by key.
        names: all keys, also those that this process lacks; a file is written for each, so that no more than one
            table's part is copied in memory.
    """
    files = {name: number for number, name in enumerate(sorted(names), start=1)}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with _quiet():
        dcp.save(dict(tensors), storage_writer=writer)


def read_tables(folder: Path, tensors: Mapping[str, Any], alone: bool = False) -> None:
    """Fill ``tensors`` in place, however many processes wrote the folder; unless ``alone``, all have to call it.

    RunError: a table is missing, has another size, or a file is damaged.
    """
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise RunError(f"{shown(folder)} does not hold the tables of this model: {reason}") from error


def folder_of(checkpoint: Mapping[str, Any], path: Path) -> Path:
    """Where the tables of the checkpoint in the file ``path`` are; RunError if they are gone."""
    written = Path(checkpoint[KEY])
    places = [path.resolve().parent / written.name, written]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise RunError(
            f"{shown(path)} has its tables in the folder {written.name}, which is neither beside it nor at "
            f"{shown(written)}: put it beside the checkpoint"
        )
    return found


def remove_unused(folder: Path) -> None:
    """Remove the tables in ``folder`` that none of its checkpoints refers to any more."""
    used = set()
    for path in folder.glob("*.ckpt"):
        with suppress(Exception):  # a damaged checkpoint needs no tables
            used.add(Path(torch.load(path, map_location="cpu", weights_only=True, mmap=True)[KEY]).name)
    for tables in folder.glob("step-*.tables"):
        if tables.name not in used:
            shutil.rmtree(tables, ignore_errors=True)


def plain_state(module: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, for ``module.load_state_dict``; its sharded tables become plain ones.

    Args:
        module: with plain tables, whose memory is used.
        checkpoint: as read from the file ``path``.
    """
    state = dict(checkpoint["state_dict"])
    if KEY not in checkpoint:
        return state
    for name, child in module.named_modules():
        if isinstance(child, EmbeddingTables):
            tensors = {f"{table}.rows": child.weight(table).detach() for table in child.rows}
            read_tables(folder_of(checkpoint, path), tensors, alone=True)
            state |= {f"{name}.{key}": value for key, value in child.state_dict().items()}
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on classes that TorchRec still uses, and on there being one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecating ShardedTensor")
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled, unavailable or uninitialized")
        yield
