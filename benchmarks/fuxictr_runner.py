"""What runs in the Python environment of FuxiCTR: its preparation of Criteo, and its loaders.

The benchmarks start it with that environment's interpreter, so nothing of this project is imported here:

    PYTHON fuxictr_runner.py prepare --raw DIR --out DIR --min-count 10 [--block-rows N]
    PYTHON fuxictr_runner.py npz --data DIR/criteo
    PYTHON fuxictr_runner.py read --data DIR/criteo --loader parquet|parquet-blocks|npz --batch-size B

``--raw`` holds train.csv, valid.csv and test.csv with a header. The fields are those of FuxiCTR's runs on Criteo_x4:
the 13 integers in its buckets and the 26 categoricals, each with a vocabulary. ``read`` opens the loader, answers, and
then reads one shuffled epoch for each line that it gets. Answers are JSON, one per line.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

DATASET = "criteo"
INTEGERS = [f"I{i}" for i in range(1, 14)]
CATEGORICALS = [f"C{i}" for i in range(1, 27)]
FIELDS = [
    {
        "name": INTEGERS,
        "active": True,
        "dtype": "float",
        "type": "categorical",
        "preprocess": "convert_to_bucket",
        "fill_na": 0,
    },
    {"name": CATEGORICALS, "active": True, "dtype": "str", "type": "categorical", "fill_na": ""},
]
LABEL = {"name": "label", "dtype": "float"}


def own_channel() -> TextIO:
    """The standard output for answers alone: what libraries print goes to the standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def versions(started: float) -> dict[str, Any]:
    """Of FuxiCTR and what it computes with; and the seconds that its import took."""
    import fuxictr

    packages = ("torch", "numpy", "pandas", "polars", "pyarrow")
    found = {"fuxictr": fuxictr.__version__, **{name: version(name) for name in packages}}
    return {"versions": found, "import_seconds": time.perf_counter() - started}


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Fit and transform all three splits."""
    started = time.perf_counter()
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    answer = versions(started)
    started = time.perf_counter()
    processor = CustomizedFeatureProcessor(FIELDS, LABEL, dataset_id=DATASET, data_root=str(args.out))
    files = {f"{split}_data": str(args.raw / f"{split}.csv") for split in ("train", "valid", "test")}
    build_dataset(processor, **files, min_categr_count=args.min_count, data_block_size=args.block_rows)
    return {**answer, "seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most resident memory of this process, or of one that it waited for; as the other side measures itself."""
    status = Path("/proc/self/status")
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * max(children, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    own = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * max(own, children)


def npz(args: argparse.Namespace) -> dict[str, Any]:
    """Its other format for data in memory, from train.parquet."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(args.data / "train.parquet")
    np.savez(args.data / "train.npz", **{str(name): frame[name].to_numpy() for name in frame.columns})
    return {"rows": len(frame)}


def open_loader(args: argparse.Namespace) -> Any:
    """The training loader that FuxiCTR chooses for the format."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders import RankDataLoader

    feature_map = FeatureMap(DATASET, str(args.data))
    feature_map.load(str(args.data / "feature_map.json"), {"embedding_dim": 16})
    blocks = args.loader == "parquet-blocks"
    file_format = args.loader.partition("-")[0]
    train = args.data / ("train" if blocks else f"train.{file_format}")
    loaders = RankDataLoader(
        feature_map,
        stage="train",
        train_data=str(train),
        batch_size=args.batch_size,
        shuffle=True,
        data_format=file_format,
        num_workers=0,
        **({"streaming": blocks} if "streaming" in inspect.signature(RankDataLoader).parameters else {}),
    )
    return (loaders.make_iterator() if hasattr(loaders, "make_iterator") else loaders)[0]


def epoch(loader: Any) -> dict[str, Any]:
    """Read every row once. ``tensors``: of a batch, the label's among them; ``first``: labels of the first rows."""
    import torch

    samples, first, batch = 0, [], {}
    started = time.perf_counter()
    for batch in loader:
        if not samples:
            first = batch["I1"][:64].tolist()
        samples += len(batch["label"])
    seconds = time.perf_counter() - started
    if not all(isinstance(values, torch.Tensor) for values in batch.values()):
        raise TypeError("a batch holds something else than tensors")
    return {"samples": samples, "seconds": seconds, "tensors": len(batch), "first": first}


def read(args: argparse.Namespace, channel: TextIO) -> None:
    started = time.perf_counter()
    import torch
    from fuxictr.pytorch import dataloaders  # noqa: F401 # so that its import counts as such

    torch.set_num_threads(1)
    answer = versions(started)
    started = time.perf_counter()
    loader = open_loader(args)
    answer |= {"open_seconds": time.perf_counter() - started, "class": type(loader).__name__}
    print(json.dumps(answer), file=channel)
    for _ in sys.stdin:
        print(json.dumps(epoch(loader)), file=channel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prepare", "npz", "read"])
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--min-count", type=int, default=1)
    parser.add_argument("--block-rows", type=int, default=0, help="rows of each file; 0: one file per split")
    parser.add_argument("--loader", choices=["parquet", "parquet-blocks", "npz"], default="parquet")
    parser.add_argument("--batch-size", type=int, default=4096)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    channel = own_channel()
    if args.task == "read":
        read(args, channel)
    else:
        print(json.dumps({"prepare": prepare, "npz": npz}[args.task](args)), file=channel)


if __name__ == "__main__":
    main()
