"""The benchmark of the preparation: it runs at toy size, and its check of the prepared rows finds what is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import preparation, processes
from benchmarks.processes import Finished, FuxiCTR, run
from benchmarks.taobao_check import Difference, check
from data.generate import generate, options_of
from data.taobao import TaobaoOptions, prepare

STUB = Path(__file__).parent / "fuxictr_stub.py"
ALL_USERS = 10**6
# Few rows: with the usual minimum nearly all values would be unknown.
OPTIONS = TaobaoOptions(min_count=2)


@pytest.fixture(scope="module")
def taobao(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taobao")
    generate("taobao", folder / "raw", options_of("taobao")(impressions=400, events=6_000))
    prepare(folder / "raw", folder / "prepared", OPTIONS)
    return folder


@pytest.fixture
def copy(taobao, tmp_path):
    """The prepared set, to be spoilt."""
    return Path(shutil.copytree(taobao / "prepared", tmp_path / "prepared"))


def spoil(path, column, change):
    """Rewrite an Arrow file of one record batch, with what ``change`` does to its ``column`` as an array (rows, …)."""
    new, old = (pa.ipc.new_stream, pa.ipc.open_stream) if path.parent.name == "train" else (pa.ipc.new_file, open_file)
    batch = pa.Table.from_batches(list(old(path.read_bytes()))).combine_chunks().to_batches()[0]
    array = batch.column(column)
    nested = pa.types.is_fixed_size_list(array.type)
    values = (array.flatten() if nested else array).to_numpy().reshape(len(array), -1).copy()
    change(values)
    flat = pa.array(values.ravel())
    array = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if nested else flat
    batch = batch.set_column(batch.schema.get_field_index(column), column, array)
    with path.open("wb") as sink, new(sink, batch.schema) as writer:
        writer.write_batch(batch)


def open_file(data):
    reader = pa.ipc.open_file(data)
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def last_pointer_back(values):
    values[np.flatnonzero(values[:, 0])[-1], 0] -= 1


def test_what_is_prepared_is_right(taobao):
    found = check(taobao / "raw", taobao / "prepared", ALL_USERS, OPTIONS)
    assert found["impressions"] == 400
    assert found["events"] > 1_000
    assert found["values"] > 3 * found["events"]
    some = check(taobao / "raw", taobao / "prepared", 3, OPTIONS)
    assert 0 < some["impressions"] < 400


@pytest.mark.parametrize(
    ("file", "column", "change", "message"),
    [
        ("train/data-00000-of-00001.arrow", "pointers", last_pointer_back, "number of pv events"),
        ("train/data-00000-of-00001.arrow", "sparse", lambda v: v[5, 9:10].__iadd__(1), "adgroup_id"),
        ("train/data-00000-of-00001.arrow", "dense", lambda v: v[7].__iadd__(0.01), "price"),
        ("train/data-00000-of-00001.arrow", "labels", lambda v: v[3].__imul__(-1).__iadd__(1), "label"),
        ("train/data-00000-of-00001.arrow", "key", lambda v: v[1].__imul__(0), "key 0"),
        ("train/data-00000-of-00001.arrow", "history", lambda v: v[1].__setitem__(0, v[0, 0]), "pv event 0"),
        ("histories/pv.arrow", "brand", lambda v: v[0].__iadd__(1), "pv event 0: brand"),
        ("histories/pv.arrow", "time", lambda v: v[0].__iadd__(-1), "pv event 0: time"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_a_wrong_value_is_found(taobao, copy, file, column, change, message):
    spoil(copy / file, column, change)
    with pytest.raises(Difference, match=message):
        check(taobao / "raw", copy, ALL_USERS, OPTIONS)


def test_an_untouched_rewrite_is_right(taobao, copy):
    spoil(copy / "train/data-00000-of-00001.arrow", "pointers", lambda values: None)
    assert check(taobao / "raw", copy, ALL_USERS, OPTIONS)["impressions"] == 400


def test_a_vocabulary_of_another_minimum_is_found(taobao):
    with pytest.raises(Difference, match="rows of table"):
        check(taobao / "raw", taobao / "prepared", 3, TaobaoOptions(min_count=3))


@pytest.mark.slow
def test_it_runs_and_writes_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(processes, "RUNNER", STUB)
    arguments = ["--events", "4000", "--impressions", "400", "--users", "5", "--criteo-rows", "400", "--rounds", "1"]
    arguments += ["--fuxictr", sys.executable, "--fuxictr-source", str(tmp_path), "--folder", str(tmp_path)]
    preparation.main([*arguments, "--out", str(tmp_path / "deep" / "preparation.json")])
    report = json.loads((tmp_path / "deep" / "preparation.json").read_text())
    assert {"device", "versions", "settings", "criteo", "taobao"} <= set(report)
    small, large = report["taobao"]["sizes"]
    assert (small["events"], large["events"]) == (2000, 4000)
    assert report["taobao"]["time_ratio"] == large["seconds"] / small["seconds"]
    for size in (small, large):
        assert size["checked"]["users"] == 5
        assert size["checked"]["events"] > 0
        assert min(size["peak_bytes"], size["disk_peak_bytes"], size["prepared_bytes"], size["rows_per_second"]) > 0
    results = report["criteo"]["results"]
    assert set(results) == {"this project", "FuxiCTR package", "FuxiCTR source"}
    assert results["this project"]["over_ours"] == 1
    assert results["FuxiCTR package"]["over_ours"] == 2.0 / results["this project"]["seconds"]
    assert results["FuxiCTR source"]["commit"] == "not a git checkout"
    printed = capsys.readouterr().out
    assert "FuxiCTR package 0.0" in printed
    assert "twice the rows take" in printed
    assert str(tmp_path) not in json.dumps(report)
    assert not [path for path in tmp_path.iterdir() if path.name != "deep"], "temporary files are left"


def test_a_contender_that_loses_rows_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "RUNNER", STUB)
    monkeypatch.setenv("STUB", "loses")
    generate("criteo", tmp_path / "raw", options_of("criteo")(rows=100))
    rows = preparation.plain_copies(tmp_path / "raw" / "train.txt", tmp_path / "train.txt", tmp_path / "csv")
    stub = FuxiCTR(sys.executable)
    task = stub.command("prepare", "--raw", str(tmp_path / "csv"), "--out", str(tmp_path / "out"))
    assert run(task, stub.environment()).answer["seconds"] == 2.0
    with pytest.raises(RuntimeError, match="wrote 90 of 100 rows"):
        preparation.check_rows(stub.name, rows, preparation.written_rows(tmp_path / "out"))


def test_without_fuxictr_a_line_says_so(tmp_path, monkeypatch, capsys):
    def quick(name, raw, out, options):
        out.mkdir()
        rows = {"train": len(raw.read_text().splitlines())}
        return Finished({"seconds": 1.0, "import_seconds": 1.0, "peak_bytes": 1, "rows": rows}, 2.0, None, None)

    monkeypatch.setattr(preparation, "prepared", quick)
    args = Namespace(criteo=None, criteo_rows=50, rounds=2, min_count=1, threads=0, fuxictr=None, fuxictr_source=None)
    found = preparation.criteo(args, tmp_path)
    assert found["results"]["this project"]["rows_per_second"] == 50
    assert "FuxiCTR was not measured" in capsys.readouterr().out


def test_both_get_the_same_rows(tmp_path):
    lines = ["\t".join(["1", *(f"{row}.{column}" for column in range(39))]) for row in range(25)]
    with gzip.open(tmp_path / "some.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    assert preparation.plain_copies(tmp_path / "some.gz", tmp_path / "train.txt", tmp_path / "csv") == 25
    assert (tmp_path / "train.txt").read_text().splitlines() == lines
    splits = {split: (tmp_path / "csv" / f"{split}.csv").read_text().splitlines() for split in preparation.SPLITS}
    assert [len(rows) for rows in splits.values()] == [21, 3, 4]
    assert {rows[0].split(",")[0] for rows in splits.values()} == {"label"}
    assert [line for rows in splits.values() for line in rows[1:]] == [line.replace("\t", ",") for line in lines]


def test_memory_of_a_program_and_of_its_child(tmp_path):
    program = (
        "import json, subprocess, sys, time; from benchmarks.processes import peak_bytes\n"
        "child = subprocess.Popen([sys.executable, '-c', 'x = bytearray(150_000_000); import time; time.sleep(1.5)'])\n"
        "mine = bytearray(50_000_000); (open(sys.argv[1], 'wb')).write(mine)\n"
        "child.wait(); print(json.dumps({'peak_bytes': peak_bytes()}))"
    )
    done = run([sys.executable, "-c", program, str(tmp_path / "file")], watch=(tmp_path, "*"))
    assert 150_000_000 < done.answer["peak_bytes"] < 300_000_000
    assert done.wall_seconds > 1
    if sys.platform == "linux":
        assert 200_000_000 < done.tree_bytes < 400_000_000


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ended with 3:\nno luck"):
        run([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])
