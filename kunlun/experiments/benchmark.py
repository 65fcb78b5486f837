"""python cli.py benchmark: how fast the model of a configuration trains and answers, and at what cost.

Apart from quality: on a few batches made beforehand, which take turns, once the steps are warm. A training step is the
Trainer's own, so precision, clipping and optimizer are those of ``fit``; reading is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kunlun.command_line import OPTIONS, Request
from kunlun.config_check import ConfigChecker, read_options
from kunlun.configuration import ConfigError, Text, shown
from kunlun.features import Batch
from kunlun.training.cli import KunlunCLI
from kunlun.training.cli import main as run_command
from kunlun.training.clock import Clock, Mark
from kunlun.training.devices import device_name
from kunlun.training.memory import PeakMemory
from kunlun.training.module import CTRModule
from kunlun.training.peaks import Peak, peak_of
from kunlun.training.runs import versions
from kunlun.training.utilization import TRAINING_PASSES, flops_by_part, history_lengths, mfu, parameter_counts

BATCHES = 4
REQUESTS_PER_STEP = 10  # small batches are quick, and a p99 of 20 of them would be their maximum


@dataclass(frozen=True)
class BenchmarkOptions:
    """How long to measure and what to compare with; ValueError names the option that is wrong."""

    steps: int = 20
    """Steps that are timed, of training and of inference; latency is taken from ten times as many requests."""
    warmup: int = 5
    """Steps before those, not timed."""
    latency_batch: int = 1
    """Rows of a request whose latency is measured."""
    peak_flops: float | None = None
    """FLOP/s that the device could do; null: from the table of chips, on a CPU from a measured matmul."""
    out: str | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0), ("latency_batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if self.peak_flops is not None and not 0 < self.peak_flops < float("inf"):
            raise ValueError(f"--peak_flops must be a finite number above 0, not {self.peak_flops}")
        if self.out is not None and (not self.out or Path(self.out).expanduser().is_dir()):
            raise ValueError(f"--out must be the name of a file to write, not {self.out!r}")


def main(request: Request, checker: ConfigChecker) -> int:
    """Measure, print and write; the exit code."""
    return run_command(request, checker, BenchmarkCLI)


class BenchmarkCLI(KunlunCLI):
    """The configuration of ``fit``, measured instead of trained."""

    def __init__(self, request: Request, checker: ConfigChecker) -> None:
        own = OPTIONS["benchmark"]
        given = {o.key: Text(o.value) for o in request.overrides if o.key in own}
        request.overrides = [o for o in request.overrides if o.key not in own]
        self.benchmark_options = read_options("benchmark", given, BenchmarkOptions)
        super().__init__(request, checker)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.request.asks_help:  # else they are read already, and no part of the configuration
            parser.add_class_arguments(BenchmarkOptions)

    def benchmark(self) -> None:
        options = self.benchmark_options
        self.config_init["trainer"].callbacks = None
        result = measure(self.model, fixed_batches(self.datamodule), self.make_trainer, options)
        print(table(self.options.name, result), flush=True)
        if options.out is not None:
            path = Path(options.out).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            print(f"written: {shown(path)}", flush=True)


def fixed_batches(data: LightningDataModule, count: int = BATCHES) -> list[Batch]:
    """The first ``count`` training batches, or as many as there are; ConfigError if there is none."""
    data.prepare_data()
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), count))
    if not batches:
        raise ConfigError("benchmark: the training split has no batch to measure on")
    return batches


def measure(
    module: CTRModule, batches: Sequence[Batch], make_trainer: Callable[..., Trainer], options: BenchmarkOptions
) -> dict[str, Any]:
    """What JSON holds of a model: FLOPs, parameters, speed of training and inference, latency, peak memory.

    Args:
        batches: they take turns, in training and in inference; one row of the latency's batch comes after another.
        module: is trained for these steps, and left in evaluation mode.
        make_trainer: gives a Trainer on one device from callbacks and Trainer arguments.
    """
    steps = TrainingSteps(options.warmup)
    count = options.warmup + options.steps
    # Rates change no step's cost, and a schedule would complain about a run so short.
    module.optimizer_config = replace(module.optimizer_config, schedule="constant", warmup_steps=0)
    trainer = make_trainer([steps], max_steps=count, **_STEPS_ALONE)
    device, precision = trainer.strategy.root_device, trainer.precision_plugin.precision
    parts = {name: round(flops) for name, flops in flops_by_part(module.model, map(history_lengths, batches)).items()}
    peak = peak_of(device, precision, options.peak_flops)
    batches = [batch.to(device) for batch in batches]
    memory = PeakMemory(device)
    trainer.fit(module, Turns(batches, count))
    peak_bytes = memory.bytes()
    rates = partial(_rates, flops=sum(parts.values()) if parts else None, peak=peak)
    return {
        "flops_per_sample": sum(parts.values()) if parts else None,
        "flops": parts,
        "parameters": parameter_counts(module),
        "training": rates(steps.seconds, steps.rows, passes=TRAINING_PASSES),
        "inference": _inference(module.to(device), batches, trainer, options, rates),
        "peak_memory_bytes": peak_bytes,
        "peak_memory_source": memory.source,
        "peak_flops": peak.flops,
        "peak_source": peak.source,
        "device": device_name(device),
        "precision": str(precision),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "versions": versions(),
    }


# Trainer arguments for steps alone; they win over those of the configuration.
_STEPS_ALONE: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "devices": 1,
    "num_nodes": 1,
    "fast_dev_run": False,
    "max_epochs": 1,
    "max_time": None,
    "overfit_batches": 0.0,
    "limit_train_batches": 1.0,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
}


class Turns:
    """A loader of ``count`` batches: the same few, in turn."""

    def __init__(self, batches: Sequence[Batch], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return islice(cycle(self.batches), self.count)


class TrainingSteps(Callback):
    """Times training steps, each from the end of the one before."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.rows: list[int] = []
        self.seconds: list[float] = []
        self._marks: list[Mark] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._clock = Clock(trainer.strategy.root_device)
        if not self.warmup:
            self._marks.append(self._clock.mark())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx >= self.warmup - 1:
            self._marks.append(self._clock.mark())
        if batch_idx >= self.warmup:
            self.rows.append(len(batch))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds = self._clock.gaps(self._marks)


