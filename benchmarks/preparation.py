"""Preparation at scale: `python -m benchmarks.preparation`.

Taobao ads: raw files of two sizes, one twice the other, are generated and prepared, each in a process of its own.
Reported are the seconds of the work (imports come first and are told apart), rows per second with the log's rows, the
peak memory, the disk that was used on the way, and the ratio of the two times (2 is linear). Then everything that a
model would be handed for a sample of users is compared with a brute-force join of the raw files
(benchmarks.taobao_check); a difference ends the benchmark.

Criteo: the same rows through this project and, with --fuxictr, through FuxiCTR's preprocessing, taking turns in one
run. Both read plain text, split 8:1:1 by row order, with the same minimum count. FuxiCTR gets the three CSVs with a
header that it wants (making them is not timed), and writes one file per split, 39 categorical fields: the integers
in its buckets, and the categoricals. This project writes those 39 and 13 standardised numbers. Both use the threads
that they choose. FuxiCTR is the package that PYTHON has, and with --fuxictr-source a source tree too, run by it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from benchmarks.machine import device, versions
from benchmarks.processes import Finished, FuxiCTR, disk_bytes, installations, run
from benchmarks.taobao_check import check
from data.criteo import LAYOUT
from data.generate import generate, options_of

OURS = "this project"
SPLITS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def prepared(name: str, raw: Path, out: Path, options: dict[str, Any]) -> Finished:
    command = [sys.executable, "-m", "benchmarks.prepare_once", name, str(raw), str(out), json.dumps(options)]
    return run(command, watch=(out.parent, f"{out.name}*"))


def taobao(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Half the size, then all of it."""
    sizes = []
    for divisor in (2, 1):
        events, impressions = args.events // divisor, args.impressions // divisor
        raw, out = folder / "taobao-raw", folder / "taobao"
        generate("taobao", raw, options_of("taobao")(events=events, impressions=impressions))  # type: ignore[call-arg]
        done = prepared("taobao", raw, out, {"threads": args.threads})
        sizes.append(
            {
                "events": events,
                "impressions": impressions,
                "raw_bytes": disk_bytes(raw),
                "prepared_bytes": disk_bytes(out),
                # The most that the scratch folder and the growing output held together.
                "disk_peak_bytes": done.disk_bytes,
                "seconds": done.answer["seconds"],
                "import_seconds": done.answer["import_seconds"],
                "rows_per_second": (events + impressions) / done.answer["seconds"],
                "peak_bytes": done.answer["peak_bytes"],
                "tree_peak_bytes": done.tree_bytes,
                "counts": done.answer["counts"],
                "checked": check(raw, out, args.users),
            }
        )
        print(taobao_line(sizes[-1]), flush=True)
        for used in (raw, out):
            shutil.rmtree(used)
    return {"sizes": sizes, "time_ratio": sizes[1]["seconds"] / sizes[0]["seconds"]}


def taobao_line(size: dict[str, Any]) -> str:
    checked = size["checked"]
    return (
        f"taobao {size['events']:,} events, {size['impressions']:,} impressions: {size['seconds']:.1f} s, "
        f"{size['rows_per_second']:,.0f} rows/s, peak memory {size['peak_bytes'] / 2**30:.2f} GiB, "
        f"disk {size['disk_peak_bytes'] / 1e9:.2f} GB; {checked['impressions']:,} impressions of {checked['users']:,} "
        f"users with {checked['events']:,} events before them are right"
    )


