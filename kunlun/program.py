"""A model as a program of torch.export, for any number of rows from two up and any lengths of histories, and that
program compiled by AOTInductor.

Legend: B rows · N packed events of one type.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kunlun.configuration import RunError, shown
from kunlun.features import Batch, FeatureSchema, Jagged


def tensors_of(batch: Batch) -> dict[str, Any]:
    """What a program takes: the tensors of ``batch`` that a model reads, in nested dicts.

    dense (B, n) · sparse (B, F) · request_time (B,) where there is one · events: type → ``offsets`` (B + 1,), and
    ``values``: field → (N,) · bags: field → ``offsets`` and ``values``.

    Raises:
        ValueError: rows share histories; a program takes one per row.
    """
    if batch.history is not None:
        raise ValueError("a program takes a history per row, but rows of this batch share them (history is not None)")
    events = {
        event: {
            "offsets": next(iter(columns.values())).offsets,
            "values": {name: column.values for name, column in columns.items()},
        }
        for event, columns in batch.events.items()
    }
    bags = {name: {"offsets": bag.offsets, "values": bag.values} for name, bag in batch.bags.items()}
    found = {"dense": batch.dense, "sparse": batch.sparse, "events": events, "bags": bags}
    return found if batch.request_time is None else {**found, "request_time": batch.request_time}


class OnTensors(nn.Module):
    """``model`` with the tensors of :func:`tensors_of` for a Batch.

    Args:
        model: maps a Batch to logits (B, tasks).
        schema: that it was built with, for L_max.
        longest_bag: no bag has more values.
    """

    def __init__(self, model: nn.Module, schema: FeatureSchema, longest_bag: int = 0) -> None:
        super().__init__()
        self.model = model
        self.schema = schema
        self.longest_bag = longest_bag

    def forward(self, tensors: dict[str, Any]) -> Tensor:
        """Logits (B, tasks)."""
        dense: Tensor = tensors["dense"]
        rows = dense.shape[0]
        events = {}
        for event in self.schema.events:
            given = tensors["events"][event.name]
            events[event.name] = {
                name: Jagged(values, given["offsets"], event.max_length) for name, values in given["values"].items()
            }
        return self.model(
            Batch(
                labels=dense.new_zeros(rows, len(self.schema.tasks)),
                dense=dense,
                sparse=tensors["sparse"],
                row=torch.arange(rows, device=dense.device),
                bags={k: Jagged(bag["values"], bag["offsets"], self.longest_bag) for k, bag in tensors["bags"].items()},
                events=events,
                request_time=tensors.get("request_time"),
            )
        )


def to_program(model: nn.Module, batch: Batch) -> ExportedProgram:
    """``model``, in eval mode, as a program of :func:`tensors_of` → logits (B, tasks).

    Args:
        model: has a ``schema``, as the models of this project.
        batch: an example of at least two rows and events of every type: torch.export takes a size of 0 or 1 for fixed.

    Raises:
        ValueError: rows of the example share histories.
        RunError: the model's Python depends on the values of the batch, which torch.export cannot follow.
    """
    schema: FeatureSchema = model.schema  # type: ignore[assignment]
    tensors = tensors_of(batch)
    longest = max((bag.max_length for bag in batch.bags.values()), default=0)
    module = OnTensors(model, schema, longest).eval()
    try:
        with torch.no_grad():
            return torch.export.export(module, (tensors,), dynamic_shapes=(_dynamic(tensors),), strict=False)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"torch.export makes no program of {type(model).__name__} from this batch: {reason}") from error


def write_package(program: ExportedProgram, path: Path) -> None:
    """Compile ``program`` with AOTInductor to one file, ``path`` (``….pt2``), for this kind of machine.

    Raises:
        RunError: there is no C++ compiler, or it fails.
    """
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"AOTInductor compiled nothing to {shown(path)} (it needs a C++ compiler): {reason}") from error


def _dynamic(value: Any) -> Any:
    return {key: _dynamic(item) for key, item in value.items()} if isinstance(value, dict) else {0: Dim.DYNAMIC}
