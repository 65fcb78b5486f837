"""Does each component earn its part of the synthetic world? Full Kunlun against the model without that component.

    python -m benchmarks.synthetic_parts --cells cells/parts --out benchmarks/results/cpu/synthetic_parts.json

For each part of the click probability there are two worlds: its strength turned up, and at 0; everything else as in
the preset. On each, over paired seeds, the full model and the ``drop_`` variant of the part's component train for one
pass over the same rows, in the same order, from the same seed. With the part turned up the full model must win by
more than the 95 % interval of the paired differences; with it at 0 the two should be level.

What is compared is the expected NE: the cross-entropy against the true probabilities of the valid rows, not against
labels drawn from them, so that no luck of the draw is in it; and the oracle is its exact floor. A finished cell is a
file, so a run that was killed goes on where it was; several processes may share the folder of the cells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device, versions
from kunlun.features import Batch

# part: the ablation that takes the component away which is meant for it
COMPONENTS = {
    "recency": "no_rote",
    "motif": "drop_attention",
    "long_range": "drop_hsp",
    "context": "drop_gdpa",
    "event_types": "uniform_events",
    "crosses": "drop_wukong",
}
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
VALID_ROWS = 8_192
BATCH = 128


@dataclass(frozen=True)
class Cell:
    """One pair of trainings."""

    part: str
    strength: float
    seed: int
    preset: str
    rows: int

    def name(self) -> str:
        return f"{self.part}-{self.strength:g}-{self.seed}"


class Rows:
    """Batches held in memory, as a training loader gives them."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure both models of a cell."""
    started = time.monotonic()
    arguments = ["--data.preset", cell.preset, f"--data.strengths.{cell.part}", str(cell.strength)]
    arguments += ["--data.train_rows", str(cell.rows), "--seed_everything", str(cell.seed), "--run.wandb", "disabled"]
    full = build(arguments)
    world = full.datamodule.world
    # Every seed has rows of its own, too: the interval is then over data as well as over beginnings.
    first = cell.seed * cell.rows
    starts = range(first, first + cell.rows - BATCH + 1, BATCH)
    train = Rows([world.batch(torch.arange(start, start + BATCH)) for start in starts])
    indices = torch.arange(world.split("valid").start, world.split("valid").start + VALID_ROWS)
    valid = [world.batch(chunk) for chunk in indices.split(1024)]
    p = world.oracle(indices)[:, 0]
    rate = world.config.ctr
    whole = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)

    def expected_ne(q: torch.Tensor) -> float:
        return float(-(p * torch.log(q) + (1 - p) * torch.log1p(-q)).mean()) / whole

    made = time.monotonic() - started
    figures: dict[str, Any] = {"oracle_ne": expected_ne(p.clamp(1e-12, 1 - 1e-12)), "data_seconds": made}
    for name, cli in (("full", full), ("dropped", build([*arguments, "--config", ablation(cell.part)]))):
        begun = time.monotonic()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = cli.make_trainer([], max_epochs=1, max_steps=len(train), **quiet)
        trainer.fit(cli.model, train_dataloaders=train)
        cli.model.eval()
        with torch.no_grad():
            logits = torch.cat([cli.model(batch) for batch in valid])[:, 0]
        figures[f"{name}_ne"] = expected_ne(torch.sigmoid(logits.double()))
        figures[f"{name}_seconds"] = time.monotonic() - begun
    return figures


def ablation(part: str) -> str:
    return f"ablations/{COMPONENTS[part]}.yaml"


def build(arguments: list[str]) -> Any:
    """The parts of a run as the command line makes them."""
    from kunlun.command_line import read_request
    from kunlun.training.cli import KunlunCLI
    from kunlun.training.precheck import precheck

    request = read_request("fit", arguments)
    return KunlunCLI(request, precheck(request))


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval (Student's t)."""
    n = len(differences)
    if n < 2:
        return statistics.fmean(differences), math.inf
    return statistics.fmean(differences), STUDENT_95[n] * statistics.stdev(differences) / math.sqrt(n)


def summary(cells: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per world: how far the model without the component is behind."""
    rows = []
    for part, strength in sorted(
        {(c.part, c.strength) for c in cells}, key=lambda k: (list(COMPONENTS).index(k[0]), k[1])
    ):
        found = [figures for cell, figures in cells.items() if (cell.part, cell.strength) == (part, strength)]
        behind, half = interval([f["dropped_ne"] - f["full_ne"] for f in found])
        oracle = statistics.fmean(f["oracle_ne"] for f in found)
        full = statistics.fmean(f["full_ne"] for f in found)
        rows.append(
            {
                "part": part,
                "strength": strength,
                "dropped": COMPONENTS[part],
                "seeds": len(found),
                "oracle_ne": oracle,
                "full_ne": full,
                "dropped_ne": full + behind,
                "full_share_of_gain": (1 - full) / (1 - oracle),
                "behind": behind,
                "half_width_95": half,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(COMPONENTS), default=list(COMPONENTS), help="only these")
    parser.add_argument("--up", type=float, default=2.0, help="the strength that is turned up")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=49_152, help="training rows of a cell")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--cells", type=Path, default=Path("cells/synthetic_parts"), help="folder of finished cells")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    args.cells.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that every world has as many seeds as any other, whenever it ends.
    cells = [
        Cell(part, strength, seed, args.preset, args.rows)
        for seed in range(args.seeds)
        for part in args.part
        for strength in (args.up, 0.0)
    ]
    found = {}
    for cell in cells:
        figures = finish(cell, args.cells)
        if figures is not None:
            found[cell] = figures
    # What other processes were at is finished by now, or by them.
    found |= {cell: figures for cell in cells if (figures := read(cell, args.cells)) is not None}
    rows = summary(found)
    for row in rows:
        print(line(row), flush=True)
    if args.out:
        report = {
            "benchmark": "synthetic_parts",
            "settings": {name: value for name, value in vars(args).items() if name not in ("out", "cells")},
            "device": device(1),
            "versions": versions("torch", "lightning"),
            "results": rows,
            "cells": [{**cell.__dict__, **figures} for cell, figures in found.items()],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def place(cell: Cell, folder: Path) -> Path:
    key = hashlib.sha256(json.dumps(cell.__dict__, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{cell.name()}-{key}.json"


def read(cell: Cell, folder: Path) -> dict[str, Any] | None:
    path = place(cell, folder)
    return json.loads(path.read_text()) if path.is_file() else None


def finish(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The figures of a cell, run here unless they are there; None where another process is at it."""
    done = read(cell, folder)
    if done is not None:
        return done
    path = place(cell, folder)
    claim = path.with_suffix(".claim")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return None
    try:
        figures = run(cell)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(figures))
        partial.rename(path)
    finally:
        claim.unlink()
    behind = figures["dropped_ne"] - figures["full_ne"]
    print(f"{cell.name()}: without {COMPONENTS[cell.part]} behind by {behind:+.5f} NE; {figures}", flush=True)
    return figures


def line(row: dict[str, Any]) -> str:
    """One world in words."""
    clear = "ahead" if row["behind"] > row["half_width_95"] else "level"
    if row["behind"] < -row["half_width_95"]:
        clear = "worse"
    return (
        f"{row['part']:<12}at {row['strength']:<4g}{row['dropped']:<16}NE of oracle {row['oracle_ne']:.4f}, "
        f"full {row['full_ne']:.4f} ({100 * row['full_share_of_gain']:.0f} % of the gain), without it "
        f"{row['behind']:+.4f} ± {row['half_width_95']:.4f} over {row['seeds']} seeds: full is {clear}"
    )


if __name__ == "__main__":
    main()