def criteo(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every contender once per round, each round beginning with the next one."""
    raw, csvs = folder / "train.txt", folder / "csv"
    source = args.criteo
    if source is None:
        generate("criteo", folder / "criteo-raw", options_of("criteo")(rows=args.criteo_rows))  # type: ignore[call-arg]
        source = folder / "criteo-raw" / "train.txt"
    rows = plain_copies(source, raw, csvs)
    contenders: dict[str, FuxiCTR | None] = {OURS: None}
    contenders |= {fuxictr.name: fuxictr for fuxictr in installations(args.fuxictr, args.fuxictr_source)}
    runs: dict[str, list[Finished]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            fuxictr, out = contenders[name], folder / "out"
            if fuxictr is None:
                done = prepared("criteo", raw, out, {"min_count": args.min_count, "threads": args.threads})
            else:
                task = ["prepare", "--raw", str(csvs), "--out", str(out), "--min-count", str(args.min_count)]
                done = run(fuxictr.command(*task), fuxictr.environment(), watch=(folder, out.name))
            check_rows(name, rows, written_rows(out) if fuxictr else sum(done.answer["rows"].values()))
            runs[name].append(done)
            print(f"criteo, round {turn + 1}: {name}: {done.answer['seconds']:.1f} s", flush=True)
            shutil.rmtree(out)
    results = {name: summary(rows, done, runs[OURS]) for name, done in runs.items()}
    for name, fuxictr in contenders.items():
        if fuxictr:
            results[name] |= {"versions": runs[name][0].answer["versions"], "commit": fuxictr.revision()}
        print(criteo_line(name, results[name]), flush=True)
    if len(contenders) == 1:
        print("criteo: FuxiCTR was not measured; give --fuxictr the Python interpreter of an environment that has it")
    return {"rows": rows, "source": source.name if args.criteo else "generated", "results": results}


def written_rows(out: Path) -> int:
    """Of FuxiCTR's Parquet files."""
    return sum(pa.parquet.read_metadata(path).num_rows for path in out.rglob("*.parquet"))


def check_rows(name: str, rows: int, written: int) -> None:
    if written != rows:
        raise RuntimeError(f"{name} wrote {written:,} of {rows:,} rows; nothing is compared")


def plain_copies(source: Path, raw: Path, csvs: Path) -> int:
    """Unpacked text for one, comma-separated splits with a header for the other; returns the rows."""
    with pa.input_stream(str(source), compression="detect") as packed, raw.open("wb") as file:
        while block := packed.read(2**24):
            file.write(block)
    with raw.open("rb") as file:
        rows = sum(1 for _ in file)
    csvs.mkdir()
    train, valid = int(rows * SPLITS["train"]), int(rows * (SPLITS["train"] + SPLITS["valid"]) + 1e-6)
    with raw.open() as file:
        for split, count in zip(SPLITS, (train, valid - train, rows - valid), strict=True):
            with (csvs / f"{split}.csv").open("w") as out:
                out.write(",".join(LAYOUT.columns) + "\n")
                out.writelines(next(file).replace("\t", ",") for _ in range(count))
    return rows


def summary(rows: int, runs: list[Finished], ours: list[Finished]) -> dict[str, Any]:
    """Medians; ``over_ours``: how many times as long as this project."""

    def median(of: list[Finished], key: str) -> float:
        return statistics.median(done.wall_seconds if key == "wall" else done.answer[key] for done in of)

    return {
        "seconds": median(runs, "seconds"),
        "import_seconds": median(runs, "import_seconds"),
        "wall_seconds": median(runs, "wall"),
        "all_seconds": [done.answer["seconds"] for done in runs],
        "rows_per_second": rows / median(runs, "seconds"),
        "peak_bytes": max(done.answer["peak_bytes"] for done in runs),
        "tree_peak_bytes": max((done.tree_bytes or 0 for done in runs), default=0) or None,
        "over_ours": median(runs, "seconds") / median(ours, "seconds"),
        "over_ours_with_imports": median(runs, "wall") / median(ours, "wall"),
    }


def criteo_line(name: str, result: dict[str, Any]) -> str:
    version = f" {result['versions']['fuxictr']}" if "versions" in result else ""
    commit = f" at {result['commit'][:12]}" if result.get("commit") else ""
    tree = result["tree_peak_bytes"] or result["peak_bytes"]
    return (
        f"criteo {name + version + commit:40} {result['seconds']:7.2f} s ({result['wall_seconds']:.2f} with start and "
        f"imports)  {result['rows_per_second']:9,.0f} rows/s  peak memory {result['peak_bytes'] / 2**30:.2f} GiB, all "
        f"its processes {tree / 2**30:.2f} GiB  {result['over_ours']:.2f} × our time "
        f"({result['over_ours_with_imports']:.2f} with start and imports)"
    )


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        criteo_report = criteo(args, folder)
        taobao_report = taobao(args, folder)
    paths = ("out", "folder", "criteo", "fuxictr", "fuxictr_source")
    return {
        "benchmark": "preparation",
        "device": device(args.threads or os.cpu_count() or 1),
        "versions": versions("duckdb", "ibis-framework", "pyarrow", "numpy", "pandas"),
        "settings": {key: value for key, value in vars(args).items() if key not in paths},
        "criteo": criteo_report,
        "taobao": taobao_report,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print lines as results come; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000, help="rows of the larger behaviour log")
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200, help="users whose impressions are checked")
    parser.add_argument("--criteo", type=Path, help="train.txt (plain, .gz or .zst); else one is generated")
    parser.add_argument("--criteo-rows", type=int, default=200_000, help="rows to generate")
    parser.add_argument("--min-count", type=int, default=10, help="Criteo: of both")
    parser.add_argument("--rounds", type=int, default=3, help="Criteo: runs of each")
    parser.add_argument("--threads", type=int, default=0, help="of this project's engine; 0: one per core")
    parser.add_argument("--fuxictr", metavar="PYTHON", help="interpreter of an environment that has FuxiCTR")
    parser.add_argument("--fuxictr-source", type=Path, metavar="DIR", help="FuxiCTR's source tree, measured too")
    parser.add_argument("--folder", type=Path, help="for the temporary files, several times as large as the raw ones")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = benchmark(args)
    print(f"taobao: twice the rows take {report['taobao']['time_ratio']:.2f} × the time")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
