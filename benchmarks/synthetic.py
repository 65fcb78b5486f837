"""Samples per second of the synthetic world on one core, and on a GPU where there is one, by batch size.

    python -m benchmarks.synthetic --out benchmarks/results/cpu/synthetic.json

Two worlds: ``small`` as shipped, and ``full``, the same with a visit of every type each day for years, so that nearly
every sample has 100 events of each of three types. Times are the median and the fastest of the rounds; each round makes
new samples. Before anything is timed, the samples of each device are compared with those of the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import device, versions
from data.synthetic import SyntheticWorld
from data.synthetic_config import Stream
from data.synthetic_presets import CALIBRATIONS, PRESETS
from kunlun.features import Batch

SMALL = PRESETS["small"]
CONFIGS = {
    "small": SMALL,
    "full": replace(
        SMALL,
        max_events=100,
        click=Stream((1,), SMALL.click.noise),
        conversion=Stream((1,), SMALL.conversion.noise),
        impression=Stream((1,), SMALL.impression.noise),
        horizon_days=1_500,
    ),
}


def tensors(batch: Batch) -> Iterator[Tensor]:
    for name in ("labels", "dense", "sparse", "request_time", "user"):
        yield getattr(batch, name)
    for columns in batch.events.values():
        for column in columns.values():
            yield column.values
            yield column.offsets


def check(world: SyntheticWorld, where: torch.device) -> None:
    """RuntimeError unless the samples of ``where`` are those of the CPU, bit for bit."""
    index = torch.arange(256)
    pairs = zip(tensors(world.batch(index)), tensors(world.batch(index.to(where))), strict=True)
    if not all(torch.equal(here, there.cpu()) for here, there in pairs):
        raise RuntimeError(f"samples made on {where} are not those made on the CPU; nothing is timed")


def measure(world: SyntheticWorld, where: torch.device, batch_size: int, rounds: int) -> dict[str, Any]:
    """Speed for one batch size."""
    seconds, events = [], 0
    for number in range(rounds + 1):
        index = torch.arange(number * batch_size, (number + 1) * batch_size, device=where)
        synchronise(where)
        started = time.perf_counter()
        batch = world.batch(index)
        synchronise(where)
        if number:  # the first one warms up
            seconds.append(time.perf_counter() - started)
            events += sum(columns["item"].values.numel() for columns in batch.events.values())
    per_sample = events / rounds / batch_size
    middle, fastest = statistics.median(seconds), min(seconds)
    return {
        "device": where.type,
        "batch_size": batch_size,
        "events_per_sample": per_sample,
        "samples_per_s": batch_size / middle,
        "samples_per_s_fastest": batch_size / fastest,
        "ns_per_event": 1e9 * middle / batch_size / per_sample,
        "ns_per_event_fastest": 1e9 * fastest / batch_size / per_sample,
    }


def synchronise(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Every world on every device at every batch size."""
    torch.set_num_threads(1)
    places = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    results = []
    for name, config in CONFIGS.items():
        # Speed does not depend on the constants of a world.
        world = SyntheticWorld(config, CALIBRATIONS["small"])
        for where in places:
            check(world, where)
            sizes = args.batch_sizes if where.type == "cpu" else args.gpu_batch_sizes
            results += [{"world": name, **measure(world, where, size, args.rounds)} for size in sizes]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "machine": {**device(threads=1), "gpu": gpu},
        "versions": versions("torch"),
        "results": results,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 512, 1024, 4096])
    parser.add_argument("--gpu-batch-sizes", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = benchmark(args)
    print(
        f"{'world':7}{'device':7}{'batch':>7}{'events':>8}{'samples/s':>12}{'fastest':>12}{'ns/event':>10}{'fastest':>9}"
    )
    for r in report["results"]:
        print(
            f"{r['world']:7}{r['device']:7}{r['batch_size']:7d}{r['events_per_sample']:8.1f}{r['samples_per_s']:12,.0f}"
            f"{r['samples_per_s_fastest']:12,.0f}{r['ns_per_event']:10.1f}{r['ns_per_event_fastest']:9.1f}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
