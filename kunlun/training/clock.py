"""Marks in time that disturb nothing: events in a GPU's queue, which nobody waits for, and the clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Marks moments of the work on ``device``; what lies between two marks is asked for later."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Mark:
        """Now: on a GPU, when the work queued so far is done."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        self.wait()
        return time.perf_counter()

    def wait(self) -> None:
        """Until the queued work is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def reached(self, mark: Mark) -> bool:
        """Whether ``mark`` lies in the past: then it can be read without waiting."""
        return isinstance(mark, float) or mark.query()

    def gaps(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds from each mark to the next; waits until the last is reached."""
        self.wait()
        return [self.between(a, b) for a, b in pairwise(marks)]

    def between(self, a: Mark, b: Mark) -> float:
        """Seconds from ``a`` to ``b``; both must be reached."""
        if isinstance(a, torch.cuda.Event) and isinstance(b, torch.cuda.Event):
            return a.elapsed_time(b) / 1000
        assert isinstance(a, float)
        assert isinstance(b, float)
        return b - a
