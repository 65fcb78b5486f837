"""Checkpoints that are cut short or changed in one byte: are all of them noticed, and what does a run do?"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.reliability.attempts import Line, Setting, differences, finish, missing, read_trace
from kunlun.checkpoints import state_of


def noticed(checkpoint: Path, folder: Path, times: int) -> dict[str, Any]:
    """Damage copies of ``checkpoint`` at random places, by turns cut and changed."""
    whole, draw, path = checkpoint.read_bytes(), random.Random(0), folder / "damaged.ckpt"
    counts = {"cut": 0, "cut_noticed": 0, "changed": 0, "changed_noticed": 0}
    for number in range(times):
        kind = ("cut", "changed")[number % 2]
        place = draw.randrange(len(whole))
        changed = bytes([whole[place] ^ draw.randint(1, 255)])
        path.write_bytes(whole[:place] if kind == "cut" else whole[:place] + changed + whole[place + 1 :])
        counts[kind] += 1
        counts[f"{kind}_noticed"] += state_of(path) != "intact"
    return {"bytes": len(whole), "untouched_is_intact": state_of(checkpoint) == "intact", **counts}


def passed_over(folder: Path, expected: list[Line], epochs: int) -> dict[str, Any]:
    """Leave a run on the way, damage its newest checkpoint, and go on: from the one before, and saying so."""
    setting = Setting(folder, epochs, name="damaged")
    process = setting.start("--resume", "auto")
    setting.wait_for(process, lambda lines: len(lines) > 3 * setting.interval)
    process.kill()
    finish(process)
    newest = max(setting.checkpoints(), key=lambda path: path.stat().st_mtime_ns)
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    code = finish(setting.start("--resume", "auto"))
    lines = read_trace(setting.trace)
    return {
        "exit": code,
        "said_so": f"{newest.name} is damaged" in setting.log.read_text(),
        "differences": len(differences(lines, expected)),
        "missing": missing(lines, expected),
    }
