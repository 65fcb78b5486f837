"""Checkpoint files on disk: written whole or not at all, ending in their own checksum, and chosen by being intact.

Needs no torch, so that a command can choose its checkpoint before anything heavy is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

from kunlun.configuration import RunError, shown

SUFFIX = ".ckpt"
# A zip file, as torch writes them, may be followed by anything: any reader of checkpoints still opens the file.
_MARK = b"\nkunlun-sha256:"
_TRAILER = len(_MARK) + 64
_HINTS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another run.root",
    errno.EACCES: "writing is not permitted; choose another run.root",
    errno.EPERM: "writing is not permitted; choose another run.root",
}


class CheckpointNotSaved(RunError):
    """A checkpoint could not be written; those before it are as they were."""


class HashingFile:
    """A binary file, written from start to end, that remembers the checksum and the first error.

    The error is kept because torch replaces what ``write`` raises by an error of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(path: Path, write: Callable[[HashingFile], None]) -> None:
    """Let ``write`` fill a temporary file, seal it with its checksum, and give it the name ``path``.

    A kill or an error at any moment leaves the file that had the name before, or the whole new one.
    CheckpointNotSaved: the disk is full, read-only or gone.
    """
    temporary = path.with_name(f".{path.name}.partial")
    hashing: HashingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashing = HashingFile(file)
            write(hashing)
            file.write(_MARK + hashing.digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        cause = hashing.error if hashing is not None and hashing.error is not None else error
        if isinstance(cause, OSError):
            raise _not_saved(path, cause) from cause
        raise


def link_checkpoint(path: Path, name: str) -> None:
    """Let ``name``, beside ``path``, be the same file, without a moment at which there is none."""
    temporary = path.with_name(f".{name}.partial")
    try:
        temporary.unlink(missing_ok=True)
        copy_checkpoint(path, temporary)
        temporary.replace(path.with_name(name))
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _not_saved(path.with_name(name), error) from error


def copy_checkpoint(source: Path, target: Path) -> None:
    """``target`` becomes ``source`` under a second name, or a copy of it where the file system has no such links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        shutil.copy2(source, target)


def state_of(path: Path) -> Literal["intact", "unsealed", "damaged"]:
    """``intact``: its checksum holds; ``unsealed``: a whole zip file that has none, as other programs write it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TRAILER, 0))
            trailer = file.read()
            if trailer.startswith(_MARK):
                return "intact" if _sha256(file, size - _TRAILER) == trailer[len(_MARK) :] else "damaged"
            with zipfile.ZipFile(file) as archive:
                return "damaged" if archive.testzip() else "unsealed"
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return "damaged"


def newest_intact(files: Iterable[Path]) -> tuple[Path | None, list[Path]]:
    """The newest of ``files`` whose checksum holds, and those newer than it that are no use."""
    rejected: list[Path] = []
    for path in sorted(files, key=_written, reverse=True):
        if state_of(path) == "intact":
            return path, rejected
        rejected.append(path)
    return None, rejected


def require_whole(path: Path) -> None:
    """RunError, with the newest intact checkpoint beside it, if the file ``path`` is damaged."""
    if state_of(path) != "damaged":
        return
    other, _ = newest_intact(p for p in path.parent.glob(f"*{SUFFIX}") if p != path)
    hint = f"; {shown(other)} is intact" if other else ""
    raise RunError(f"{shown(path)} is damaged: cut short, or changed after it was written{hint}")


def disk_error(error: OSError) -> RunError | None:
    """For the user, if ``error`` says that a disk is full or not writable."""
    if error.errno not in _HINTS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return RunError(f"{where}{error.strerror}: {_HINTS[error.errno]}, then go on with --resume auto.")


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed meanwhile
        return 0


def _sha256(file: IO[bytes], size: int) -> bytes:
    """Of the first ``size`` bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        chunk = file.read(min(size, 1 << 22))
        if not chunk:
            break
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlast a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _not_saved(path: Path, error: OSError) -> CheckpointNotSaved:
    hint = _HINTS.get(error.errno or 0, "make the place writable")
    return CheckpointNotSaved(
        f"{shown(path)} could not be saved: {error.strerror or error}: {hint}, then go on with --resume auto. "
        "Earlier checkpoints are as they were."
    )
