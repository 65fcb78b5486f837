"""A preparation that is killed, stopped or runs out of disk: what is there loads, and what is not there is not half."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data import userbehavior
from data.engine import open_engine
from data.generate import generate
from data.generate_log import UserBehaviorRaw
from data.interruption import SIGNALS, interruptible
from data.preparation import DataError, PreparationOptions, prepare_dataset
from data.reader import PreparedSplit
from data.userbehavior import UserBehaviorOptions
from kunlun.features import SCHEMA_FILE, FeatureSchema

ROOT = Path(__file__).resolve().parents[2]
FIRST, LAST = "userbehavior: ", "wrote test: "  # words of the progress, before and after most of the work


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "many"
    generate("userbehavior", out, UserBehaviorRaw(rows=150_000))
    return out / "UserBehavior.csv"


@pytest.fixture(scope="module")
def few(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "UserBehavior.csv"
    path.write_bytes(b"".join(raw.read_bytes().splitlines(keepends=True)[:3000]))
    return path


def start(raw: Path, out: Path, *options: str, **popen: object) -> subprocess.Popen:
    command = [sys.executable, "cli.py", "prepare", "userbehavior", "--raw", str(raw), "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def stop(raw: Path, out: Path, words: str, number: int, delay: float = 0.0) -> tuple[int, str]:
    """Send a signal as soon as the progress says ``words``, and a little later; the exit code and the errors."""
    process = start(raw, out)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if words in line:
                break
        time.sleep(delay)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize(("words", "delay"), [(FIRST, 0.05), ("read ", 0.1), ("fitted ", 0.2), (LAST, 0.0)])
def test_what_a_killed_run_leaves_is_no_data_set_and_in_nobodys_way(
    raw: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, delay: float
) -> None:
    out = tmp_path / "out"
    assert stop(raw, out, words, signal.SIGKILL, delay)[0] == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("out.partial-")
    for folder in (out, left):
        with pytest.raises(FileNotFoundError, match="is not a prepared data set"):
            FeatureSchema.load(folder)
    schema = userbehavior.prepare(few, out, UserBehaviorOptions(threads=1))
    assert f"{left} is left from a preparation that was interrupted" in capsys.readouterr().out
    assert len(PreparedSplit(out, schema, "train", False)) == schema.rows["train"] > 0
    assert sorted(tmp_path.iterdir()) == [out, left]


@pytest.mark.parametrize(
    ("number", "code", "words", "delay"),
    [
        (signal.SIGTERM, 143, FIRST, 0.02),
        (signal.SIGTERM, 143, "read ", 0.1),
        (signal.SIGTERM, 143, "checked; ", 0.1),
        (signal.SIGHUP, 129, "checked; ", 0.05),
        (signal.SIGINT, 130, "checked; ", 0.15),
    ],
)
def test_what_asks_a_run_to_stop_is_obeyed_and_leaves_nothing(
    raw: Path, tmp_path: Path, number: int, code: int, words: str, delay: float
) -> None:
    returned, errors = stop(raw, tmp_path / "out", words, number, delay)
    assert returned == code
    assert list(tmp_path.iterdir()) == []
    assert errors.strip() == ("interrupted" if number == signal.SIGINT else "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_comes_through_what_an_engine_makes_of_it(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]

    def compute() -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RuntimeError("Query interrupted") from None

    for fail in (compute, lambda: signal.raise_signal(number)):
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ending, interruptible():
            fail()
        assert number == signal.SIGINT or ending.value.code == 128 + number
        assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(RuntimeError, match="a bug"), interruptible():
        raise RuntimeError("a bug")


def test_signals_that_a_program_has_a_use_for_are_left_to_it() -> None:
    seen: list[int] = []
    ours = {signal.SIGTERM: lambda number, frame: seen.append(number), signal.SIGHUP: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        with interruptible():
            for number in ours:
                signal.raise_signal(number)
        assert seen == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_preparation_runs_in_any_thread(few: Path, tmp_path: Path) -> None:
    thread = threading.Thread(
        target=lambda: userbehavior.prepare(few, tmp_path / "out", UserBehaviorOptions(threads=1))
    )
    thread.start()
    thread.join()
    assert FeatureSchema.load(tmp_path / "out").rows["train"] > 0


def test_two_runs_of_one_process_number_do_not_meet(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers every run may have the process number 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen = []

    def build(workspace: object) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(seen) == 1:
            with pytest.raises(KeyboardInterrupt):
                prepare_dataset("toy", [few], tmp_path / "out", PreparationOptions(), build)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("toy", [few], tmp_path / "out", PreparationOptions(), build)
    assert [len(names) for names in seen] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_overwrite_moved_away_is_mentioned(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.replaced-7").mkdir()
    userbehavior.prepare(few, tmp_path / "out", UserBehaviorOptions(threads=1))
    printed = capsys.readouterr().out
    assert "out.replaced-7 is what an interrupted preparation with --overwrite had moved away" in printed


class SmallDisk:
    """A folder that is a file system of a given size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, size: str) -> None:
        self.unmount()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")

    def unmount(self) -> None:
        if os.path.ismount(self.folder):
            subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    disk = SmallDisk(tmp_path / "disk")
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    yield disk
    disk.unmount()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_named_whatever_is_being_written(
    few: Path, disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reached = disk.folder / "out", []
    for size in (4, 32, 80, 120, 200, 360, 520, 600, 900, 1800):
        disk.mount(f"{size}k")
        refusal = ""
        try:
            userbehavior.prepare(few, out, UserBehaviorOptions(threads=1))
        except DataError as error:
            refusal = str(error)
        reached.append(capsys.readouterr().out.splitlines()[-1].split("] ")[1].split()[0])
        if refusal:
            assert f"{out} could not be written: no space left on its disk" in refusal
            assert "\n" not in refusal
            assert list(disk.folder.iterdir()) == []
        else:
            assert [path.name for path in disk.folder.iterdir()] == ["out"]
            assert FeatureSchema.load(out).rows["train"] > 0
    # The last words before it: staging, then the engine's tables, then the output; and at last there is enough.
    assert {"userbehavior:", "read", "checked;", "fitted"} <= set(reached[:-1])
    assert reached[-1] == "done:"


def test_an_engine_that_can_spill_no_more_says_so(disk: SmallDisk) -> None:
    disk.mount("6m")
    options = PreparationOptions(memory_limit="50MB", threads=1)
    rows = "CREATE VIEW many AS SELECT hash(i) AS h, 'some text ' || i AS t FROM range(1500000) r(i)"

    def sort() -> int:
        with open_engine(disk.folder, options) as engine:
            engine.connection.raw_sql(rows)
            return sum(batch.num_rows for batch in engine.batches(engine.connection.table("many").order_by("h")))

    with pytest.raises(OSError, match="No space left for what the engine spills") as error:
        sort()
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("most", [20_000, 1_500_000])
def test_a_file_that_may_grow_no_more_ends_a_run_cleanly(raw: Path, tmp_path: Path, most: int) -> None:
    """A limit on the size of files, where no small disk can be had."""
    limit = (most, most)
    process = start(raw, tmp_path / "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    assert errors.startswith(f"error: {tmp_path / 'out'} could not be written: ")
    assert "File too large" in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_schema_is_written_last(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever a killed run leaves has none."""
    from data.prepared import PreparedWriter

    seen = []
    for name in ("write_split", "write_history"):
        real = getattr(PreparedWriter, name)

        def watched(self: PreparedWriter, *arguments: object, real: object = real) -> object:
            done = real(self, *arguments)
            seen.append((self.directory / SCHEMA_FILE).exists())
            return done

        monkeypatch.setattr(PreparedWriter, name, watched)
    userbehavior.prepare(few, tmp_path / "out", UserBehaviorOptions(threads=1))
    assert len(seen) == 7
    assert not any(seen)
