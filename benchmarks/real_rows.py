"""Kunlun on the real sample rows, over seeds: the figures of the README's results table.

    python -m benchmarks.real_rows criteo --path prepared/criteo --out benchmarks/results/cpu/real_rows_criteo.json

Each seed is the command line of a user: ``fit`` with the shipped config, then ``validate`` (and ``test``
where the data set has test rows) from the best checkpoint. The checkpoint is chosen on the valid split, so its valid
figures are a little flattered; the test figures are not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.machine import device, versions
from kunlun.features import FeatureSchema

ROOT = Path(__file__).resolve().parent.parent


def cli(*arguments: str) -> None:
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # seeds side by side want a core each
    subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], check=True, env=one_thread)


def one_seed(name: str, path: str, seed: int, root: Path, more: list[str]) -> dict[str, float]:
    """Metrics of one run, and its seconds."""
    run_name = f"{name}-{seed}"
    started = time.monotonic()
    cli(
        *["fit", "--config", f"data/{name}.yaml", "--data.path", path, "--seed_everything", str(seed)],
        *["--data.seed", str(seed), "--run.name", run_name, "--run.root", str(root), "--run.wandb", "disabled", *more],
    )
    seconds = time.monotonic() - started
    (run,) = (root / run_name).iterdir()
    best = run / "checkpoints" / "best.ckpt"
    commands = ["validate"] + (["test"] if FeatureSchema.load(path).rows["test"] else [])
    figures = {"seconds": seconds}
    for command in commands:
        cli(command, "--ckpt_path", str(best))
        figures |= json.loads((run / f"{command}.json").read_text())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["criteo", "userbehavior"])
    parser.add_argument("--path", required=True, help="the prepared data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(arguments.jobs) as pool:
        run = partial(one_seed, arguments.name, arguments.path, root=Path(root), more=more)
        runs = list(pool.map(run, arguments.seeds))
    summary = {
        key: {"mean": statistics.mean(r[key] for r in runs), "sd": statistics.stdev(r[key] for r in runs)}
        for key in runs[0]
        if len(runs) > 1
    }
    for key, value in summary.items():
        print(f"{key:<22} {value['mean']:.4f} ± {value['sd']:.4f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"device": device(threads=1), "versions": versions("torch", "lightning")}
        arguments.out.write_text(
            json.dumps({**report, "seeds": arguments.seeds, "runs": runs, "summary": summary}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
