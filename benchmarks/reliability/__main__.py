"""Everything, into benchmarks/results/cpu/reliability.json: `python -m benchmarks.reliability`.

An unbroken run is traced bit for bit: the loss and the rows of every batch, the metrics of every validation. Then the
same run is killed, told to leave, or left without a disk, resumed with `--resume auto`, and compared with it.
Some parts alone, the others staying as they are in the file: `python -m benchmarks.reliability --only damage memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import device, versions
from benchmarks.reliability import configs, damage, disks, kills, memory
from benchmarks.reliability.attempts import Setting

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu" / "reliability.json"
FEW_EPOCHS = 2


def killed(folder: Path, times: int) -> list[dict[str, Any]]:
    """Half without workers, half with two, each beside an unbroken run of its length."""
    found = []
    for workers, count in ((0, times - times // 2), (2, times // 2)):
        epochs = kills.epochs_for(count)
        place = folder / f"workers-{workers}"
        place.mkdir()
        found.append(kills.killed(place, kills.unbroken(place, epochs), count, epochs, workers))
    return found


def terminated(folder: Path, times: int) -> list[dict[str, Any]]:
    """Likewise."""
    epochs = kills.epochs_for(times)
    expected = kills.unbroken(folder, epochs)
    return [kills.terminated(folder, expected, n, epochs, w) for w, n in ((0, times - times // 2), (2, times // 2))]


def on_bad_disks(folder: Path) -> dict[str, Any]:
    expected = kills.unbroken(folder, FEW_EPOCHS)
    return {
        "full": disks.full(folder, expected, FEW_EPOCHS),
        "read_only": disks.read_only(folder, expected, FEW_EPOCHS),
    }


def damaged(folder: Path, times: int) -> dict[str, Any]:
    expected = kills.unbroken(folder, FEW_EPOCHS)
    checkpoint = Setting(folder, FEW_EPOCHS, name="unbroken").checkpoints()[0]
    return {
        "files": damage.noticed(checkpoint, folder, times),
        "run": damage.passed_over(folder, expected, FEW_EPOCHS),
    }


def mutated() -> dict[str, Any]:
    from tests.test_cli import MUTATIONS

    return configs.refused(MUTATIONS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, half of them with two workers")
    parser.add_argument("--signals", type=int, default=20, help="SIGTERMs and SIGUSR1s, likewise")
    parser.add_argument("--damages", type=int, default=400, help="damaged copies of a checkpoint")
    parser.add_argument("--mebibytes", type=int, default=512, help="size of the checkpoint whose memory is measured")
    parser.add_argument("--only", nargs="+", help="these parts: kills signals disks damage memory configs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parts: dict[str, Callable[[Path], Any]] = {
        "kills": partial(killed, times=args.kills),
        "signals": partial(terminated, times=args.signals),
        "disks": on_bad_disks,
        "damage": partial(damaged, times=args.damages),
        "memory": partial(memory.measured, mebibytes=args.mebibytes),
        "configs": lambda folder: mutated(),
    }
    chosen = args.only or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    result = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    result |= {"benchmark": "reliability", "device": device(1), "versions": versions("torch", "lightning", "torchdata")}
    for name in chosen:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
            result[name] = parts[name](Path(folder))
        print(f"{name}: {time.monotonic() - started:.0f} s: {json.dumps(result[name])}", flush=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")  # after each part: the next may take long


if __name__ == "__main__":
    main()
