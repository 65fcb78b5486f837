"""Speed of the reader, from prepared files to batches of tensors: `python -m benchmarks.reader`.

Criteo: one shuffled epoch after the other of the training loader (PreparedData.train_dataloader, no workers), against
FuxiCTR's loaders (with --fuxictr) on the same rows, each on one core, taking turns in one run; medians over rounds,
the first round is not counted. A batch of this project holds the label, 13 numbers and 39 ids, one of FuxiCTR's the
label and 39 ids, all as tensors. What the contenders do:
* this project: gathers the rows of a batch from memory-mapped columns; the order is computed, not stored;
* NumPy gather: the same columns in memory, gathered by a permutation that is already there, types left as they are:
  what no reader of this kind can exceed by much;
* FuxiCTR parquet, npz: one array of all columns in memory, a row at a time, stacked into a batch; the newer package
  reads Parquet through Ray instead, and shuffles the whole table once per epoch;
* FuxiCTR parquet-blocks: one file after the other, rows through a shuffle buffer of 100,000.
All of FuxiCTR's loaders read what its preprocessing wrote, without worker processes, and by the class that it chooses
for the format. Ray has processes of its own, so its loader is run a second time with all cores.

Histories: batches of impressions with four event types of L_max events each, with this project's Taobao fields, on
one core and with two worker processes; every pointer is at least L_max, and the events that arrive are counted. Also
the first epoch after the files were dropped from the page cache (as far as the system does; bytes read are told).

Opening: seconds until the loader of a split of N and of 100 N rows is there, until its first shuffled batch, and until
the next; files in the page cache. The first batch touches pages that are not mapped yet, in the larger split up to one
per row and column where the smaller has few pages at all: that cost is bounded by the batch, not by the data.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.machine import device, versions
from benchmarks.made_sets import write_histories, write_narrow
from benchmarks.preparation import OURS, plain_copies, prepared
from benchmarks.processes import Conversation, FuxiCTR, cores, installations, pin, run
from data.generate import generate, options_of
from data.module import PreparedData
from data.taobao import EVENTS

GATHER = "NumPy gather"
BLOCKS = 8

PARTS = ("open_seconds", "first_batch_seconds", "second_batch_seconds")

Epoch = Callable[[], dict[str, Any]]


def epoch(data: PreparedData, loader: Any) -> dict[str, Any]:
    """Read it once; the events of the batches are counted outside of the time."""
    lengths, samples, first = [], 0, None
    started = time.perf_counter()
    for batch in loader:
        first = batch.row[:64] if first is None else first
        samples += len(batch.labels)
        lengths.append([jagged.offsets for columns in batch.events.values() for jagged in columns.values()])
    seconds = time.perf_counter() - started
    if first is None or not samples:
        raise RuntimeError(f"{data.path}: not one batch; use more rows or a smaller --batch-size")
    columns = 1 + len(data.schema.events[0].fields) if data.schema.events else 1
    events = sum(int(offsets[-1]) for batch in lengths for offsets in batch) // columns
    return {"samples": samples, "seconds": seconds, "events": events, "first": first.tolist()}


def opened(path: Path, batch_size: int, max_length: int, workers: int = 0) -> Epoch:
    data = PreparedData(str(path), batch_size=batch_size, max_length=max_length, num_workers=workers)
    loader = data.train_dataloader()
    return lambda: epoch(data, loader)


def check_epoch(path: Path, batch_size: int) -> None:
    """Every row of whole batches once, shuffled, with all that the schema names; RuntimeError otherwise."""
    data = PreparedData(str(path), batch_size=batch_size)
    batches = list(data.train_dataloader())
    rows = torch.cat([batch.row for batch in batches])
    schema = data.schema
    widths = {(b.labels.shape[1], b.dense.shape[1], b.sparse.shape[1]) for b in batches}
    if widths != {(len(schema.tasks), len(schema.dense), len(schema.sparse))}:
        raise RuntimeError(f"{path}: batches lack columns: {widths}")
    if (
        len(rows.unique()) != len(rows)
        or len(rows) <= schema.rows["train"] - batch_size
        or bool((rows.diff() > 0).all())
    ):
        raise RuntimeError(f"{path}: an epoch is not every row once in random order")


def gather(path: Path, batch_size: int) -> Epoch:
    """Epochs of the bare gather."""
    columns = PreparedData(str(path)).split("train").columns
    everything = columns.locate(np.arange(columns.rows))
    arrays = [columns.take(name, everything) for name in ("labels", "dense", "sparse")]
    order = np.random.default_rng(0).permutation(columns.rows)

    def one() -> dict[str, Any]:
        samples = 0
        started = time.perf_counter()
        for start in range(0, columns.rows - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            labels, *_ = [torch.from_numpy(array[rows]) for array in arrays]
            samples += len(labels)
        return {"samples": samples, "seconds": time.perf_counter() - started}

    return one


def pinned(one: Epoch, *where: int) -> Epoch:
    """With this process on those cores meanwhile."""

    def run_there() -> dict[str, Any]:
        before = cores()
        pin(*where)
        try:
            return one()
        finally:
            pin(*before)

    return run_there


def rate(results: list[dict[str, Any]]) -> float:
    return statistics.median(r["samples"] / r["seconds"] for r in results)


def rounds(contenders: dict[str, Epoch], count: int) -> dict[str, list[dict[str, Any]]]:
    """Each once per round, each round beginning with the next one; the first round is left out."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(count + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(contenders[name]())
    return {name: seen[1:] for name, seen in results.items()}


