"""Reader processes when a scheduler signals the whole process group: they go on until the main process ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from data.interruption import outlive_first_signal
from data.module import SyntheticData


@pytest.fixture
def data() -> SyntheticData:
    return SyntheticData(train_rows=256, batch_size=32, max_length=4, num_workers=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_they_read_does_not_end_them(number: int, data: SyntheticData) -> None:
    batches = iter(data.train_dataloader())
    workers = batches._workers
    for worker in workers:
        os.kill(worker.pid, number)
    assert sum(len(batch) for batch in batches) == 256
    del batches
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_nor_does_one_while_they_start(number: int, data: SyntheticData) -> None:
    signalled: set[int] = set()

    def shoot() -> None:
        while len(signalled) < 2:
            for child in multiprocessing.active_children():
                if child.pid is not None and child.pid not in signalled:
                    os.kill(child.pid, number)
                    signalled.add(child.pid)

    shooter = threading.Thread(target=shoot)
    shooter.start()
    batches = iter(data.train_dataloader())
    shooter.join()
    assert {worker.pid for worker in batches._workers} == signalled
    assert sum(len(batch) for batch in batches) == 256


def _outlives_one() -> None:
    outlive_first_signal(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def test_the_second_ends_them() -> None:
    process = multiprocessing.Process(target=_outlives_one)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGTERM


def test_the_main_process_gets_its_signals_afterwards() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    iter(SyntheticData(train_rows=64, batch_size=32, max_length=4, num_workers=1).train_dataloader())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
