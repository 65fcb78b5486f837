"""Checkpoint files: whole or absent, every damage noticed, the newest intact one found."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import pytest

from kunlun import checkpoints
from kunlun.checkpoints import (
    CheckpointNotSaved,
    HashingFile,
    disk_error,
    link_checkpoint,
    newest_intact,
    require_whole,
    state_of,
    write_checkpoint,
)
from kunlun.configuration import RunError

CONTENT = bytes(range(256)) * 40


def written(path: Path, content: bytes = CONTENT, age: int = 0) -> Path:
    write_checkpoint(path, lambda file: file.write(content) and None)
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return path


def test_what_was_written_is_intact_and_begins_with_the_content(tmp_path: Path) -> None:
    path = written(tmp_path / "folder" / "a.ckpt")
    assert state_of(path) == "intact"
    assert path.read_bytes().startswith(CONTENT)
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    require_whole(path)


def test_any_cut_and_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", CONTENT[:300])
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        assert state_of(path) != "intact"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        assert state_of(path) != "intact"


def test_a_zip_file_of_another_program_is_whole_but_not_sealed(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", CONTENT)
    assert state_of(path) == "unsealed"
    require_whole(path)
    path.write_bytes(path.read_bytes().replace(CONTENT[:100], bytes(100), 1))
    assert state_of(path) == "damaged"


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 5000])
def test_what_is_no_checkpoint_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    assert state_of(tmp_path / "a.ckpt") == "damaged"
    assert state_of(tmp_path / "absent.ckpt") == "damaged"


def test_the_newest_intact_one_is_chosen(tmp_path: Path) -> None:
    old, middle, new = (written(tmp_path / f"{age}.ckpt", age=age) for age in (3, 2, 1))
    assert newest_intact([old, new, middle]) == (new, [])
    with new.open("ab") as file:
        file.write(b"x")
    assert newest_intact([old, new, middle]) == (middle, [new])
    assert newest_intact([]) == (None, [])


def test_a_damaged_one_is_refused_with_the_intact_one_beside_it(tmp_path: Path) -> None:
    written(tmp_path / "good.ckpt")
    bad = written(tmp_path / "bad.ckpt")
    bad.write_bytes(bad.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"bad\.ckpt is damaged.*good\.ckpt is intact"):
        require_whole(bad)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_leaves_what_was_there(number: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt")

    def fail(file: HashingFile) -> None:
        def refuse(data: bytes) -> int:
            raise OSError(number, os.strerror(number))

        file.file.write = refuse  # type: ignore[method-assign]
        try:
            file.write(b"more")
        except OSError:
            raise RuntimeError("as torch hides it") from None

    class Refusing:
        """A file object whose ``write`` can be replaced."""

        def __init__(self, file) -> None:
            self.file, self.write, self.flush = file, file.write, file.flush

    def write(file: HashingFile) -> None:
        file.file = Refusing(file.file)  # type: ignore[assignment]
        fail(file)

    with pytest.raises(CheckpointNotSaved, match=os.strerror(number)):
        write_checkpoint(path, write)
    assert state_of(path) == "intact"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt")

    def interrupted(file: HashingFile) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, interrupted)
    assert path.read_bytes().startswith(CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.ckpt", []

    def fsync(number: int) -> None:
        synced.append(path.exists())

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    written(path)
    assert synced == [False, True]  # the file, then the folder that names it


def test_a_link_replaces_the_one_before(tmp_path: Path) -> None:
    first, second = written(tmp_path / "1.ckpt", b"first"), written(tmp_path / "2.ckpt", b"second")
    link_checkpoint(first, "last.ckpt")
    link_checkpoint(second, "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == second.read_bytes()
    second.unlink()
    assert state_of(tmp_path / "last.ckpt") == "intact"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.ckpt", "last.ckpt"]


def test_where_there_are_no_links_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    link_checkpoint(written(tmp_path / "1.ckpt"), "last.ckpt")
    assert state_of(tmp_path / "last.ckpt") == "intact"


def test_only_errors_of_disks_are_explained() -> None:
    assert "free some space" in str(disk_error(OSError(errno.ENOSPC, "No space left on device", "metrics.csv")))
    assert disk_error(FileNotFoundError(errno.ENOENT, "no such file")) is None
