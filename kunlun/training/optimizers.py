"""Optimizers: AdamW for dense parameters and row-wise Adagrad for embedding tables, in one torch Optimizer.

A step costs time in proportion to the table rows it touches, never to the rows the table has, and a table costs one
float32 of state per row. The param groups are named "dense", "no_decay" and "tables".

Legend: N rows of a table, D its width, K its lookups in a step, R the distinct rows among them.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from kunlun.layers.sharded_tables import ShardedTables
from kunlun.training.fused_tables import FusedTables
from kunlun.training.row_wise_adagrad import Float32StateOptimizer, RowWiseAdagrad, evaluate


@dataclass
class OptimizerConfig:
    """Learning rates, regularisation and schedule; schedules count optimizer steps, not batches."""

    lr: float = 1e-3
    """Peak learning rate of AdamW, for every parameter that is not an embedding table."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient mean and the mean squared gradient."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay; biases, norms and 1-d parameters are exempt (group "no_decay")."""
    table_lr: float = 0.02
    """Peak learning rate of row-wise Adagrad: about the size of a row's first update, whatever the loss scale."""
    table_eps: float = 1e-8
    """Added to the root of a row's accumulator; mean-loss gradients of tables are small, so keep it below 1e-6."""
    table_initial_accumulator: float = 0.0
    """Value a row's accumulator starts with; larger values shrink the first updates of a row."""
    table_weight_decay: float = 0.0
    """L2 penalty on the rows a step touches, as a gradient `table_weight_decay * row`; other rows do not decay."""
    schedule: Literal["constant", "cosine", "linear", "plateau"] = "constant"
    """What follows the warm-up: no change, decay over the remaining steps, or a cut when the monitor stalls."""
    warmup_steps: int = 0
    """Optimizer steps over which learning rates rise linearly to their peak; 0 starts at the peak."""
    min_lr_ratio: float = 0.0
    """Share of the peak learning rate at which every decay stops."""
    plateau_factor: float = 0.1
    """What a stalled monitor multiplies learning rates by (schedule "plateau")."""
    plateau_patience: int = 0
    """Validations without improvement to wait before a cut (schedule "plateau")."""
    plateau_monitor: str = "valid/ne"
    """Logged value to watch (schedule "plateau")."""
    plateau_mode: Literal["min", "max"] = "min"
    """Whether the monitor improves by falling or by rising (schedule "plateau")."""
    tables_follow_schedule: bool = True
    """Whether warm-up and decay also scale `table_lr`; otherwise Adagrad's own decay is the only one."""

    def __post_init__(self) -> None:
        positive, not_negative = (lambda v: 0 < v < math.inf), (lambda v: 0 <= v < math.inf)
        _require(self, "a finite number above 0", positive, "lr", "table_lr", "table_eps")
        _require(self, "finite, 0 or more", not_negative, "weight_decay", "table_weight_decay", "warmup_steps")
        _require(self, "finite, 0 or more", not_negative, "table_initial_accumulator", "plateau_patience")
        _require(self, "two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= x < 1 for x in v), "betas")
        _require(self, "in [0, 1]", lambda v: 0 <= v <= 1, "min_lr_ratio")
        _require(self, "strictly between 0 and 1", lambda v: 0 < v < 1, "plateau_factor")
        for name, values in (
            ("schedule", ("constant", "cosine", "linear", "plateau")),
            ("plateau_mode", ("min", "max")),
        ):
            _require(self, f"one of {', '.join(values)}", values.__contains__, name)


def _require(config: OptimizerConfig, rule: str, holds: Callable[[Any], bool], *names: str) -> None:
    for name in names:
        if not holds(getattr(config, name)):
            raise ValueError(f"optimizer: {name} is {getattr(config, name)!r}, but must be {rule}")


class CompositeOptimizer(Float32StateOptimizer):
    """Several optimizers behind the interface of one, for trainers that optimise automatically with exactly one.

    Param groups and state are shared with the inner optimizers, also after `load_state_dict`, copying or unpickling;
    `state_dict` has the format of a plain torch optimizer over the concatenated param groups.

    Args:
        optimizers: they must not share parameters (ValueError).
    """

    optimizers: list[Optimizer]

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = list(optimizers)
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure once, then step every inner optimizer; returns the closure's loss."""
        loss = evaluate(closure)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: it would not say which inner optimizer owns the group."""
        if hasattr(self, "optimizers"):
            raise NotImplementedError("CompositeOptimizer cannot grow: build a new one from optimizers with the group")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def sparse_tables(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights of embeddings with `sparse=True`, under every name that they have in `model`."""
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad
    }


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> CompositeOptimizer:
    """Row-wise Adagrad for the weights of embeddings with `sparse=True`, AdamW for all other trainable parameters.

    Sharded tables bring their own row-wise Adagrad; it gets the learning rate of its group, "tables".

    Raises:
        ValueError: the model has no trainable parameter.
    """
    tables = set(sparse_tables(model).values())
    no_decay: set[Tensor] = set()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
            no_decay.update(module.parameters(recurse=False))
    groups: dict[str, list[nn.Parameter]] = {"dense": [], "no_decay": [], "tables": []}
    for name, param in model.named_parameters():
        if param in tables:
            group = "tables"
        elif param in no_decay or param.ndim < 2 or name.endswith("bias"):
            group = "no_decay"
        else:
            group = "dense"
        if param.requires_grad:
            groups[group].append(param)

    dense = [
        {"params": groups[name], "name": name, "weight_decay": decay}
        for name, decay in (("dense", config.weight_decay), ("no_decay", 0.0))
        if groups[name]
    ]
    optimizers: list[Optimizer] = []
    if dense:
        optimizers.append(AdamW(dense, lr=config.lr, betas=config.betas))
    if groups["tables"]:
        table_group = [{"params": groups["tables"], "name": "tables"}]
        adagrad = RowWiseAdagrad(
            table_group, config.table_lr, config.table_eps, config.table_initial_accumulator, config.table_weight_decay
        )
        optimizers.append(adagrad)
    optimizers += [FusedTables(m, config.table_lr) for m in model.modules() if isinstance(m, ShardedTables)]
    if not optimizers:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True: there is nothing to train")
    return CompositeOptimizer(optimizers)


