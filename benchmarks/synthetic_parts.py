"""Does each component earn its part of the synthetic world? Full Kunlun against the model without that component.

    python -m benchmarks.synthetic_parts --cells cells/parts --out benchmarks/results/cpu/synthetic_parts.json

For each part of the click probability there are two worlds: its strength turned up, and at 0. The other parts that
depend on a history are at 0 in both, so that a component is needed for its own part alone; crosses and memory stay as
in the preset. On each world, over paired seeds, the full model and the ablation of the part's component train for one
pass over the same rows, in the same order, from the same seed; every seed has rows of its own. With the part turned up
the full model must win by more than the 95 % interval of the paired differences; with it at 0 the two should be level.

What is compared is the expected NE: the cross-entropy against the true probabilities of the valid rows, not against
labels drawn from them, so that no luck of the draw is in it; and the oracle is its exact floor. A finished training is
a file, so a run that was killed goes on where it was; several processes may share the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.machine import device, versions
from data.synthetic_presets import CALIBRATIONS, PRESETS
from kunlun.configuration import load_configs
from kunlun.experiments.statistics import interval
from kunlun.features import Batch

# part: the ablation that takes the component away which is meant for it
COMPONENTS = {
    "recency": "no_rote",
    "motif": "drop_attention",
    "long_range": "drop_hsp",
    "context": "drop_gdpa",
    "event_types": "drop_event_types",
    "crosses": "drop_wukong",
}
BACKGROUND = ("crosses", "memory")
VALID_ROWS = 8_192
BATCH = 64


@dataclass(frozen=True)
class Training:
    """One model on one world. ``part`` is None where all parts are as the background has them."""

    model: str
    part: str | None
    strength: float
    seed: int
    preset: str
    rows: int

    def name(self) -> str:
        """With a hash of all that the result depends on but the code: another configuration is another training."""
        world = f"{self.part}-{self.strength:g}" if self.part else "background"
        made_of = [self, BATCH, PRESETS[self.preset], CALIBRATIONS[self.preset], _configuration(self.model)]
        key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
        return f"{world}-{self.model}-{self.seed}-{key}"


@cache
def _configuration(model: str) -> str:
    return load_configs([f"ablations/{model}.yaml"]).dump()


@dataclass(frozen=True)
class World:
    """One comparison."""

    part: str
    strength: float

    def trainings(self, seed: int, preset: str, rows: int) -> tuple[Training, Training]:
        """Full, and without the part's component. A part that is not of the background and at 0 leaves just that."""
        part = None if self.strength == 0 and self.part not in BACKGROUND else self.part
        full, dropped = (
            Training(model, part, self.strength, seed, preset, rows) for model in ("kunlun", COMPONENTS[self.part])
        )
        return full, dropped


