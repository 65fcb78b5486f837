"""How Lightning reads and writes checkpoints here: sealed, atomically, and never as anything but plain data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from kunlun.checkpoints import require_whole, write_checkpoint
from kunlun.configuration import RunError, shown


class SealedCheckpointIO(CheckpointIO):
    """Streams to the disk without a copy in memory, and maps what it reads instead of loading all of it at once."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """CheckpointNotSaved: the disk does not take it."""
        write_checkpoint(Path(path), lambda file: torch.save(checkpoint, cast("IO[bytes]", file)))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """RunError: the file is damaged, or holds more than tensors and plain values, whatever the caller asks for."""
        path = Path(path)
        require_whole(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RunError(
                f"{shown(path)} was not loaded: it is no checkpoint of tensors and plain values, and might run code "
                f"({reason[0][:200]}). Use a checkpoint that cli.py fit wrote."
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