def _lr_factor(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of 0-based optimizer step `step` relative to the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule not in ("cosine", "linear"):
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    remaining = 1.0 - progress if config.schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * remaining


def _constant(step: int) -> float:
    return 1.0


class _Warmup(LRScheduler):
    """Linear warm-up by ratios of the current rate, so that a plateau scheduler beside it keeps its cuts."""

    def __init__(self, optimizer: Optimizer, factors: Sequence[Callable[[int], float]]) -> None:
        self.factors = factors
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        step, groups = self.last_epoch, zip(self.factors, self.optimizer.param_groups, strict=True)
        return [group["lr"] * factor(step) / (factor(step - 1) if step else 1.0) for factor, group in groups]

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "factors"}


def build_schedulers(optimizer: Optimizer, config: OptimizerConfig, total_steps: int | None) -> list[dict[str, Any]]:
    """Lightning's scheduler configurations, for `return [optimizer], build_schedulers(...)`.

    None is needed without warm-up and decay; "plateau" with warm-up needs two, and calls of `step_plateau`.

    Args:
        optimizer: its param groups carry a "name", as those of `build_optimizer` do.
        total_steps: optimizer steps of the whole run; only "cosine" and "linear" read it. Computed by the caller,
            since `trainer.estimated_stepping_batches` drops the position of a resumed loader.

    Raises:
        ValueError: "cosine" or "linear" without a positive `total_steps`.
    """
    decays = config.schedule in ("cosine", "linear")
    if decays and (total_steps is None or total_steps < 1):
        raise ValueError(
            f"schedule is {config.schedule!r}, but the number of optimizer steps is {total_steps}: set "
            "trainer.max_steps or max_epochs with a loader of known length, or use schedule 'constant' or 'plateau'"
        )
    if decays and config.warmup_steps >= (total_steps or 0):
        warnings.warn(
            f"warmup_steps is {config.warmup_steps}, but the run has {total_steps} optimizer steps: "
            "the learning rate never reaches the decay; lower warmup_steps",
            stacklevel=2,
        )
    follows = [group["name"] != "tables" or config.tables_follow_schedule for group in optimizer.param_groups]
    factor = partial(_lr_factor, config=config, total_steps=total_steps or 0)
    factors: list[Callable[[int], float]] = [factor if follow else _constant for follow in follows]
    schedulers: list[dict[str, Any]] = []
    if decays or (config.warmup_steps and config.schedule == "constant"):
        schedulers.append({"scheduler": LambdaLR(optimizer, factors), "interval": "step", "name": "schedule"})
    if config.schedule == "plateau":
        # A floor at the table's own rate keeps the cuts away from it.
        floors = [
            group["lr"] * (config.min_lr_ratio if f else 1.0)
            for f, group in zip(follows, optimizer.param_groups, strict=True)
        ]
        plateau = ReduceLROnPlateau(
            optimizer, config.plateau_mode, config.plateau_factor, config.plateau_patience, min_lr=floors
        )
        # Lightning must not step it: `step_plateau` does. The entry is there for checkpoints and learning rate logs.
        entry = {"scheduler": plateau, "monitor": config.plateau_monitor, "frequency": sys.maxsize, "name": "plateau"}
        schedulers.append(entry)
        if config.warmup_steps:
            schedulers.append({"scheduler": _Warmup(optimizer, factors), "interval": "step", "name": "warmup"})
    return schedulers


def step_plateau(schedulers: Any, config: OptimizerConfig, values: Mapping[str, Tensor | float]) -> None:
    """Tell the plateau scheduler, if there is one, the monitored value; call it when a validation's values are known.

    Lightning's own call comes after the checkpoint of the validation is written, so that a run resumed from it would
    miss the value.

    Args:
        schedulers: what `LightningModule.lr_schedulers()` returns: None, one or a list.
        values: logged values by name.

    Raises:
        ValueError: `config.plateau_monitor` is not among the values.
    """
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if isinstance(scheduler, ReduceLROnPlateau):
            if config.plateau_monitor not in values:
                known = ", ".join(values)
                raise ValueError(f"plateau_monitor is {config.plateau_monitor!r}, but validation logs {known}")
            scheduler.step(float(values[config.plateau_monitor]))


def clip_dense_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale dense gradients in place so that their joint L2 norm is at most `max_norm`; returns the norm before.

    Sparse gradients, those of embedding tables, are neither counted nor clipped: `clip_grad_norm_` cannot handle them
    on the CPU, and row-wise Adagrad moves a row by at most lr·√D however large its gradient is.
    """
    dense = [p for p in parameters if p.grad is not None and p.grad.layout == torch.strided]
    return nn.utils.clip_grad_norm_(dense, max_norm)