def _inference(
    module: CTRModule,
    batches: Sequence[Batch],
    trainer: Trainer,
    options: BenchmarkOptions,
    rates: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Forward passes on device: of whole batches without a pause, then of single requests, each one waited for."""
    clock = Clock(module.device)
    module.eval()
    requests = _requests(batches, options.latency_batch, REQUESTS_PER_STEP * options.steps)
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        marks = []
        for step in range(options.warmup + options.steps + 1):
            if step >= options.warmup:
                marks.append(clock.mark())
            module(batches[step % len(batches)])
        rows = [len(batches[step % len(batches)]) for step in range(options.warmup, options.warmup + options.steps)]
        seconds = clock.gaps(marks)
        latencies = []
        for number in range(-options.warmup, len(requests)):
            started = time.perf_counter()
            module(requests[number])
            clock.wait()
            if number >= 0:
                latencies.append(1000 * (time.perf_counter() - started))
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    latency = {"batch": len(requests[0]), "p50": p50, "p95": p95, "p99": p99}
    return {**rates(seconds, rows, passes=1), "batch": max(map(len, batches)), "latency_ms": latency}


def _requests(batches: Sequence[Batch], rows: int, count: int) -> list[Batch]:
    """``count`` small batches of consecutive rows, from one batch after another."""
    requests = []
    for number in range(count):
        batch, turn = batches[number % len(batches)], number // len(batches)
        index = torch.arange(turn * rows, (turn + 1) * rows, device=batch.labels.device) % len(batch)
        requests.append(batch.select(index))
    return requests


def _rates(
    seconds: Sequence[float], rows: Sequence[int], *, passes: int, flops: int | None, peak: Peak
) -> dict[str, Any]:
    """Median and quartiles of the steps' samples/s; MFU of the median."""
    speeds = [n / s for n, s in zip(rows, seconds, strict=True)]
    p25, median, p75 = np.percentile(speeds, [25, 50, 75]).tolist()
    return {"samples_per_second": median, "spread": [p25, p75], "mfu": mfu(flops, median, peak.flops, passes)}


def table(name: str, result: dict[str, Any]) -> str:
    """The figures, a few lines to read."""
    training, inference, latency = result["training"], result["inference"], result["inference"]["latency_ms"]
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"

    def speed(of: dict[str, Any]) -> str:
        low, high = of["spread"]
        share = "–" if of["mfu"] is None else f"{of['mfu']:.2%}"
        return f"{of['samples_per_second']:,.0f} samples/s (quartiles {low:,.0f} – {high:,.0f}) · MFU {share}"

    flops = result["flops_per_sample"]
    total = sum(result["flops"].values()) or 1
    parts = " · ".join(f"{part} {n / total:.0%}" for part, n in result["flops"].items())
    peak = "" if result["peak_flops"] is None else f"{result['peak_flops'] / 1e12:,.3g} TFLOP/s, "
    sizes = result["parameters"]
    return "\n".join(
        [
            f"{name} on {result['device']}, {threads}, {result['precision']}",
            f"  training    {speed(training)}",
            f"  inference   {speed(inference)}, batches of {inference['batch']:,}",
            f"  latency     {latency['p50']:.2f} ms p50 · {latency['p95']:.2f} p95 · {latency['p99']:.2f} p99, "
            f"batches of {latency['batch']:,}",
            "  FLOPs       the model has no flops(lengths): no MFU"
            if flops is None
            else f"  FLOPs       {flops / 1e6:,.3f} M per sample: {parts}",
            f"  parameters  {sizes['dense']:,} dense · {sizes['embedding']:,} embedding",
            f"  memory      {result['peak_memory_bytes'] / 2**20:,.0f} MiB ({result['peak_memory_source']})",
            f"  peak        {peak}{result['peak_source']}",
        ]
    )
