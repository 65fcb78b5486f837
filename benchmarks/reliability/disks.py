"""A disk that is full, and one that becomes read-only, under a run: what it says, and what is left to go on from."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reliability.attempts import Line, Setting, differences, finish, missing, read_trace
from kunlun.checkpoints import newest_intact

SIZE = "2m"  # holds two checkpoints of models/tiny, not the four that a run wants


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs on ``folder``; False where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def full(folder: Path, expected: list[Line], epochs: int) -> dict[str, Any]:
    """A run that fills the disk; then the disk grows, and the run goes on."""
    setting = Setting(folder, epochs, name="full")
    with small_disk(setting.folder / "runs") as mounted:
        if not mounted:
            return {"skipped": "mounting a tmpfs is not permitted here; run as root"}
        return _broken(setting, expected, setting.start("--resume", "auto"), f"size={64}m")


def read_only(folder: Path, expected: list[Line], epochs: int) -> dict[str, Any]:
    """A run whose disk becomes read-only; then writable again, and the run goes on."""
    setting = Setting(folder, epochs, name="read-only")
    with small_disk(setting.folder / "runs") as mounted:
        if not mounted:
            return {"skipped": "mounting a tmpfs is not permitted here; run as root"}
        _mount("-o", "remount,size=64m", str(setting.folder / "runs"))
        process = setting.start("--resume", "auto")
        setting.wait_for(process, lambda lines: len(lines) > setting.interval + 2)
        while process.is_alive() and not _mount("-o", "remount,ro", str(setting.folder / "runs")):
            pass  # a file is being written
        return _broken(setting, expected, process, "rw")


def _broken(setting: Setting, expected: list[Line], process: Any, repaired: str) -> dict[str, Any]:
    code = finish(process)
    said = [line for line in setting.log.read_text().splitlines() if line.startswith("error: ")]
    newest, _ = newest_intact(setting.checkpoints())
    _mount("-o", f"remount,{repaired}", str(setting.folder / "runs"))
    after = finish(setting.start("--resume", "auto"))
    lines = read_trace(setting.trace)
    return {
        "exit": code,
        "traceback": "Traceback" in setting.log.read_text(),
        "said": said[0].replace(str(setting.folder), "FOLDER") if said else None,
        "intact_checkpoint_left": newest is not None,
        "resumed_exit": after,
        "differences": len(differences(lines, expected)),
        "missing": missing(lines, expected),
    }


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
