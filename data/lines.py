"""Text files as blocks of whole lines, each line checked: the right number of columns, UTF-8, no stray line end.

Lines are counted as an editor counts them, so that an error names the line that the user will look for. Nothing is
done per line in Python unless the line is bad.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.preparation import DataError

BLOCK_BYTES = 8 * 1024**2
LONGEST_LINE = 64 * 1024**2
BOM = b"\xef\xbb\xbf"
NEWLINE, RETURN = 10, 13


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be parted into its columns; ``column`` (from 1) where the trouble has one."""

    line: int
    column: int | None
    reason: str
    text: str


@dataclass(frozen=True)
class Block:
    """``text``: whole lines, all good · ``lines`` (n,) int64: their numbers from 1 · ``bad``: those left out."""

    text: bytes
    lines: np.ndarray
    bad: tuple[BadLine, ...]


def read_lines(source: Path, delimiter: str, columns: int) -> Iterator[Block]:
    """The lines of a plain, gzip or zstd file. DataError: the compressed file is truncated or damaged."""
    line, rest = 1, b""
    try:
        with pa.input_stream(str(source), compression="detect") as stream:
            while chunk := stream.read(BLOCK_BYTES):
                # Only the new bytes are searched, so a line over many chunks costs no more than its length.
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest += chunk
                    if len(rest) > LONGEST_LINE:
                        raise DataError(
                            f"{source}, line {line}: longer than {LONGEST_LINE >> 20} MiB; is this the right file?"
                        )
                    continue
                block = _check(rest + chunk[:end], line, delimiter, columns)
                line += block.lines.size + len(block.bad)
                rest = chunk[end:]
                yield block
    except OSError as error:
        compressed = source.suffix in (".gz", ".zst", ".bz2", ".lz4") and source.is_file()
        trouble = "the compressed file is truncated or damaged" if compressed else "the file cannot be read"
        raise DataError(f"{source}, after line {line - 1}: {trouble} ({error}); fetch it again") from error
    if rest and (rest != BOM or line > 1):
        yield _check(rest + b"\n", line, delimiter, columns)


def _check(text: bytes, first: int, delimiter: str, columns: int) -> Block:
    if first == 1:
        text = text.removeprefix(BOM)
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    found = np.diff(np.searchsorted(np.flatnonzero(data == ord(delimiter)), ends), prepend=0) + 1
    suspect = found != columns
    if (data >= 0x80).any():
        suspect[np.unique(np.searchsorted(ends, np.flatnonzero(data >= 0x80)))] = True
    returns = np.flatnonzero(data == RETURN)
    if returns.size:  # Windows' line ends are fine
        suspect[np.searchsorted(ends, returns[data[returns + 1] != NEWLINE])] = True
    lines = np.arange(first, first + ends.size)
    if not suspect.any():
        return Block(text, lines, ())

    bad, good, keep = [], np.ones(ends.size, bool), np.ones(data.size, bool)
    for i in np.flatnonzero(suspect):
        start, end = int(ends[i - 1]) + 1 if i else 0, int(ends[i])
        trouble = _trouble(text[start:end].removesuffix(b"\r"), delimiter, columns, int(found[i]))
        if trouble:
            column, reason = trouble
            shown = text[start:end].decode("utf-8", "replace").removesuffix("\r")
            bad.append(BadLine(first + int(i), column, reason, shown))
            good[i] = keep[start : end + 1] = False
    return Block(data[keep].tobytes() if bad else text, lines[good], tuple(bad))


def _trouble(line: bytes, delimiter: str, columns: int, found: int) -> tuple[int | None, str] | None:
    """The column and what is wrong; None for text beyond ASCII that is fine."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as problem:
        return line[: problem.start].count(delimiter.encode()) + 1, "the text is not UTF-8; is this the right file?"
    if (place := line.find(b"\r")) >= 0:
        return line[:place].count(delimiter.encode()) + 1, "a carriage return inside the line"
    if not line:
        return None, f"expected {columns} columns parted by {delimiter!r}, found an empty line"
    if found != columns:
        return None, f"expected {columns} columns parted by {delimiter!r}, found {found}"
    return None
