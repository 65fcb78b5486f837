"""The random numbers of a run: part of its checkpoints, and not moved by validation."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def random_state() -> dict[str, Any]:
    """Of Python, numpy, torch and every GPU, as lists and tensors that ``weights_only=True`` loads."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  (the global one)
    return {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers that followed ``state``; those of GPUs as far as there are as many as then."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)


class RandomState(Callback):
    """Saves the random state of every process; puts it back when training starts again and after each validation."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Validation has moved the numbers, but will not have, as soon as it is over.
        state = self._before_validation or random_state()
        states = [state]
        if trainer.world_size > 1:
            states = [state] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_state"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("random_state", [])
        self._restored = states[trainer.global_rank] if trainer.global_rank < len(states) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: setting up models, loaders and the first validation draws numbers of its own.
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None
        elif trainer.global_rank:  # other rows, other dropout; models were made from the same numbers before
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_validation = random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None
