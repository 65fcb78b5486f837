"""A scheduler's signal to leave: remembered while something must first be saved, else obeyed at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM sends the first at the end of the time limit, and the second before it with --signal=USR1@SECONDS.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 128 + signal.SIGTERM


class Preemption:
    """Whether the process was told to leave; ``deferred``: whether it goes on until somebody has saved."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferred = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, the signals end the program with exit code 143, through every ``finally``."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._install()
        try:
            yield
        finally:
            self.deferred = False
            if _is_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def defer(self) -> None:
        """From now on a signal is only remembered, in place of what Lightning has come to do with it: at SIGTERM it
        leaves in the middle of an accumulation, at SIGUSR1 under SLURM it saves in the middle of a step."""
        self._install()
        self.deferred = True

    def _install(self) -> None:
        if _is_main_thread():  # only there can handlers be set
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if not self.deferred:
            raise SystemExit(EXIT_CODE)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
