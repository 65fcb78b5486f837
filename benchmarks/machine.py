"""What a benchmark ran on, for its JSON."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from kunlun.training.devices import cpu_model


def device(threads: int) -> dict[str, str | int | None]:
    """Processor, its cores, and the threads that were used."""
    return {"cpu": cpu_model() or platform.processor(), "cores": os.cpu_count(), "threads": threads}


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
