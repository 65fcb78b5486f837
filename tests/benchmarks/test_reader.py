"""The benchmark of the reader: it runs at toy size, and does not time what is not a shuffled epoch of everything."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import processes, reader
from benchmarks.made_sets import write_histories, write_narrow
from benchmarks.processes import Conversation, Finished
from data.module import PreparedData
from data.order import BatchOrder

STUB = Path(__file__).parent / "fuxictr_stub.py"


@pytest.mark.slow
def test_it_runs_and_writes_what_it_found(tmp_path, capsys):
    arguments = ["--rows", "300", "--batch-size", "32", "--rounds", "2", "--history-rows", "200", "--users", "20"]
    arguments += ["--max-length", "3", "--opening-rows", "200", "--opening-rounds", "2", "--folder", str(tmp_path)]
    reader.main([*arguments, "--out", str(tmp_path / "deep" / "reader.json")])
    report = json.loads((tmp_path / "deep" / "reader.json").read_text())
    assert {"device", "versions", "settings", "criteo", "histories", "opening"} <= set(report)
    results = report["criteo"]["results"]
    assert set(results) == {"this project", "NumPy gather"}
    assert results["this project"]["ours_over_this"] == 1
    assert len(results["NumPy gather"]["all"]) == 2
    assert report["histories"]["events_per_sample"] == 12
    assert set(report["histories"]["samples_per_second"]) == {"one core", "two workers"}
    assert report["opening"]["rows"] == [200, 20_000]
    assert report["opening"]["ratio"] == report["opening"]["seconds"][1] / report["opening"]["seconds"][0]
    printed = capsys.readouterr().out
    assert "FuxiCTR was not measured" in printed
    assert str(tmp_path) not in json.dumps(report)
    assert not [path for path in tmp_path.iterdir() if path.name != "deep"], "temporary files are left"


@pytest.fixture
def criteo(tmp_path, monkeypatch):
    """Runs the Criteo part against the stub; the project's own files are narrow, and there already."""

    def prepare(name, raw, out, options):
        write_narrow(out, 400)
        return Finished({}, 0.0, None, None)

    monkeypatch.setattr(reader, "prepared", prepare)
    monkeypatch.setattr(processes, "RUNNER", STUB)
    args = Namespace(criteo=None, rows=50, batch_size=64, max_length=5, min_count=1, rounds=2)
    args.fuxictr, args.fuxictr_source = sys.executable, tmp_path
    return lambda: reader.criteo(args, tmp_path)


def test_every_loader_takes_its_turns(criteo, capsys):
    results = criteo()["results"]
    package = ["parquet", "parquet, all cores", "npz"]
    source = ["parquet", "npz", "parquet-blocks"]
    names = [f"FuxiCTR package: {name}" for name in package] + [f"FuxiCTR source: {name}" for name in source]
    assert list(results) == ["this project", "NumPy gather", *names]
    for name in names:
        assert results[name]["all"] == [200.0, 200.0]
        assert results[name]["class"] == "StubLoader"
        assert results[name]["ours_over_this"] == results["this project"]["samples_per_second"] / 200
    assert "FuxiCTR source: parquet-blocks (0.0 at not a git ch, StubLoader)" in capsys.readouterr().out


def test_a_loader_that_does_not_shuffle_is_an_error(criteo, monkeypatch):
    monkeypatch.setenv("STUB", "ordered")
    with pytest.raises(RuntimeError, match="FuxiCTR package: parquet: every epoch began with the same rows"):
        criteo()


def test_rounds_take_turns_and_leave_out_the_first():
    order = []

    def contender(name):
        return lambda: order.append(name) or {"samples": len(order), "seconds": 1.0}

    found = reader.rounds({name: contender(name) for name in "ab"}, 2)
    assert "".join(order) == "abbaab"
    assert {name: [r["samples"] for r in seen] for name, seen in found.items()} == {"a": [4, 5], "b": [3, 6]}


def test_an_epoch_counts_samples_and_events(tmp_path):
    write_histories(tmp_path / "set", 100, 10, 3)
    one = reader.opened(tmp_path / "set", 32, 2)
    first, second = one(), one()
    assert (first["samples"], first["events"]) == (96, 96 * 4 * 2)
    assert first["first"] != second["first"]
    data = PreparedData(str(tmp_path / "set"), batch_size=100, max_length=1000)
    batch = next(iter(data.train_dataloader()))
    for columns in batch.events.values():
        lengths = columns["time"].lengths()
        assert int(lengths.min()) >= 3
        assert len(set(lengths.tolist())) > 1
        assert bool((columns["time"].values[1:] >= columns["time"].values[:-1])[:2].all())


def test_what_is_no_shuffled_epoch_is_not_timed(tmp_path, monkeypatch):
    write_narrow(tmp_path / "set", 100)
    reader.check_epoch(tmp_path / "set", 32)
    with monkeypatch.context() as patch:
        patch.setattr(BatchOrder, "__iter__", lambda self: iter(np.arange(96).reshape(3, 32)))
        with pytest.raises(RuntimeError, match="random order"):
            reader.check_epoch(tmp_path / "set", 32)
    with monkeypatch.context() as patch:
        patch.setattr(BatchOrder, "__iter__", lambda self: iter(np.array([[5, 3, 5], [8, 1, 2]])))
        with pytest.raises(RuntimeError, match="every row once"):
            reader.check_epoch(tmp_path / "set", 32)


def test_the_gather_reads_whole_batches(tmp_path):
    write_narrow(tmp_path / "set", 100)
    assert reader.gather(tmp_path / "set", 32)()["samples"] == 96


def test_a_program_that_says_nothing_is_an_error():
    with pytest.raises(RuntimeError, match="ended with 4 and gave no answer"):
        Conversation([sys.executable, "-c", "raise SystemExit(4)"], None, None)


def test_pinning_ends_with_the_epoch():
    before = processes.cores()
    seen = reader.pinned(lambda: {"cores": processes.cores()}, *sorted(before)[:1])()
    assert seen["cores"] == set(sorted(before)[:1])
    assert processes.cores() == before
