"""In a resumed run, the options of its command line win over those that its checkpoint remembers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim.lr_scheduler import ReduceLROnPlateau

_RATES = {"lr", "initial_lr"}
_PLATEAU = ("factor", "patience", "mode", "min_lrs")


class ResumedOptions(Callback):
    """Gives a restored optimizer the rates and decays of this run's configuration.

    Lightning restores a whole optimizer, options and all. What a schedule has made of a learning rate stays: it is
    scaled by the ratio of the new rate to the old one. Where no option has changed, nothing is touched.
    """

    def __init__(self) -> None:
        self._options: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] | None = None
        self._plateau: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers are built by now, and not yet restored.
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._options = [{key: value for key, value in g.items() if key != "params"} for g in groups]
        for config in trainer.lr_scheduler_configs:
            # The schedule has already applied its first factor.
            for options, peak in zip(self._options, getattr(config.scheduler, "base_lrs", []), strict=False):
                options["lr"] = peak
            if isinstance(config.scheduler, ReduceLROnPlateau):
                self._plateau = {name: getattr(config.scheduler, name) for name in _PLATEAU}

    def state_dict(self) -> dict[str, Any]:
        return {"options": self._options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["options"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        ratios = [new["lr"] / old["lr"] for old, new in zip(before, self._options, strict=True)]
        for group, ratio, new in zip(groups, ratios, self._options, strict=True):
            group.update({key: value for key, value in new.items() if key not in _RATES})
            for key in _RATES & group.keys():
                group[key] *= ratio
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [lr * r for lr, r in zip(scheduler.base_lrs, ratios, strict=True)]
            if isinstance(scheduler, ReduceLROnPlateau):
                for name, value in self._plateau.items():
                    setattr(scheduler, name, value)


class Patience(EarlyStopping):
    """Early stopping whose patience is this run's, and which a resumed run obeys if it had already stopped."""

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        # At once after a validation: a run that is resumed behind it no longer knows its metrics.
        super().__init__(monitor, mode=mode, patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
