"""Raw input that is wrong: every preparation refuses it by name and place, or leaves exactly the bad rows out.

The files are small ones of each data set, damaged in every way of :mod:`tests.data.corruption`; what is right is
judged there, without the code under test. A test's id is all that it takes to see its file again.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import criteo, taobao, userbehavior
from data.generate import generate, options_of
from data.preparation import DATASETS, DataError
from data.raw import ROW
from kunlun.features import FeatureSchema
from tests.data.corruption import FILES, KINDS, ONE_LINE, Judgement, Patient, RawFile, applicable, judge

SMALL: dict[str, dict[str, int]] = {
    "taobao": {"impressions": 200, "events": 400, "users": 40, "ads": 60},
    "criteo": {"rows": 200},
    "taobao-x1": {"rows": 230, "users": 30},
    "userbehavior": {"rows": 300, "users": 10},
}
CASES = [(file.name, kind) for file in FILES.values() for kind in KINDS if applicable(kind, file)]
DAMAGES = ["cut 1", "cut 2", "cut 3", "flip 1", "flip 2", "flip 3", "flip 4", "plain", "twice"]
csv.field_size_limit(10**7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Data set → its files, undamaged."""
    folder = tmp_path_factory.mktemp("whole")
    for name, sizes in SMALL.items():
        generate(name, folder / name, options_of(name)(**sizes))
    return {name: {path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in SMALL}


def patient(file: RawFile, whole: dict[str, dict[str, bytes]], *seed: object) -> Patient:
    lines = whole[file.dataset][file.name].split(b"\n")[:-1]
    others = {name: data for files in whole.values() for name, data in files.items()}
    return Patient(file, lines, random.Random("-".join(map(str, (file.name, *seed)))), others)


def place(folder: Path, file: RawFile, data: bytes, whole: dict[str, dict[str, bytes]], ending: str = "") -> Path:
    """What --raw is for the damaged file: the file, or for Taobao the folder with the other three."""
    if file.dataset != "taobao":
        path = folder / (file.name + ending)
        path.write_bytes(data)
        return path
    raw = folder / "raw"
    raw.mkdir()
    for name, undamaged in whole["taobao"].items():
        if name == file.name:
            (raw / (name + ending)).write_bytes(data)
        else:
            (raw / name).write_bytes(undamaged)
    return raw


class Checked(BaseException):
    """Ends a preparation when the damaged file is read and checked: what comes after is the same for every file."""

    def __init__(self, rows: list[dict[str, Any]], counts: dict[str, int], rejected: list[list[str]]) -> None:
        self.rows, self.counts, self.rejected = rows, counts, rejected


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Checked]:
    """Runs a preparation up to there. DataError as the preparation raises it; nothing is left in either case."""

    def run(file: RawFile, raw: Path, on_bad_row: str) -> Checked:
        real, name = file.module.require, file.name.split(".")[0] if file.dataset == "taobao" else "raw"

        def require(workspace: Any, staged: Any, checks: Any) -> Any:
            kept = real(workspace, staged, checks)
            if kept.name != name:
                return kept
            workspace.rejects.close()
            rejected = read_csv(workspace.rejects.path) if workspace.rejects.path.exists() else []
            rows = kept.table.select(ROW, *file.layout.columns).order_by(ROW).to_pyarrow().to_pylist()
            raise Checked(rows, workspace.counts, rejected)

        before = set(tmp_path.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(file.module, "require", require)
            options = options_class(file)(on_bad_row=on_bad_row, threads=1)
            try:
                file.module.prepare(raw, tmp_path / "out", options)
            except Checked as checked:
                return checked
            finally:
                assert set(tmp_path.iterdir()) == before
        raise AssertionError("the damaged file was never checked")

    return run


def options_class(file: RawFile) -> Any:
    return getattr(file.module, DATASETS[file.dataset].options)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def assert_refused(error: DataError, file: RawFile, judged: Judgement) -> None:
    """The error names the file; and line and column where one line is at fault."""
    message = str(error)
    assert file.name in message
    if judged.unusable or not (judged.unparted or judged.wrong):
        assert re.search("line 1[:,]|there are no rows in it", message)
    elif judged.unparted:
        assert f"{file.name}, line {judged.unparted[0].number}" in message
        assert "leave such rows out with --on_bad_row skip" in message
    else:
        first, others = judged.wrong[0], len(judged.wrong) - 1
        found = re.search(rf"{re.escape(file.name)}, line {first.number}, column (\d+) \((\w+)\): expected ", message)
        assert found, message
        assert found[2] in first.faults
        assert file.layout.columns[int(found[1]) - 1] == found[2]
        more = re.search(r"\(([\d,]+) more rows? (?:is|are) bad\)", message)
        assert (int(more[1].replace(",", "")) if more else 0) == others


def assert_all_kept(checked: Checked, file: RawFile, judged: Judgement) -> None:
    """Every row that is left is as it stands in the file, and every row of the file is left or rejected."""
    first = 1 + file.layout.header
    assert checked.rows == [{ROW: line.number - first + 1, **line.values} for line in judged.good]
    rejected = [*judged.unparted, *judged.wrong]
    shown = [[file.name, str(line.number), line.text] for line in rejected]
    assert [[name, line, text] for name, line, _, _, text in checked.rejected] == shown
    for line, (_, _, column, reason, _) in zip(rejected, checked.rejected, strict=True):
        assert reason
        if line.faults:
            number, name = re.fullmatch(r"(\d+) \((\w+)\)", column).groups()
            assert name in line.faults
            assert file.layout.columns[int(number) - 1] == name
    prefix = "" if file.dataset != "taobao" else f"{file.name.split('.')[0]}_"
    assert checked.counts[f"{prefix}input_rows"] == len(judged.lines)
    assert checked.counts.get(f"{prefix}rejected_rows", 0) == len(rejected)


def test_the_judge_finds_nothing_wrong_with_the_undamaged_files(whole: dict[str, dict[str, bytes]]) -> None:
    for file in FILES.values():
        judged = judge(file, whole[file.dataset][file.name])
        assert not judged.unusable
        assert judged.lines == judged.good
        assert len(judged.good) >= 30


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_damaged_file(
    name: str, kind: str, whole: dict[str, dict[str, bytes]], check: Callable[..., Checked], tmp_path: Path
) -> None:
    file = FILES[name]
    sick = patient(file, whole, kind)
    data = KINDS[kind](sick)
    judged = judge(file, data)
    if sick.touched is not None:  # the judge sees no damage where there is none
        assert {line.number for line in [*judged.unparted, *judged.wrong]} <= sick.touched
    raw = place(tmp_path, file, data, whole)

    if judged.unusable or judged.unparted or judged.wrong:
        with pytest.raises(DataError) as error:
            check(file, raw, "error")
        assert_refused(error.value, file, judged)
    else:
        assert_all_kept(check(file, raw, "error"), file, judged)

    if judged.good:
        assert_all_kept(check(file, raw, "skip"), file, judged)
    else:
        with pytest.raises(DataError, match=re.escape(file.name)):
            check(file, raw, "skip")


def unpacked(data: bytes, ending: str) -> bytes | None:
    """What another program reads from a compressed file; None if it refuses it."""
    try:
        if ending == ".gz":
            return gzip.decompress(data)
        with pa.input_stream(pa.py_buffer(data), compression="zstd") as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error):
        return None


