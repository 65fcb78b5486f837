"""The kernel benchmark: every case runs and is written down, and nothing is timed that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import kernels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernels, "GDPA_SHAPES", [(4, 9, 2, 8, 6)])
    monkeypatch.setattr(kernels, "WINDOW_SHAPES", [(40, 3, 5)])
    monkeypatch.setattr(kernels, "SEED_SHAPES", [(4, 9, 2, 8, 3)])
    monkeypatch.setattr(kernels, "seconds", timed)


def timed(steps, rounds):
    """Every step runs once, and is said to take a second; the forward alone a quarter of it."""
    for step in steps.values():
        step()
    return {name: [0.25 if name == "forward" else 1.0] for name in steps}


def test_every_op_and_peer_is_written_down(tmp_path, capsys):
    kernels.main(["--rounds", "1", "--out", str(tmp_path / "deep" / "kernels.json")])
    report = json.loads((tmp_path / "deep" / "kernels.json").read_text())
    assert {r["op"] for r in report["results"]} == {"gdpa", "gdpa_block", "window_attention", "seed_attention", "rote"}
    assert report["peaks"]["flops_per_s"] > 0
    assert report["versions"]["torch"] == torch.__version__
    for record in report["results"]:
        assert record["peer_over_ours"], record
        assert all(ratio == 1.0 for ratio in record["peer_over_ours"].values())
        assert record["peers_not_measured"] == {}
        assert set(record["extra_bytes"]) == {"ours", *record["peer_over_ours"]}
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(report["results"])


def test_a_peer_that_cannot_run_is_named(monkeypatch):
    case = kernels.gdpa_case((4, 9, 2, 8, 6), True, torch.float32)

    def broken(*_):
        raise RuntimeError("no such chip")

    case.peers["broken"] = replace(case.ours, run=broken)
    record = kernels.measure(case, 1, kernels.Peaks(1e12, 1e9))
    assert record["peers_not_measured"] == {"broken": "RuntimeError: no such chip"}
    assert "broken" not in record["ms"]
    assert "not measured (RuntimeError: no such chip)" in kernels.line(record)


def test_what_is_wrong_is_not_timed():
    case = kernels.gdpa_case((4, 9, 2, 8, 6), True, torch.float32)
    wrong = replace(case, ours=replace(case.ours, run=lambda *x: 1.01 * case.ours.run(*x)))
    kernels.check(case)
    with pytest.raises(RuntimeError, match=r"gdpa .*: output is off by 1.0e-02 of its norm; nothing is timed"):
        kernels.check(wrong)


def test_peak_memory_of_a_known_step():
    x = torch.randn(1 << 18, requires_grad=True)
    # One temporary of the size of x at the same time as the output: x.exp() is kept for the backward.
    twice = kernels.Contender(lambda x: x.exp() * 2, [x], torch.ones_like(x))
    megabyte = 1 << 20
    assert megabyte <= kernels.peak_bytes(twice) <= 2.1 * megabyte
