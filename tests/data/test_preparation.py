"""The life of a preparation and the reading of raw files: complete output, or a clear error and nothing."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from data.preparation import DATASETS, DataError, PreparationOptions, Workspace, prepare_dataset
from data.raw import ROW, Check, Layout, find_sources, is_finite_number, is_integer, require, stage
from kunlun.features import FeatureSchema, SparseField, Table, Task

LAYOUT = Layout(("label", "item", "price"), delimiter="\t")
ROWS = "1\t4\t0.5\n0\t\t\n" * 10


@dataclass(frozen=True)
class ToyOptions(PreparationOptions):
    shift: int = 0


def prepare(raw: Path, out: Path, options: ToyOptions = ToyOptions(), header: bool = False) -> FeatureSchema:
    """The smallest data set: a label, an item below 10, a price; all rows are the train split."""
    layout = Layout(LAYOUT.columns, LAYOUT.delimiter, header)

    def build(workspace: Workspace) -> FeatureSchema:
        read = stage(workspace, layout, workspace.sources)
        read = require(
            workspace,
            read,
            [
                Check("label", read.table.label.isin(["0", "1"]), "the label, 0 or 1"),
                Check("item", read.table.item.isnull() | is_integer(read.table.item), "a whole number or nothing"),
                Check("price", read.table.price.isnull() | is_finite_number(read.table.price), "a finite number"),
            ],
        )
        schema = FeatureSchema("toy", (Task("click", 0.0),), (), (SparseField("item", "item"),), {"item": Table(10)})
        item = read.table["item"].try_cast("int64").fill_null(0) + options.shift
        label = read.table.label.try_cast("int64")
        wide = read.table.select(key=read.table[ROW], **{"label:click": label, "sparse:item": item}).order_by("key")
        for split, batches in (("train", workspace.batches(wide)), ("valid", []), ("test", [])):
            workspace.writer.write_split(split, schema, batches)
        return schema

    return prepare_dataset("toy", find_sources(raw, ("train.txt", "day_*")), out, options, build)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text(ROWS)
    return path


def left_behind(raw: Path) -> list[str]:
    return sorted(path.name for path in raw.parent.iterdir() if path != raw)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_list_of_data_sets_is_cheap_and_true() -> None:
    for entry in DATASETS.values():
        module = import_module(entry.module)
        assert issubclass(getattr(module, entry.options), PreparationOptions)
        assert callable(module.prepare)
    code = "import sys, data.preparation; print({'torch', 'ibis', 'duckdb', 'pyarrow', 'datasets'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"


def test_the_same_again_is_done_already(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = raw.parent / "out"
    first = prepare(raw, out)
    before = contents(out)
    # Resources do not change the rows, so they do not make it another preparation.
    again = prepare(raw, out, ToyOptions(threads=1, memory_limit="500MB"))
    assert again == first
    assert contents(out) == before
    assert f"{out} is already prepared" in capsys.readouterr().out


def test_another_source_or_other_options_need_overwrite(raw: Path) -> None:
    out = raw.parent / "out"
    prepare(raw, out)
    before = contents(out)
    with pytest.raises(DataError, match=r"another source or with other options.*--overwrite"):
        prepare(raw, out, ToyOptions(shift=1))
    raw.write_text(ROWS + "1\t1\t1\n")
    with pytest.raises(DataError, match="another source or with other options"):
        prepare(raw, out)
    assert contents(out) == before
    schema = prepare(raw, out, ToyOptions(overwrite=True))
    assert schema.provenance["counts"]["input_rows"] == 21
    assert left_behind(raw) == ["out"]


def test_a_folder_of_something_else_is_left_alone(raw: Path) -> None:
    out = raw.parent / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("work of years")
    for options in (ToyOptions(), ToyOptions(overwrite=True)):
        with pytest.raises(DataError, match="not a prepared data set, so it is left alone"):
            prepare(raw, out, options)
    assert (out / "thesis.tex").read_text() == "work of years"


def test_an_empty_folder_may_be_filled(raw: Path) -> None:
    out = raw.parent / "out"
    out.mkdir()
    assert prepare(raw, out).rows == {"train": 20, "valid": 0, "test": 0}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("No space left on device"), RuntimeError("a bug")])
def test_an_interruption_leaves_nothing(raw: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr("data.prepared._describe_for_datasets", fail)
    with pytest.raises(DataError if isinstance(failure, OSError) else type(failure)):
        prepare(raw, raw.parent / "out")
    assert left_behind(raw) == []


def test_a_failed_overwrite_keeps_what_was_there(raw: Path) -> None:
    out = raw.parent / "out"
    prepare(raw, out)
    before = contents(out)
    raw.write_text(ROWS + "2\t1\t1\n")
    with pytest.raises(DataError):
        prepare(raw, out, ToyOptions(overwrite=True))
    assert contents(out) == before
    assert left_behind(raw) == ["out"]


def test_what_an_interrupted_run_left_is_mentioned(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw.parent / "out.partial-1").mkdir()
    prepare(raw, raw.parent / "out")
    assert "out.partial-1 is left from a preparation that was interrupted" in capsys.readouterr().out


def test_provenance_says_what_was_done(raw: Path) -> None:
    provenance = prepare(raw, raw.parent / "out", ToyOptions(shift=2)).provenance
    assert provenance["source"][0]["name"] == "train.txt"
    assert provenance["source"][0]["bytes"] == raw.stat().st_size
    assert len(provenance["source"][0]["sha256"]) == 64
    assert provenance["options"] == {"shift": 2, "on_bad_row": "error"}
    assert provenance["counts"] == {"input_rows": 20}
    assert set(provenance["versions"]) == {"python", "ibis-framework", "duckdb", "pyarrow", "datasets"}


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_compressed_sources_give_the_same_rows(tmp_path: Path, compression: str | None) -> None:
    ending = {None: "", "gzip": ".gz", "zstd": ".zst"}[compression]
    with pa.output_stream(str(tmp_path / f"train.txt{ending}"), compression=compression) as file:
        file.write(ROWS.encode())
    prepare(tmp_path, tmp_path / "out")
    split = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    assert split["labels"][:] == [[1.0], [0.0]] * 10
    assert split["sparse"][:] == [[4], [0]] * 10
    assert split["key"][:] == list(range(1, 21))


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(ROWS.encode()) + gzip.compress(ROWS.encode()))
    assert prepare(tmp_path, tmp_path / "out").rows["train"] == 40


def test_windows_line_ends_and_a_last_line_without_one(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(ROWS.replace("\n", "\r\n").encode() + b"1\t1\t0.5")
    assert prepare(tmp_path, tmp_path / "out").rows["train"] == 21


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_truncated_file_is_refused(tmp_path: Path, compression: str) -> None:
    raw = tmp_path / {"gzip": "day_0.gz", "zstd": "day_0.zst"}[compression]
    with pa.output_stream(str(raw), compression=compression) as file:
        file.write("".join(f"{i % 2}\t{i * 7919 % 10}\t{i}\n" for i in range(50_000)).encode())
    raw.write_bytes(raw.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{raw.name}, after line \d+: the compressed file is truncated or damaged"):
        prepare(raw, tmp_path / "out")
    assert left_behind(raw) == []


def test_a_file_that_only_is_called_gz(tmp_path: Path) -> None:
    raw = tmp_path / "train.txt.gz"
    raw.write_text(ROWS)
    with pytest.raises(DataError, match="truncated or damaged"):
        prepare(raw, tmp_path / "out")


@pytest.mark.parametrize("empty", [b"", gzip.compress(b"")], ids=["plain", "gzip"])
def test_an_empty_file_is_refused(tmp_path: Path, empty: bytes) -> None:
    raw = tmp_path / ("train.txt.gz" if empty else "train.txt")
    raw.write_bytes(empty)
    with pytest.raises(DataError, match=rf"{raw.name}: there are no rows in it"):
        prepare(raw, tmp_path / "out")
    assert left_behind(raw) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2", r"train.txt, line 21: expected 3 columns parted by '\\t', found 2"),
        ("1\t2\t3\t4", r"train.txt, line 21: expected 3 columns parted by '\\t', found 4"),
        ("", r"train.txt, line 21: expected 3 columns parted by '\\t', found an empty line"),
        ("\t2\t3", r"line 21, column 1 \(label\): expected the label, 0 or 1, found nothing"),
        ("1\t2\r\t3", r"line 21, column 2 \(item\): a carriage return inside the line"),
        ("2\t2\t3", r"train.txt, line 21, column 1 \(label\): expected the label, 0 or 1, found '2'"),
        ("1\t2.5\t3", r"line 21, column 2 \(item\): expected a whole number or nothing, found '2.5'"),
        ("1\t 2\t3", r"line 21, column 2 \(item\).*found ' 2'"),
        ("1\t" + "9" * 19 + "\t3", r"line 21, column 2 \(item\).*found '9{19}'"),
        ("1\t2\tnan", r"line 21, column 3 \(price\): expected a finite number, found 'nan'"),
        ("1\t2\t-Infinity", r"column 3 \(price\).*found '-Infinity'"),
        ("1\t2\t1e999", r"column 3 \(price\).*found '1e999'"),
        ("1\t2\t" + "x" * 100, r"column 3 \(price\).*found 'x{57}…'"),
    ],
)
@pytest.mark.parametrize("more", [0, 30_000])
def test_the_first_bad_line_is_named(raw: Path, line: str, message: str, more: int) -> None:
    raw.write_text(ROWS + line + "\n" + ROWS * (more // 20))
    with pytest.raises(DataError, match=message):
        prepare(raw, raw.parent / "out")
    assert left_behind(raw) == []


def test_further_bad_rows_are_counted(raw: Path) -> None:
    raw.write_text(ROWS + "7\t1\t1\n" * 3)
    with pytest.raises(DataError, match=r"line 21.*\(2 more rows are bad\)"):
        prepare(raw, raw.parent / "out")


def test_text_that_is_not_utf8(raw: Path) -> None:
    raw.write_bytes(ROWS.encode() + b"1\t\xff\t1\n")
    with pytest.raises(DataError, match=r"line 21, column 2 \(item\): the text is not UTF-8"):
        prepare(raw, raw.parent / "out")


def test_lines_are_counted_per_file_and_after_the_header(tmp_path: Path) -> None:
    header = "label\titem\tprice\n"
    (tmp_path / "day_2").write_text(header + ROWS)
    (tmp_path / "day_10").write_text(header + "1\t1\t1\nbad\t1\t1\n")
    with pytest.raises(DataError, match=r"day_10, line 3, column 1 \(label\)"):
        prepare(tmp_path, tmp_path / "out", header=True)
    (tmp_path / "day_10").write_text("label\tthing\tprice\n1\t1\t1\n")
    with pytest.raises(DataError, match=r"day_10, line 1: the header must be .*'thing' as column 2"):
        prepare(tmp_path, tmp_path / "out", header=True)
    (tmp_path / "day_10").write_text("1\t1\t1\n")
    with pytest.raises(DataError, match="day_10, line 1: the header must be"):
        prepare(tmp_path, tmp_path / "out", header=True)
    (tmp_path / "day_10").write_text(header)
    with pytest.raises(DataError, match="day_10: there are no rows in it"):
        prepare(tmp_path, tmp_path / "out", header=True)
    (tmp_path / "day_10").write_text(header + "1\t1\n")
    with pytest.raises(DataError, match="day_10, line 2: expected 3 columns"):
        prepare(tmp_path, tmp_path / "out", header=True)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give --raw"):
        find_sources(tmp_path / "nowhere", ("train.txt",))
    with pytest.raises(DataError, match=r"holds none of train.txt, day_\*"):
        find_sources(tmp_path, ("train.txt", "day_*"))


def test_sources_sort_by_number_and_are_not_taken_twice(tmp_path: Path) -> None:
    for name in ("day_10.gz", "day_2.gz", "day_0.gz"):
        (tmp_path / name).touch()
    assert [path.name for path in find_sources(tmp_path, ("day_*",))] == ["day_0.gz", "day_2.gz", "day_10.gz"]
    (tmp_path / "day_2").touch()
    with pytest.raises(DataError, match=r"both day_2\.gz and its unpacked form"):
        find_sources(tmp_path, ("day_*",))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="threads"):
        PreparationOptions(threads=-1)
    with pytest.raises(ValueError, match="'plenty' is not a size"):
        PreparationOptions(memory_limit="plenty")