@pytest.mark.parametrize("name", ["behavior_log.csv", "train.txt", "UserBehavior.csv"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_compressed_file(
    name: str, ending: str, damage: str, whole: dict, check: Callable[..., Checked], tmp_path: Path
) -> None:
    sick = patient(FILES[name], whole, ending, damage)
    text = sick.bytes()
    data = gzip.compress(text) if ending == ".gz" else pa.compress(text, codec="zstd", asbytes=True)
    if damage.startswith("cut"):
        data = data[: sick.rng.randrange(1, len(data))]
    elif damage.startswith("flip"):
        at = sick.rng.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ 1 << sick.rng.randrange(8)]) + data[at + 1 :]
    else:
        data = text if damage == "plain" else gzip.compress(data)
    raw = place(tmp_path, FILES[name], data, whole, ending)
    file, read = replace(FILES[name], name=name + ending), unpacked(data, ending)
    if read is None:
        for on_bad_row in ("error", "skip"):  # a bad line may come before the place of the damage
            with pytest.raises(DataError, match=re.escape(file.name)) as error:
                check(file, raw, on_bad_row)
            if on_bad_row == "skip" or "leave such rows out" not in str(error.value):
                assert re.search(r"truncated or damaged|line 1:|there are no rows", str(error.value))
        return
    # The time in the header of gzip may be another, and zstd without a checksum may say other things: lines as any.
    judged = judge(file, read)
    if judged.unusable or judged.unparted or judged.wrong:
        with pytest.raises(DataError) as error:
            check(file, raw, "error")
        assert_refused(error.value, file, judged)
    if judged.good:
        assert_all_kept(check(file, raw, "skip"), file, judged)


