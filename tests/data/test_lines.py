"""Lines in blocks against a plain reading of the same bytes, wherever the blocks are cut."""

from __future__ import annotations

import gzip
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.lines import BOM, BadLine, read_lines
from data.preparation import DataError

PIECES = [b"1", b"abc", b",", b",", b"\n", b"\n", b"\r\n", b"\r", BOM, "é".encode(), "\u2028".encode()]
PIECES += [b"\xff", b"\0", b'"', b" ", b"1,2\n", b"\x1a", b"\x0b"]
SETTINGS = settings(max_examples=150, deadline=None)


def compressed(data: bytes, ending: str, cut: int = 0) -> bytes:
    if ending == ".gz":  # two members, as `cat a.gz b.gz` makes them
        return gzip.compress(data[:cut]) + gzip.compress(data[cut:])
    return pa.compress(data, codec="zstd", asbytes=True) if ending == ".zst" else data


def expected(data: bytes, columns: int) -> list[tuple[int, bytes, bool]]:
    """Every line with its number, its bytes, and whether it is good; as slowly and plainly as can be."""
    lines = data.removeprefix(BOM).split(b"\n")
    if not lines[-1]:
        lines.pop()
    found = []
    for number, line in enumerate(lines, 1):
        text = line[:-1] if line.endswith(b"\r") else line
        try:
            text.decode("utf-8")
            good = b"\r" not in text and len(text.split(b",")) == columns and text != b""
        except UnicodeDecodeError:
            good = False
        found.append((number, text, good))
    return found


def found(path: Path, columns: int, block_bytes: int) -> list[tuple[int, bytes, bool]]:
    lines = []
    with patch("data.lines.BLOCK_BYTES", block_bytes):
        for block in read_lines(path, ",", columns):
            texts = block.text.split(b"\n")
            assert texts.pop() == b""  # every line has its end
            assert len(texts) == len(block.lines)
            numbers = block.lines.tolist()
            lines += [(n, t.removesuffix(b"\r"), True) for n, t in zip(numbers, texts, strict=True)]
            lines += [(bad.line, bad, False) for bad in block.bad]
            assert max([*numbers, *(bad.line for bad in block.bad)]) == len(lines)  # blocks come in order
    return sorted(lines, key=lambda line: line[0])


@SETTINGS
@given(
    st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
    st.integers(2, 3),
    st.integers(1, 30),
    st.sampled_from(["", ".gz", ".zst"]),
    st.integers(0, 40),
)
def test_lines_are_those_of_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, columns: int, block: int, ending: str, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"lines.csv{ending}"
    path.write_bytes(compressed(data, ending, cut))
    lines = found(path, columns, block)
    wanted = expected(data, columns)
    assert [(n, good) for n, _, good in lines] == [(n, good) for n, _, good in wanted]
    for (_, line, good), (_, text, _) in zip(lines, wanted, strict=True):
        if good:
            assert line == text
        else:
            assert line.text == text.decode("utf-8", "replace")
            assert line.column is None or 1 <= line.column <= len(text.split(b","))


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 1000])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, block: int) -> None:
    (tmp_path / "a.csv").write_bytes(BOM + b"1,2\n" + BOM + b"3,4")
    assert found(tmp_path / "a.csv", 2, block) == [(1, b"1,2", True), (2, BOM + b"3,4", True)]
    (tmp_path / "a.csv").write_bytes(BOM)
    assert found(tmp_path / "a.csv", 2, block) == []


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_nothing_is_no_line(tmp_path: Path, block: int) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b""))
    assert found(tmp_path / "a.csv", 2, block) == found(tmp_path / "a.csv.gz", 2, block) == []
    (tmp_path / "a.csv").write_bytes(b"\n\n")
    assert [line[1].reason for line in found(tmp_path / "a.csv", 2, block)] == [
        "expected 2 columns parted by ',', found an empty line"
    ] * 2


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        (b"1,2", None, "expected 3 columns parted by ',', found 2"),
        (b"1,2,3,", None, "expected 3 columns parted by ',', found 4"),
        (b"", None, "found an empty line"),
        (b"1,\xe9,3", 2, "the text is not UTF-8"),
        (b"1,2,\xc3", 3, "the text is not UTF-8"),
        (b"1,2\r,3", 2, "a carriage return inside the line"),
        (b"1,2,3\r4", 3, "a carriage return inside the line"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_what_is_wrong_with_a_line(tmp_path: Path, line: bytes, column: int | None, reason: str, end: bytes) -> None:
    (tmp_path / "a.csv").write_bytes("á,b,c".encode() + end + line + end + b"1,2,3" + end)
    (block,) = read_lines(tmp_path / "a.csv", ",", 3)
    assert block.lines.tolist() == [1, 3]
    assert block.text == "á,b,c".encode() + end + b"1,2,3" + end
    (bad,) = block.bad
    assert bad == BadLine(2, column, bad.reason, line.decode("utf-8", "replace"))
    assert reason in bad.reason


def test_a_line_may_be_longer_than_many_blocks_but_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,2\n3," + b"x" * 5000 + b"\n4,5\n")
    assert [(n, len(line)) for n, line, good in found(path, 2, 100) if good] == [(1, 3), (2, 5002), (3, 3)]
    with patch("data.lines.LONGEST_LINE", 1000), pytest.raises(DataError, match=r"a\.csv, line 2: longer than"):
        found(path, 2, 100)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_anywhere_is_refused(tmp_path: Path, ending: str) -> None:
    whole = compressed(b"".join(b"%d,%d\n" % (i, i * 7919 % 1000) for i in range(300)), ending, 1500)
    path = tmp_path / f"a.csv{ending}"
    between = whole.find(b"\x1f\x8b\x08", 1)  # the end of the first of two gzip members: a whole file
    for end in range(1, len(whole), 3):
        if end == between:
            continue
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.csv\.\w+, after line \d+: the compressed file is truncated"):
            found(path, 2, 256)


def test_what_cannot_be_read_at_all_is_not_called_truncated(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.csv.gz"):
        with pytest.raises(DataError, match=r"after line 0: the file cannot be read \("):
            list(read_lines(path, ",", 2))
