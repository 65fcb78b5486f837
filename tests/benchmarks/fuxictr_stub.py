"""Stands in for benchmarks/fuxictr_runner.py, so that tests need no FuxiCTR: the same tasks, answers of the same shape.

The environment variable STUB makes it wrong: `loses` (writes no test split), `ordered` (every epoch is the same).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet

VERSIONS = {"versions": {"fuxictr": "0.0"}, "import_seconds": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    for name in ("--raw", "--out", "--data", "--min-count", "--block-rows", "--loader", "--batch-size"):
        parser.add_argument(name)
    args = parser.parse_args()
    if args.task == "prepare":
        splits = ("train", "valid") if os.environ.get("STUB") == "loses" else ("train", "valid", "test")
        for split in splits:
            path = Path(args.out) / "criteo" / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.csv.read_csv(f"{args.raw}/{split}.csv"), path)
        print(json.dumps({**VERSIONS, "seconds": 2.0, "peak_bytes": 2**30}))
    elif args.task == "npz":
        print(json.dumps({"rows": 0}))
    else:
        print(json.dumps({**VERSIONS, "open_seconds": 0.1, "class": "StubLoader"}), flush=True)
        for turn, _ in enumerate(sys.stdin):
            first = [0 if os.environ.get("STUB") == "ordered" else turn]
            print(json.dumps({"samples": 100, "seconds": 0.5, "tensors": 40, "first": first}), flush=True)


if __name__ == "__main__":
    main()
