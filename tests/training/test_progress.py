"""Progress in a log: few plain lines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kunlun.training import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"time": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["time"])
    return now


def test_lines_come_every_ten_seconds_and_at_the_end_of_an_epoch(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = progress.LogLines()
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"v_num": 0, "train/loss": 0.5})
    monkeypatch.setattr(progress.LogLines, "total_train_batches", 40)
    trainer = SimpleNamespace(current_epoch=3)
    for batch in range(40):
        clock["time"] += 0.6
        bar.on_train_batch_end(trainer, None, None, None, batch)
    bar.on_train_epoch_end(trainer, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 3: 17/40 batches · train/loss 0.5000",
        "epoch 3: 34/40 batches · train/loss 0.5000",
        "epoch 3 done · train/loss 0.5000",
    ]


def test_a_disabled_bar_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.LogLines()
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {})
    bar.disable()
    bar.on_train_epoch_end(SimpleNamespace(current_epoch=0), None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, progress.TerminalBar), (False, progress.LogLines)])
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    is_terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert type(progress.progress_bar()) is kind
