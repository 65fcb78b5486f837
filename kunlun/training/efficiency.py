"""Logs how well a training run uses its machine: speed, MFU, waiting for data, where the forward pass goes, memory."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kunlun.features import Batch
from kunlun.training.clock import Clock, Mark
from kunlun.training.memory import peak_bytes
from kunlun.training.peaks import peak_of
from kunlun.training.utilization import TRAINING_PASSES, flops_by_part, history_lengths, mfu, tokens

IN_BAR = {"samples_per_second": "samples/s", "tokens_per_second": "tokens/s", "mfu": "MFU", "data_wait_share": "wait"}
ROWS_COUNTED = 16  # of a sampled batch: counting FLOPs of every row would cost more than the step


class EfficiencyMonitor(Callback):
    """Logs under ``efficiency/``, to every logger; all but the shares of parts and memory are in the progress bar too.

    * ``samples_per_second``, ``tokens_per_second``: of all devices, from the end of a batch to the end of the next,
      validation and each epoch's first batch left out. Tokens are events and context fields.
    * ``mfu``: of one device, in training; FLOPs per sample are a mean over rows of the sampled steps.
    * ``data_wait_share``: of that time, the part between the end of a batch and the start of the next.
    * ``forward_share/<part>``: of the forward pass of one step in ``every``. Parts are what the model's ``parts()``
      says, else its children; a part that runs inside another belongs to that one. Not for compiled models.
    * ``peak_memory_mib``: allocated by torch on a GPU, resident size of the process on a CPU.

    A GPU is never waited for: times are events in its queue, and are read once they have passed.

    Args:
        every: steps between two reports; null: the Trainer's log_every_n_steps.
        peak_flops: FLOP/s of one device; null: from the table of chips, on a CPU from a measured matmul.
    """

    def __init__(self, every: int | None = None, peak_flops: float | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 (or null), not {every}")
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops must be above 0 (or null), not {peak_flops}")
        self.every, self.peak_flops = every, peak_flops

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = Clock(trainer.strategy.root_device)
        self._period = self.every or trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._steps = 0
        self._flops: list[float] = []
        self._peak: float | None = None
        self._sample: _Sample | None = None
        self._ended: float | None = None
        self._window = _Window()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._steps += 1
        self._started = time.perf_counter()
        if self._sample is None and self._period and self._steps % self._period == 0:
            self._sample = _Sample(self._clock, _model(pl_module), batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._ended is not None:
            self._window.add(now - self._ended, self._started - self._ended, batch)
        self._ended = now
        if self._sample is not None:
            self._sample.stop()
            if self._sample.is_complete():
                self._report(trainer, pl_module, self._sample)
                self._sample, self._window = None, _Window()
                self._ended = time.perf_counter()  # the report is not the next step's

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        sample = getattr(self, "_sample", None)
        if sample is not None:
            sample.stop()

    def _report(self, trainer: Trainer, pl_module: LightningModule, sample: _Sample) -> None:
        values: dict[str, float] = {f"forward_share/{part}": share for part, share in sample.shares().items()}
        values["peak_memory_mib"] = peak_bytes(self._clock.device) / 2**20
        window = self._window
        if window.seconds:
            speed = window.samples / window.seconds
            values["samples_per_second"] = speed * trainer.world_size
            values["tokens_per_second"] = window.tokens / window.seconds * trainer.world_size
            values["data_wait_share"] = window.waited / window.seconds
            used = self._mfu(trainer, _model(pl_module), sample, speed)
            if used is not None:
                values["mfu"] = used
            for name, title in IN_BAR.items():
                if name in values:
                    pl_module.log(title, values[name], prog_bar=True, logger=False, batch_size=1)
        metrics = {"epoch": trainer.current_epoch, **{f"efficiency/{name}": v for name, v in values.items()}}
        step = max(trainer.global_step - 1, 0)  # as the Trainer numbers what is logged of a step
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _mfu(self, trainer: Trainer, model: nn.Module, sample: _Sample, speed: float) -> float | None:
        first = not self._flops
        self._flops.append(sum(flops_by_part(model, [sample.lengths]).values()))
        if first:
            peak = peak_of(self._clock.device, str(trainer.precision_plugin.precision), self.peak_flops)
            self._peak = peak.flops
            if not self._flops[0]:
                rank_zero_warn(f"efficiency: no MFU, for {type(model).__name__} has no flops(lengths)")
            elif peak.flops is None:
                rank_zero_warn(f"efficiency: the peak is {peak.source}")
        return mfu(sum(self._flops) / len(self._flops) or None, speed, self._peak, TRAINING_PASSES)


@dataclass
class _Window:
    """Steps since the last report."""

    seconds: float = 0.0
    waited: float = 0.0
    samples: int = 0
    tokens: int = 0

    def add(self, seconds: float, waited: float, batch: Batch) -> None:
        self.seconds += seconds
        self.waited += waited
        self.samples += len(batch)
        self.tokens += tokens(batch)


class _Sample:
    """One step in which the parts of the forward pass are timed, by hooks that are gone after it."""

    def __init__(self, clock: Clock, model: nn.Module, batch: Batch) -> None:
        self._clock = clock
        rows = history_lengths(batch, ROWS_COUNTED)
        self.lengths: dict[str, Tensor] = {name: n.to("cpu", non_blocking=True) for name, n in rows.items()}
        self._spans: list[_Span] = []
        self._open: list[_Span | None] = []
        self._handles: list[RemovableHandle] = []
        self._end: Mark | None = None
        if _is_compiled(model):
            return
        for part, modules in {"": [model], **parts_of(model)}.items():
            for module in modules:
                self._handles.append(module.register_forward_pre_hook(self._enter(part)))
                self._handles.append(module.register_forward_hook(self._leave))

    def _enter(self, part: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            depth = len(self._open)
            # Only directly inside the model: not in another part, nor when the backward pass computes a part again.
            is_counted = depth == 0 if part == "" else depth == 1 and self._open[0] is not None
            self._open.append(_Span(part, self._clock.mark()) if is_counted else None)

        return hook

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        span = self._open.pop()
        if span is not None:
            span.end = self._clock.mark()
            self._spans.append(span)

    def stop(self) -> None:
        if self._end is None:
            for handle in self._handles:
                handle.remove()
            self._end = self._clock.mark()

    def is_complete(self) -> bool:
        return self._end is not None and self._clock.reached(self._end)

    def shares(self) -> dict[str, float]:
        """Part → its share of the model's forward pass."""
        seconds: dict[str, float] = defaultdict(float)
        for span in self._spans:
            assert span.end is not None
            seconds[span.part] += self._clock.between(span.start, span.end)
        total = seconds.pop("", 0.0)
        return {part: s / total for part, s in seconds.items()} if total else {}


@dataclass
class _Span:
    part: str
    start: Mark
    end: Mark | None = None


def parts_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """What the model's ``parts()`` says, else its children by name; of containers, what they hold."""
    named = getattr(model, "parts", None)
    if callable(named):
        return named()
    return {name: _held(child) for name, child in model.named_children()}


def _held(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [inner for child in module.children() for inner in _held(child)]
    return [module]


def _model(pl_module: LightningModule) -> nn.Module:
    model = getattr(pl_module, "model", None)
    return model if isinstance(model, nn.Module) else pl_module


def _is_compiled(model: nn.Module) -> bool:
    """Hooks would make torch.compile compile again."""
    return isinstance(model, torch._dynamo.OptimizedModule) or any(
        module._compiled_call_impl is not None for module in model.modules()
    )