def criteo(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    raw, csvs, ours = folder / "train.txt", folder / "csv", folder / "ours"
    source = args.criteo
    if source is None:
        generate("criteo", folder / "generated", options_of("criteo")(rows=args.rows))  # type: ignore[call-arg]
        source = folder / "generated" / "train.txt"
    rows = plain_copies(source, raw, csvs)
    prepared("criteo", raw, ours, {"min_count": args.min_count})
    check_epoch(ours, args.batch_size)
    # What Ray does in the background between its turns shall not meet the others: it gets another core, if there is.
    mine, rays = min(cores(), default=0), max(cores(), default=0)
    contenders = {
        OURS: pinned(opened(ours, args.batch_size, args.max_length), mine),
        GATHER: pinned(gather(ours, args.batch_size), mine),
    }
    conversations = fuxictr_loaders(args, folder, csvs, mine, rays)
    contenders |= {name: talk.ask for name, talk in conversations.items()}
    found = rounds(contenders, args.rounds)
    for talk in conversations.values():
        talk.close()
    results = {}
    for name, seen in found.items():
        results[name] = {"samples_per_second": rate(seen), "all": [r["samples"] / r["seconds"] for r in seen]}
        results[name]["ours_over_this"] = rate(found[OURS]) / rate(seen)
        if "first" in seen[0] and len(seen) > 1 and all(r["first"] == seen[0]["first"] for r in seen):
            raise RuntimeError(f"{name}: every epoch began with the same rows, so it is not shuffled")
        if name in conversations:
            opening = conversations[name].opening
            results[name] |= {key: opening[key] for key in ("versions", "commit", "class", "open_seconds")}
            results[name]["tensors"] = seen[0]["tensors"]
    for name, result in results.items():
        print(criteo_line(name, result), flush=True)
    if not conversations:
        print("criteo: FuxiCTR was not measured; give --fuxictr the Python interpreter of an environment that has it")
    return {"rows": rows, "source": source.name if args.criteo else "generated", "results": results}


def fuxictr_loaders(
    args: argparse.Namespace, folder: Path, csvs: Path, core: int, ray_core: int
) -> dict[str, Conversation]:
    """All of its loaders, opened; the files are those of the source tree's preprocessing, or else the package's."""
    found = installations(args.fuxictr, args.fuxictr_source)
    if not found:
        return {}
    whole, blocks = folder / "fuxictr-whole", folder / "fuxictr-blocks"
    maker = found[-1]
    train_rows = sum(1 for _ in (csvs / "train.csv").open()) - 1
    common = ["prepare", "--raw", str(csvs), "--min-count", str(args.min_count)]
    for out, size in ((whole, 0), (blocks, -(-train_rows // BLOCKS))):
        run(maker.command(*common, "--out", str(out), "--block-rows", str(size)), maker.environment())
    run(maker.command("npz", "--data", str(whole / "criteo")), maker.environment())

    def start(fuxictr: FuxiCTR, loader: str, where: int | None) -> Conversation:
        data = (blocks if loader == "parquet-blocks" else whole) / "criteo"
        task = ["read", "--data", str(data), "--loader", loader, "--batch-size", str(args.batch_size)]
        talk = Conversation(fuxictr.command(*task), fuxictr.environment(), where)
        talk.opening["commit"] = fuxictr.revision()
        return talk

    talks = {}
    for fuxictr in found:
        for loader in ("parquet", "npz", *(["parquet-blocks"] if fuxictr.source else [])):
            ray = loader == "parquet" and fuxictr.source is None
            talks[f"{fuxictr.name}: {loader}"] = start(fuxictr, loader, ray_core if ray else core)
            if ray:
                talks[f"{fuxictr.name}: {loader}, all cores"] = start(fuxictr, loader, None)
    return talks


def criteo_line(name: str, result: dict[str, Any]) -> str:
    what = ""
    if "versions" in result:
        commit = f" at {result['commit'][:12]}" if result["commit"] else ""
        what = f" ({result['versions']['fuxictr']}{commit}, {result['class']})"
    speed, ratio = result["samples_per_second"], result["ours_over_this"]
    return f"criteo {name + what:86} {speed:11,.0f} samples/s   ours / this {ratio:7.2f}"


def histories(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = folder / "histories"
    write_histories(path, args.history_rows, args.users, args.max_length)
    core = min(cores(), default=0)
    cold = []
    for _ in range(2):
        gc.collect()  # maps of a loader that is gone would keep their pages
        drop_from_cache(path)
        read_before = read_bytes()
        seen = pinned(opened(path, args.batch_size, args.max_length), core)()
        cold.append({"samples_per_second": rate([seen]), "read_bytes": read_bytes() - read_before})
    found = rounds(
        {
            "one core": pinned(opened(path, args.batch_size, args.max_length), core),
            "two workers": opened(path, args.batch_size, args.max_length, workers=2),
        },
        args.rounds,
    )
    events = found["one core"][0]["events"] / found["one core"][0]["samples"]
    if abs(events - len(EVENTS) * args.max_length) > 0.01 * events:
        raise RuntimeError(f"{events:.1f} events arrive per sample, not {len(EVENTS)} × {args.max_length}")
    result = {
        "rows": args.history_rows,
        "users": args.users,
        "events_per_sample": events,
        "samples_per_second": {name: rate(seen) for name, seen in found.items()},
        "all": {name: [r["samples"] / r["seconds"] for r in seen] for name, seen in found.items()},
        "dropped_from_cache": cold,
    }
    for name, value in result["samples_per_second"].items():
        print(f"histories, {events:.0f} events per sample, {name}: {value:,.0f} samples/s", flush=True)
    for seen in cold:
        print(
            f"histories, first epoch after dropping the files from the page cache, one core: "
            f"{seen['samples_per_second']:,.0f} samples/s, {seen['read_bytes'] / 1e6:,.0f} MB read from disk"
        )
    return result


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a page that is not written yet stays
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """From disk, by this process so far; 0 where the system does not tell."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(dict(line.split(": ") for line in counters.read_text().splitlines())["read_bytes"])


def two_batches(path: Path, batch_size: int) -> list[float]:
    """Seconds until the loader is there, from then until its first batch, and from then until its second."""
    gc.collect()  # unmapping what was opened before takes time too, and is not meant here
    ticks = [time.perf_counter()]
    loader = PreparedData(str(path), batch_size=batch_size).train_dataloader()
    ticks.append(time.perf_counter())
    batches = iter(loader)
    for _ in range(2):
        rows = len(next(batches).labels)
        ticks.append(time.perf_counter())
        if rows != batch_size:
            raise RuntimeError(f"a batch has {rows} rows, not {batch_size}")
    return np.diff(ticks).tolist()


def opening(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Smaller and larger in turns; the first turn is not counted."""
    sizes = (args.opening_rows, 100 * args.opening_rows)
    for rows in sizes:
        write_narrow(folder / f"narrow-{rows}", rows)
    seconds: dict[int, list[list[float]]] = {rows: [] for rows in sizes}
    for _ in range(args.opening_rounds + 1):
        for rows in sizes:
            batch_size = min(args.batch_size, args.opening_rows // 2)
            seconds[rows].append(two_batches(folder / f"narrow-{rows}", batch_size))
    medians = {rows: np.median(seen[1:], axis=0) for rows, seen in seconds.items()}
    result: dict[str, Any] = {"rows": sizes}
    for i, what in enumerate(("open", "first_batch", "second_batch")):
        result[f"{what}_seconds"] = [float(medians[rows][i]) for rows in sizes]
    until = [float(medians[rows][:2].sum()) for rows in sizes]
    result |= {"seconds": until, "ratio": until[1] / until[0]}
    result["open_ratio"] = result["open_seconds"][1] / result["open_seconds"][0]
    for i, rows in enumerate(sizes):
        parts = ", ".join(f"{what.split('_s')[0].replace('_', ' ')} {1e3 * result[what][i]:.1f} ms" for what in PARTS)
        print(f"opening {rows:,} rows: {parts}", flush=True)
    print(f"opening: 100 × the rows take {result['open_ratio']:.2f} × the time, {result['ratio']:.2f} × with a batch")
    return result


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    with TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        reports = {part.__name__: part(args, folder) for part in (criteo, histories, opening)}
    paths = ("out", "folder", "criteo", "fuxictr", "fuxictr_source")
    return {
        "benchmark": "reader",
        "device": device(threads=1),
        "versions": versions("torch", "torchdata", "numpy", "pyarrow"),
        "settings": {key: value for key, value in vars(args).items() if key not in paths},
        **reports,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print lines as results come; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="Criteo rows to generate; 8 of 10 are train")
    parser.add_argument("--criteo", type=Path, help="train.txt (plain, .gz or .zst) instead")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--min-count", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--history-rows", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=20_000, help="whose histories the impressions see")
    parser.add_argument("--max-length", type=int, default=50, help="L_max of each of the four event types")
    parser.add_argument("--opening-rows", type=int, default=100_000, help="N; the larger split has 100 N")
    parser.add_argument("--opening-rounds", type=int, default=21)
    parser.add_argument("--fuxictr", metavar="PYTHON", help="interpreter of an environment that has FuxiCTR")
    parser.add_argument("--fuxictr-source", type=Path, metavar="DIR", help="FuxiCTR's source tree, measured too")
    parser.add_argument("--folder", type=Path, help="for the temporary files")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = benchmark(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
