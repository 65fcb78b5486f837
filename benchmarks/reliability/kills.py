"""SIGKILL at random moments, and SIGTERM: does every attempt go on, and is the whole what an unbroken run gives?"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.reliability.attempts import Line, Setting, differences, finish, missing, read_trace, replays

# Steps between two kills; the delay after the last step makes the moment random within one.
STEPS = (1, 14)
DELAY = 0.15


def unbroken(folder: Path, epochs: int, **settings: Any) -> list[Line]:
    """The trace of a run that nothing happens to. RuntimeError with its log if it fails."""
    setting = Setting(folder, epochs, name="unbroken", **settings)
    code = finish(setting.start())
    if code != 0:
        raise RuntimeError(f"the unbroken run ended with {code}:\n{setting.log.read_text()}")
    return read_trace(setting.trace)


def epochs_for(kills: int, batches: int = 40) -> int:
    """So many epochs that this many kills happen before the end; a kill throws back by half an interval or so."""
    return -(-kills * 6 // batches) + 2


def killed(
    folder: Path, expected: list[Line], kills: int, epochs: int, workers: int, **settings: Any
) -> dict[str, Any]:
    """Kill a run ``kills`` times, then let it end."""
    setting = Setting(folder, epochs, workers=workers, name=f"killed-{workers}", **settings)
    draw = random.Random(0)
    codes = []
    for _ in range(kills):
        process = setting.start("--resume", "auto")
        steps = draw.randint(*STEPS)
        setting.wait_for(process, lambda lines, steps=steps: sum(x.kind == "train" for x in lines) >= steps)
        time.sleep(draw.random() * DELAY)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        codes.append(finish(process))
    codes.append(finish(setting.start("--resume", "auto")))
    lines = read_trace(setting.trace)
    again = replays(lines)
    return {
        "workers": workers,
        "kills": codes.count(128 + signal.SIGKILL),
        "failed_resumes": sum(code not in (0, 128 + signal.SIGKILL) for code in codes),
        "finished": codes[-1] == 0,
        "differences": len(differences(lines, expected)),
        "missing": missing(lines, expected),
        "batches_compared": sum(line.kind == "train" for line in lines),
        "validations_compared": sum(line.kind == "valid" for line in lines),
        "checkpoint_interval": setting.interval,
        "largest_replay": max(again, default=0),
        "mean_replay": statistics.fmean(again) if again else 0.0,
    }


def terminated(
    folder: Path, expected: list[Line], times: int, epochs: int, workers: int, **settings: Any
) -> dict[str, Any]:
    """SIGTERM, every other time SIGUSR1; with workers to the whole process group, as a scheduler does."""
    setting = Setting(folder, epochs, workers=workers, interval=100_000, name=f"terminated-{workers}", **settings)
    draw = random.Random(1)
    codes, saved, ended = [], [], []
    for number in range(times):
        process = setting.start("--resume", "auto")
        steps = draw.randint(*STEPS)
        setting.wait_for(process, lambda lines, steps=steps: sum(x.kind == "train" for x in lines) >= steps)
        time.sleep(draw.random() * DELAY)
        sent = time.time()
        (os.killpg if workers else os.kill)(process.pid or 0, signal.SIGUSR1 if number % 2 else signal.SIGTERM)
        codes.append(finish(process))
        ended.append(time.time() - sent)
        newest = max((path.stat().st_mtime for path in setting.checkpoints()), default=sent)
        saved.append(max(newest - sent, 0.0))
    codes.append(finish(setting.start("--resume", "auto")))
    lines = read_trace(setting.trace)
    return {
        "workers": workers,
        "signals": times,
        "exit_143": codes.count(143),
        "finished": codes[-1] == 0,
        "saved_after_seconds_max": max(saved),
        "ended_after_seconds_max": max(ended),
        "differences": len(differences(lines, expected)),
        "missing": missing(lines, expected),
        "largest_replay": max(replays(lines), default=0),
    }