RANGES = {"taobao": (1_492_790_400, 1_494_691_200), "userbehavior": (1_511_539_200, 1_512_316_800)}  # of real times
QUICK: dict[str, dict[str, Any]] = {"criteo": {"encoding": "hash", "buckets": False}}


def prepare(file: RawFile, raw: Path, out: Path, on_bad_row: str) -> FeatureSchema:
    options = options_class(file)(on_bad_row=on_bad_row, threads=1, **QUICK.get(file.dataset, {}))
    return file.module.prepare(raw, out, options)


def within(dataset: str, lines: list[dict[str, Any]], time: str) -> list[dict[str, Any]]:
    start, end = RANGES[dataset]
    return [line for line in lines if start <= int(line[time]) < end]


def expected_counts(file: RawFile, judged: dict[str, Judgement]) -> dict[str, int]:
    """The counts of the provenance, counted here."""
    counts = {}
    for name, found in judged.items():
        prefix = "" if file.dataset != "taobao" else f"{name.split('.')[0]}_"
        counts[f"{prefix}input_rows"] = len(found.lines)
        counts[f"{prefix}rejected_rows"] = len(found.unparted) + len(found.wrong)
    good = {name: [line.values for line in found.good] for name, found in judged.items()}
    if file.dataset == "userbehavior":
        events = within("userbehavior", good[file.name], "time")
        kept = {(*(int(e[c]) for c in ("user", "item", "category", "time")), e["btag"]) for e in events}
        counts["dropped_stray_times"] = len(good[file.name]) - len(events)
        counts |= {"dropped_duplicates": len(events) - len(kept), "kept_rows": len(kept)}
    if file.dataset == "taobao":
        shown = within("taobao", good["raw_sample.csv"], "time_stamp")
        events = within("taobao", good["behavior_log.csv"], "time_stamp")
        users = {int(row["user"]) for row in shown}
        own = [e for e in events if int(e["user"]) in users]
        numbers = ("user", "time_stamp", "cate", "brand")
        kept = {(e["btag"], *(None if e[c] is None else int(e[c]) for c in numbers)) for e in own}
        counts |= {
            "raw_sample_stray_times": len(good["raw_sample.csv"]) - len(shown),
            "behavior_log_stray_times": len(good["behavior_log.csv"]) - len(events),
            "behavior_log_of_users_without_impressions": len(events) - len(own),
            "behavior_log_duplicates": len(own) - len(kept),
            "behavior_log_kept": len(kept),
        }
    return counts


def judge_all(file: RawFile, raw: Path) -> dict[str, Judgement]:
    """The file, or all of its folder, by name."""
    paths = [raw] if raw.is_file() else sorted(raw.iterdir())
    return {path.name: judge(file if raw.is_file() else FILES[path.name], path.read_bytes()) for path in paths}


def assert_balanced(schema: FeatureSchema, file: RawFile, judged: dict[str, Judgement]) -> None:
    """Every line of the input is in the output, or counted as what it was left out for."""
    counts = schema.provenance["counts"]
    expected = expected_counts(file, judged)
    assert {name: counts.get(name, 0) for name in expected} == expected
    rows = sum(schema.rows.values())
    assert rows == sum(counts[f"{split}_rows"] for split in ("train", "valid", "test"))
    events = sum(counts.get(f"{event.name}_events", 0) for event in schema.events)
    good = len(judged[file.name].good)
    if file.dataset == "taobao":
        assert rows == len(judged["raw_sample.csv"].good) - counts["raw_sample_stray_times"]
        assert events == counts["behavior_log_kept"]
    elif file.dataset == "userbehavior":
        assert events == counts["kept_rows"]
        assert rows == 2 * (counts["positives"] - counts["positives_without_negative"])
    else:
        assert rows + counts.get("unused_rows", 0) == good


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", FILES)
def test_with_bad_rows_left_out_nothing_is_lost_uncounted(
    name: str, seed: int, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    file = FILES[name]
    sick = patient(file, whole, "mixed", seed)
    for _ in range(12):
        KINDS[sick.rng.choice([kind for kind in ONE_LINE if applicable(kind, file)])](sick)
    data = sick.bytes()
    raw = place(tmp_path, file, data, whole)
    judged = judge_all(file, raw)
    assert judged[name].unparted or judged[name].wrong
    with pytest.raises(DataError) as error:
        prepare(file, raw, tmp_path / "out", "error")
    assert_refused(error.value, file, judged[name])
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]

    schema = prepare(file, raw, tmp_path / "out", "skip")
    assert_balanced(schema, file, judged)
    assert schema.provenance["options"]["on_bad_row"] == "skip"
    rejected = read_csv(tmp_path / "out" / "rejected.csv")
    assert [row[0] for row in rejected] == [name] * len(rejected)
    found = Counter((int(line), text) for _, line, _, _, text in rejected)
    assert found == Counter((line.number, line.text) for line in [*judged[name].unparted, *judged[name].wrong])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", raw.name])


