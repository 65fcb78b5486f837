"""Signals that end a program, as exceptions that come through: Ctrl-C, a scheduler's SIGTERM, a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GROUP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # that a scheduler sends to a whole process group
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the program as Ctrl-C does, through every ``finally``: exit codes 143 and 129.

    Signals that the program handles itself, or ignores as under nohup, are left to it.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise _ending(number)

    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {number: handler for number, handler in before.items() if handler in default}
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    except Exception as error:
        # An engine that is computing when the signal comes makes an error of its own of what the handler raises.
        if received:
            raise _ending(received[0]) from error
        raise
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def outlive_first_signal(worker: int) -> None:
    """For a process that reads for another: the first SIGTERM changes nothing, the second ends it.

    A scheduler sends the first to the whole group; what it means is for the main process to decide, which still needs
    batches until it has saved. The second comes from the main process itself.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 wait, also in processes that are started: until `outlive_first_signal` there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
