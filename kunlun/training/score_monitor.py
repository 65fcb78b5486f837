"""Logs how large the scores of GDPA are, per tower, layer and head: the first sign of a PFFN that does nothing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kunlun.layers.gdpa import GDPA, PersonalizedBlock


class ScoreMonitor(Callback):
    """On the first batch of each validation: ``scores/<module>/head<h>``, the standard deviation of the argument of the
    activation. Under about 0.1 a GELU is a straight line and GDPA a linear map; far above 1 it is a hinge."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or trainer.sanity_checking:
            return
        for name, module in pl_module.named_modules():
            if isinstance(module, PersonalizedBlock) and isinstance(module.inner, GDPA):
                self._handles.append(module.register_forward_pre_hook(_logger(pl_module, name)))

    def on_validation_batch_end(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _logger(pl_module: LightningModule, name: str) -> Any:
    def log(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, PersonalizedBlock)
        assert isinstance(module.inner, GDPA)
        sequence, context = inputs
        stds: Tensor = module.inner.score_std(sequence.with_values(module.norm(sequence.values)), context)
        for head, std in enumerate(stds.tolist()):
            pl_module.log(f"scores/{name.removeprefix('model.')}/head{head}", std, batch_size=1)

    return log