class Rows:
    """Batches held in memory, as a training loader gives them."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def run(training: Training) -> dict[str, Any]:
    """Train and measure."""
    started = time.monotonic()
    strengths = {part: 0.0 for part in COMPONENTS if part not in BACKGROUND}
    if training.part is not None:
        strengths[training.part] = training.strength
    arguments = ["--config", f"ablations/{training.model}.yaml", "--seed_everything", str(training.seed)]
    arguments += ["--data.preset", training.preset, "--run.wandb", "disabled"]
    arguments += [word for part, value in strengths.items() for word in (f"--data.strengths.{part}", str(value))]
    cli = build(arguments)
    world = cli.datamodule.world
    first = training.seed * training.rows
    starts = range(first, first + training.rows - BATCH + 1, BATCH)
    train = Rows([world.batch(torch.arange(start, start + BATCH)) for start in starts])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = cli.make_trainer([], max_epochs=1, max_steps=len(train), **quiet)
    trainer.fit(cli.model, train_dataloaders=train)
    indices = torch.arange(world.split("valid").start, world.split("valid").start + VALID_ROWS)
    cli.model.eval()
    with torch.no_grad():
        logits = torch.cat([cli.model(world.batch(chunk)) for chunk in indices.split(1024)])[:, 0]
    p = world.oracle(indices)[:, 0]
    rate = world.config.ctr
    whole = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)

    def expected_ne(q: torch.Tensor) -> float:
        return float(-(p * torch.log(q) + (1 - p) * torch.log1p(-q)).mean()) / whole

    return {
        "oracle_ne": expected_ne(p.clamp(1e-12, 1 - 1e-12)),
        "ne": expected_ne(torch.sigmoid(logits.double())),
        "seconds": time.monotonic() - started,
    }


def build(arguments: list[str]) -> Any:
    """The parts of a run as the command line makes them."""
    from kunlun.command_line import read_request
    from kunlun.training.cli import KunlunCLI
    from kunlun.training.precheck import precheck

    request = read_request("fit", arguments)
    return KunlunCLI(request, precheck(request))


def compare(world: World, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """How far the model without the component is behind; ``pairs`` are the figures of full and dropped, by seed."""
    behind = interval([dropped["ne"] - full["ne"] for full, dropped in pairs])
    oracle = statistics.fmean(full["oracle_ne"] for full, _ in pairs)
    full_ne = statistics.fmean(full["ne"] for full, _ in pairs)
    return {
        "part": world.part,
        "strength": world.strength,
        "dropped": COMPONENTS[world.part],
        "seeds": len(pairs),
        "oracle_ne": oracle,
        "full_ne": full_ne,
        "dropped_ne": full_ne + behind.mean,
        "full_share_of_gain": (1 - full_ne) / (1 - oracle),
        "behind": behind.mean,
        "half_width_95": behind.half_width,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(COMPONENTS), default=list(COMPONENTS), help="only these")
    parser.add_argument("--up", type=float, default=3.0, help="the strength that is turned up")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=65_536, help="training rows of a seed")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--cells", type=Path, default=Path("cells/synthetic_parts"), help="folder of what is finished")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    args.cells.mkdir(parents=True, exist_ok=True)
    if args.out and args.out.is_file():
        unpack(json.loads(args.out.read_text()), args.cells)
    worlds = [World(part, strength) for part in args.part for strength in (args.up, 0.0)]
    # Seed by seed, so that worlds have as many seeds as one another whenever it ends; those that are level come last.
    for up in (True, False):
        for seed in range(args.seeds):
            for world in worlds:
                if (world.strength > 0) == up:
                    for training in world.trainings(seed, args.preset, args.rows):
                        finish(training, args.cells)
    rows, found = [], {}
    for world in worlds:
        pairs = []
        for seed in range(args.seeds):
            trainings = world.trainings(seed, args.preset, args.rows)
            figures = [read(training, args.cells) for training in trainings]
            if None not in figures:  # another process may still be at it
                pairs.append((figures[0], figures[1]))
                found |= dict(zip(trainings, figures, strict=True))
        if pairs:
            rows.append(compare(world, pairs))
            print(line(rows[-1]), flush=True)
    if args.out:
        report = {
            "benchmark": "synthetic_parts",
            "settings": {name: value for name, value in vars(args).items() if name not in ("out", "cells")},
            "device": device(1),
            "versions": versions("torch", "lightning"),
            "results": rows,
            "trainings": [{"name": t.name(), **asdict(t), **figures} for t, figures in found.items()],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def unpack(report: dict[str, Any], folder: Path) -> None:
    """What a report holds is not trained again, where it was made of the same."""
    names = [f.name for f in fields(Training)]
    for line in report["trainings"]:
        training = Training(**{name: line[name] for name in names})
        path = folder / f"{training.name()}.json"
        if line.get("name") == training.name() and not path.is_file():
            path.write_text(json.dumps({key: value for key, value in line.items() if key not in ("name", *names)}))


def read(training: Training, folder: Path) -> Any:
    """The figures of a training; None where it has none yet."""
    path = folder / f"{training.name()}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def finish(training: Training, folder: Path) -> None:
    """Run ``training`` unless its figures are there or another process is at it."""
    path = folder / f"{training.name()}.json"
    try:
        with FileLock(f"{path}.lock", blocking=False):
            if path.is_file():
                return
            figures = run(training)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(figures))
            partial.replace(path)
            print(f"{training.name()}: {figures}", flush=True)
    except Timeout:
        return


def line(row: dict[str, Any]) -> str:
    """One world in words."""
    clear, width = "level", row["half_width_95"]
    if width is None:
        clear = "not told from it by one seed"
    elif abs(row["behind"]) > width:
        clear = "ahead" if row["behind"] > 0 else "worse"
    return (
        f"{row['part']:<12}at {row['strength']:<4g}{row['dropped']:<16}NE of oracle {row['oracle_ne']:.4f}, "
        f"full {row['full_ne']:.4f} ({100 * row['full_share_of_gain']:.0f} % of the gain), without it "
        f"{_signed(row)} over {row['seeds']} seeds: full is {clear}"
    )


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the documentation: a line per part, its world turned up and at 0."""
    lines = [
        "| part | without it | oracle | full | behind at {up:g} | behind at 0 | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    up = max((row["strength"] for row in results), default=0.0)
    for part in dict.fromkeys(row["part"] for row in results):
        by_strength = {row["strength"]: row for row in results if row["part"] == part}
        row, level = by_strength.get(up), by_strength.get(0.0)
        if row is not None:
            lines.append(
                f"| `{part}` | `{row['dropped']}` | {row['oracle_ne']:.3f} | {row['full_ne']:.3f} | {_signed(row)} | "
                f"{_signed(level)} | {row['seeds']}, {level['seeds'] if level else 0} |"
            )
    return "\n".join(lines).format(up=up) + "\n"


def _signed(row: dict[str, Any] | None) -> str:
    """The difference with its interval; one seed has none."""
    if row is None:
        return "–"
    width = "" if row["half_width_95"] is None else f" ± {row['half_width_95']:.4f}"
    return f"{row['behind']:+.4f}{width}".replace("-", "−")


if __name__ == "__main__":
    main()