def data_files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.arrow"))}


@pytest.mark.parametrize("name", ["behavior_log.csv", "train.txt", "train.csv", "UserBehavior.csv"])
def test_what_only_looks_different_gives_the_same_data(
    name: str, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    file, data = FILES[name], whole[FILES[name].dataset][name]
    found = []
    for number, text in enumerate((data, b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n").removesuffix(b"\r\n"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        schema = prepare(file, place(folder, file, text, whole), folder / "out", "error")
        assert not [count for count in schema.provenance["counts"] if "rejected" in count]
        found.append(data_files(folder / "out"))
    assert len(found[0]) >= 3
    assert found[0] == found[1]


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("name", ["raw_sample.csv", "train.txt", "train.csv", "UserBehavior.csv"])
def test_a_file_that_is_too_short_is_prepared_or_refused(
    name: str, rows: int, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    file = FILES[name]
    lines = whole[file.dataset][name].split(b"\n")[: rows + file.layout.header]
    raw = place(tmp_path, file, b"\n".join(lines) + b"\n", whole)
    schema, refusal = None, ""
    try:
        schema = prepare(file, raw, tmp_path / "out", "error")
    except DataError as error:
        refusal = str(error)
    if schema is None:
        assert re.search("the train split is empty|no impression can be made", refusal)
        assert [path.name for path in tmp_path.iterdir()] == [raw.name]
    else:
        assert schema.rows["train"] > 0
        assert_balanced(schema, file, judge_all(file, raw))


def test_bad_rows_that_were_all_of_train_leave_an_empty_split(whole: dict, tmp_path: Path) -> None:
    lines = whole["criteo"]["train.txt"].split(b"\n")[:-1]
    lines[: len(lines) * 8 // 10] = [b"2" + line[1:] for line in lines[: len(lines) * 8 // 10]]
    (tmp_path / "train.txt").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="the train split is empty"):
        prepare(FILES["train.txt"], tmp_path / "train.txt", tmp_path / "out", "skip")
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


@pytest.mark.parametrize("thing", ["nothing", "directory", "dangling link", "pipe"])
@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.dataset == "taobao"])
def test_something_else_in_place_of_a_file(name: str, thing: str, whole: dict, tmp_path: Path) -> None:
    raw = place(tmp_path, FILES[name], b"", whole)
    path = raw / name
    path.unlink()
    if thing == "directory":
        path.mkdir()
    elif thing == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif thing == "pipe":
        os.mkfifo(path)
    with pytest.raises(DataError, match=rf"raw holds none of {name} \(plain, .gz or .zst\)"):
        taobao.prepare(raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("dataset", ["criteo", "userbehavior"])
def test_a_folder_without_the_file(dataset: str, tmp_path: Path) -> None:
    module = {"criteo": criteo, "userbehavior": userbehavior}[dataset]
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"raw holds none of .*give --raw the right folder"):
        module.prepare(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DataError, match="missing does not exist"):
        module.prepare(tmp_path / "missing", tmp_path / "out")


def test_a_file_that_may_not_be_read(whole: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        path = Path(folder) / "UserBehavior.csv"
        path.write_bytes(whole["userbehavior"]["UserBehavior.csv"])
        path.chmod(0)
        Path(folder).chmod(0o777)
        me = os.geteuid()
        if me == 0:  # who may read everything
            os.seteuid(65_534)
        try:
            with pytest.raises(DataError, match=r"UserBehavior\.csv cannot be read: Permission denied; check"):
                userbehavior.prepare(path, Path(folder) / "out")
        finally:
            os.seteuid(me)
        assert [path.name for path in Path(folder).iterdir()] == ["UserBehavior.csv"]


def test_an_output_that_may_not_be_written(whole: dict, tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_bytes(whole["userbehavior"]["UserBehavior.csv"])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/out could not be written: .*Not a directory"):
        userbehavior.prepare(tmp_path / "UserBehavior.csv", tmp_path / "file" / "out")
