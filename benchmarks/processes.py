"""Programs that a benchmark runs beside itself: their answers, their memory, the disk they use meanwhile.

A program answers with JSON, one object per line. Its peak memory comes from itself (`peak_bytes`), because what a
parent is told of a child (ru_maxrss) begins at the size of the parent. The sum over all its processes is sampled from
outside, each page that several of them map counted once, where the system tells (Linux).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNNER = Path(__file__).resolve().parent / "fuxictr_runner.py"
SAMPLE_SECONDS = 0.2


def peak_bytes() -> int:
    """The most resident memory of this process, or of one that it started and waited for, if that is more."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss it does not begin at the peak of the process that started this one.
        own = next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max(own, unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


@dataclass(frozen=True)
class FuxiCTR:
    """An installation: its interpreter, and a source tree to use instead of the installed package."""

    python: str
    source: Path | None = None

    @property
    def name(self) -> str:
        return "FuxiCTR package" if self.source is None else "FuxiCTR source"

    def command(self, *arguments: str) -> list[str]:
        return [self.python, str(RUNNER), *arguments]

    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env["RAY_USAGE_STATS_ENABLED"] = "0"
        return env if self.source is None else env | {"PYTHONPATH": str(self.source.resolve())}

    def revision(self) -> str | None:
        """The commit of the source tree."""
        if self.source is None:
            return None
        git = ["git", "-C", str(self.source), "rev-parse", "HEAD"]
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else "not a git checkout"


def installations(python: str | None, source: Path | None) -> list[FuxiCTR]:
    """What the options --fuxictr and --fuxictr-source name."""
    if python is None:
        return []
    return [FuxiCTR(python), *([FuxiCTR(python, source)] if source else [])]


@dataclass(frozen=True)
class Finished:
    """``answer``: its last line · ``disk_bytes``: the most below the watched paths, None if none was watched."""

    answer: dict[str, Any]
    wall_seconds: float
    tree_bytes: int | None
    disk_bytes: int | None


def run(command: Sequence[str], env: dict[str, str] | None = None, watch: tuple[Path, str] | None = None) -> Finished:
    """Run to the end. ``watch``: a folder and a glob in it. RuntimeError: it failed; the message ends as it did."""
    started = time.perf_counter()
    # Both ends in one pipe each way would block a program that says much: its errors and chatter go to a file.
    program = subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(program.stderr or []), daemon=True)
    listener.start()
    sampler = _Sampler(program.pid, watch)
    sampler.start()
    output = program.stdout.read() if program.stdout else ""
    code = program.wait()
    wall = time.perf_counter() - started
    sampler.stop()
    listener.join(timeout=10)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{''.join(said[-40:])}")
    return Finished(json.loads(output.splitlines()[-1]), wall, sampler.tree_bytes, sampler.disk_bytes)


class Conversation:
    """A program that answers its start, and then every line; ``core``: the one that it may use, None: all."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None, core: int | None) -> None:
        self._command = command
        self._program = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            preexec_fn=None if core is None else lambda: pin(core),
        )
        self.opening = self._answer()

    def ask(self) -> dict[str, Any]:
        assert self._program.stdin is not None
        self._program.stdin.write("again\n")
        return self._answer()

    def close(self) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self._program.wait()} and gave no answer")
        return json.loads(line)


def cores() -> set[int]:
    """Those that this process may use; nothing where the system does not tell."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def pin(*wanted: int) -> None:
    """Keep this thread, and what it starts from now on, on these cores, where the system can."""
    if wanted and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, wanted)


class _Sampler(threading.Thread):
    """Memory of a process with its descendants, and bytes below the watched paths: the most that was seen."""

    def __init__(self, pid: int, watch: tuple[Path, str] | None) -> None:
        super().__init__(daemon=True)
        self.pid, self.watch = pid, watch
        self.tree_bytes: int | None = None
        self.disk_bytes: int | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            if Path("/proc").is_dir():
                self.tree_bytes = max(self.tree_bytes or 0, sum(_proportional_bytes(pid) for pid in _tree(self.pid)))
            if self.watch:
                folder, pattern = self.watch
                self.disk_bytes = max(self.disk_bytes or 0, sum(disk_bytes(path) for path in folder.glob(pattern)))
            self._over.wait(SAMPLE_SECONDS)

    def stop(self) -> None:
        self._over.set()
        self.join()


def disk_bytes(folder: Path) -> int:
    """Of all files below; those that go while we look do not count."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total


def _tree(pid: int) -> list[int]:
    """The process and its descendants."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in _tree(child))]


def _proportional_bytes(pid: int) -> int:
    """Resident memory, shared pages in proportion."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
