"""Wrong configurations, each given to a command line of its own: is it refused, how soon, and is the key named?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reliability.attempts import ROOT


def refused(mutations: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """``mutations``: the text of a config file, the key that must be named, and what else must be said."""
    seconds, unnamed = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text, key, told in mutations:
            path = folder / "mutated.yaml"
            path.write_text(f"{text}\n", encoding="utf-8")
            command = [sys.executable, str(ROOT / "cli.py"), "fit", "--config", str(path), f"--run.root={folder}/runs"]
            started = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            seconds.append(time.monotonic() - started)
            said = done.stderr
            is_right = done.returncode == 2 and key in said and told in said and "Traceback" not in said
            if not is_right or (folder / "runs").exists():
                unnamed.append(text)
    return {
        "configs": len(mutations),
        "refused_with_the_key": len(mutations) - len(unnamed),
        "wrong": unnamed,
        "seconds_median": sorted(seconds)[len(seconds) // 2],
        "seconds_max": max(seconds),
    }
