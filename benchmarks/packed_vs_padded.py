"""What packing saves in training: `python -m benchmarks.packed_vs_padded --path PREPARED_USERBEHAVIOR`.

One Kunlun trains on the same batches in two layouts, in one process and in turns, so that load from outside strikes
both:
* packed: as the reader gives them;
* padded: every history filled with events of id 0 to the longest of its event type in the batch. All places are
  computed; nothing is masked, which costs no time and makes the losses of the two differ. The ops get the rectangles as
  views: the gathers by which they pad and unpad packed sequences are left out. (A check first compares the logits with
  those of the ops as they are.)
A step is forward, backward and optimizer. Reading and padding are not in it, nor is the copying of batches. Each step
takes another batch, shuffled as in training. The ratio is that of the two times of one batch; its spread is over
batches. CPU time is reported beside wall time: with one thread, other processes hardly disturb it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import device, versions
from data.order import BatchOrder
from data.reader import PreparedSplit
from kernels import packed
from kunlun.features import MISSING_ID, TIME, Batch, FeatureSchema, Jagged
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.layers.gdpa import GDPAConfig
from kunlun.layers.wukong import WukongConfig
from kunlun.models.kunlun import HSPConfig, Kunlun, TowerConfig
from kunlun.training.optimizers import OptimizerConfig, build_optimizer

UNCUT = "uncut"
LAYOUTS = ("packed", "padded")


@dataclass(frozen=True)
class RectangleBucket(packed.Bucket):
    """All sequences of a batch, equally long: padding and unpadding are views."""

    def pad(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(0, self.mask.shape)

    def unpad(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1)


@dataclass(frozen=True)
class RectangleLayout(packed.Layout):
    """One bucket with all sequences in their order."""

    def split_tokens(self, values: Tensor) -> tuple[Tensor, ...]:
        return (values,)

    def split_samples(self, values: Tensor) -> tuple[Tensor, ...]:
        return (values,)

    def join_tokens(self, parts: list[Tensor], rows: int) -> Tensor:
        return parts[0]

    def join_samples(self, parts: list[Tensor], rows: int) -> Tensor:
        return parts[0]


def use_rectangles(batch: Batch) -> None:
    """Make the ops take the event types of a padded batch as they lie."""
    for event in batch.events.values():
        offsets, length = event[TIME].offsets, event[TIME].max_length
        if length:
            rows = torch.arange(len(batch))
            bucket = RectangleBucket(length, rows[:0], torch.ones(len(batch), length, dtype=torch.bool))
            packed.use_layout(offsets, RectangleLayout([bucket], rows, rows[:0]))


def pad(batch: Batch) -> Batch:
    """The same rows with every history as long as the longest of its type, the filling before the oldest event."""
    events = {}
    for name, fields in batch.events.items():
        longest = fields[TIME].max_length
        lengths = fields[TIME].lengths()
        real_BT = torch.arange(longest) >= longest - lengths[:, None]
        offsets = torch.arange(len(batch) + 1) * longest
        events[name] = {}
        for field, column in fields.items():
            filled = torch.full((len(batch), longest), MISSING_ID)
            if field == TIME:
                filled = batch.request_time[:, None].repeat(1, longest)
            filled[real_BT] = column.values
            events[name][field] = Jagged(filled.flatten(), offsets, longest)
    return replace(batch, events=events)


def build_model(schema: FeatureSchema) -> Kunlun:
    """The size of `configs/base.yaml`: the larger tower for page views, the smaller for the rare event types."""
    return Kunlun(
        schema,
        width=32,
        layers=2,
        context_tokens=8,
        towers={"pv": TowerConfig(32, 2, 4, 2, 12), "default": TowerConfig(16, 2, 2, 1, 6)},
        gdpa=GDPAConfig(kv_tokens=16),
        hsp=HSPConfig(seeds=16, rank=4),
        wukong=WukongConfig(experts=2, tokens=16, rank=8, hidden=128),
        embedding=EmbeddingConfig(width=16),
        head_hidden=[64],
    )


def check_rectangles(model: nn.Module, batch: Batch) -> None:
    """The views give the logits of the ops as they are; RuntimeError otherwise."""
    padded = pad(batch)
    with torch.no_grad():
        as_is = model(padded.apply(torch.clone))
        use_rectangles(padded)
        views = model(padded)
    if not torch.allclose(as_is, views, atol=1e-4):
        raise RuntimeError(f"the padded layout is wrong: logits differ by up to {(as_is - views).abs().max():.1e}")


def timed_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    """Milliseconds of the whole step, also in CPU time, and of its forward and backward alone."""
    cpu, start = time.process_time(), time.perf_counter()
    loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels)
    loss.backward()
    computed = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    end, cpu_end = time.perf_counter(), time.process_time()
    return {
        "step_ms": 1e3 * (end - start),
        "step_cpu_ms": 1e3 * (cpu_end - cpu),
        "model_ms": 1e3 * (computed - start),
    }


def case(args: argparse.Namespace, cut: str, batch_size: int) -> dict[str, Any]:
    """Both layouts at one L_max and one batch size."""
    schema = FeatureSchema.load(args.path).with_max_length(2**31)
    if not schema.events or not all(event.timestamps for event in schema.events):
        raise SystemExit(f"{args.path} ({schema.name}) has no histories with times: pass a prepared UserBehavior")
    split = PreparedSplit(args.path, schema, "train", share_histories=False)
    longest = int(split.columns.take("pointers", split.columns.locate(np.arange(len(split)))).max())
    max_length = longest if cut == UNCUT else int(cut)
    split = PreparedSplit(args.path, schema.with_max_length(max_length), "train", share_histories=False)
    order = iter(BatchOrder(len(split), batch_size, shuffle=True, seed=0, drop_last=True))

    torch.manual_seed(0)
    model = build_model(split.schema)
    check_rectangles(model, split.__getitems__(next(order)[:16]))
    models = {"packed": model, "padded": copy.deepcopy(model)}
    optimizers = {name: build_optimizer(m, OptimizerConfig()) for name, m in models.items()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    lengths: dict[str, list[Tensor]] = {event.name: [] for event in schema.events}
    for step in range(args.warmup + args.rounds):
        batch = split.__getitems__(next(order))
        for layout in LAYOUTS if step % 2 else LAYOUTS[::-1]:
            # Fresh offsets: no step may find the layout that another step made of them.
            given = batch.apply(torch.clone) if layout == "packed" else pad(batch)
            if layout == "padded":
                use_rectangles(given)
            seconds = timed_step(models[layout], optimizers[layout], given)
            if step >= args.warmup:
                times[layout].append(seconds)
        if step >= args.warmup:
            for name, fields in batch.events.items():
                lengths[name].append(fields[TIME].lengths())

    result: dict[str, Any] = {"max_length": cut, "batch_size": batch_size}
    for measure in ("step_ms", "step_cpu_ms", "model_ms"):
        per_layout = {name: np.array([t[measure] for t in times[name]]) for name in LAYOUTS}
        ratios = per_layout["padded"] / per_layout["packed"]
        result[measure] = {name: quartiles(values) for name, values in per_layout.items()}
        result[measure]["ratio"] = quartiles(ratios)
    result["samples_per_second"] = {name: batch_size / result["step_ms"][name]["median"] * 1e3 for name in LAYOUTS}
    result["events"] = {
        name: {
            "mean": float(torch.cat(batches).double().mean()),
            "max": int(torch.cat(batches).max()),
            "mean_of_batch_longest": statistics.mean(int(b.max()) for b in batches),
        }
        for name, batches in lengths.items()
    }
    padded = sum(e["mean_of_batch_longest"] for e in result["events"].values())
    result["padded_places_per_event"] = padded / sum(e["mean"] for e in result["events"].values())
    return result


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and the quartiles around it."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q25": float(low), "q75": float(high)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="UserBehavior, prepared")
    parser.add_argument("--max-length", nargs="+", default=["200", UNCUT], help="L_max: numbers, or 'uncut'")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--warmup", type=int, default=2, help="steps of each that are not counted")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = []
    for cut in args.max_length:
        for batch_size in args.batch_size:
            r = case(args, cut, batch_size)
            results.append(r)
            ratio = r["step_ms"]["ratio"]
            cpu, alone = (r[measure]["ratio"]["median"] for measure in ("step_cpu_ms", "model_ms"))
            lengths = ", ".join(
                f"{name} {e['mean']:.1f}/{e['mean_of_batch_longest']:.0f}" for name, e in r["events"].items()
            )
            print(
                f"L_max {cut:>5} batch {batch_size:4d}: packed {r['samples_per_second']['packed']:6.0f} samples/s, "
                f"padded {r['samples_per_second']['padded']:6.0f}, ratio {ratio['median']:.2f} "
                f"[{ratio['q25']:.2f}, {ratio['q75']:.2f}], in CPU time {cpu:.2f}, without the optimizer {alone:.2f}; "
                f"places per event {r['padded_places_per_event']:.2f}; mean/longest {lengths}",
                flush=True,
            )
    if args.out:
        report = {
            "benchmark": "packed_vs_padded",
            "settings": {name: value for name, value in vars(args).items() if name not in ("out", "path")},
            "data": FeatureSchema.load(args.path).provenance.get("fingerprint"),
            "device": device(args.threads),
            "versions": versions("torch", "numpy"),
            "results": results,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
