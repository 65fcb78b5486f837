"""`benchmark` from end to end, what it refuses, and that what it measures is what it says."""

from __future__ import annotations

import json
import time
from dataclasses import fields

import lightning as L
import pytest
import torch
from torch import nn

import cli
from kunlun.command_line import OPTIONS
from kunlun.configuration import ConfigError
from kunlun.experiments.benchmark import BenchmarkOptions, Turns, fixed_batches, measure, table
from kunlun.models.kunlun import Kunlun
from kunlun.training.module import CTRModule
from kunlun.training.utilization import flops_by_part, history_lengths
from tests.support import toy_schema
from tests.training.test_module import Linear, Toy

TINY = ["--config", "models/tiny", "--data.batch_size=16"]


def make_trainer(callbacks, **arguments) -> L.Trainer:
    return L.Trainer(accelerator="cpu", callbacks=callbacks, enable_model_summary=False, **arguments)


def test_the_command_prints_a_table_and_writes_what_others_read(tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    assert cli.run(["benchmark", *TINY, "--steps=3", "--warmup=1", "--latency_batch=2", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("training", "inference", "latency", "MFU", "FLOPs", "peak", str(out.name)))
    found = json.loads(out.read_text())
    assert found["flops_per_sample"] == sum(found["flops"].values()) > 0
    assert set(found["parameters"]) == {"dense", "embedding"}
    for kind in ("training", "inference"):
        low, high = found[kind]["spread"]
        assert 0 < low <= found[kind]["samples_per_second"] <= high
        assert 0 < found[kind]["mfu"] < 1.5
    assert found["training"]["mfu"] == pytest.approx(
        3 * found["flops_per_sample"] * found["training"]["samples_per_second"] / found["peak_flops"]
    )
    latency = found["inference"]["latency_ms"]
    assert latency["batch"] == 2
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert found["inference"]["batch"] == 16
    assert found["peak_memory_bytes"] >= 0
    assert found["peak_source"].startswith("measured matmul, ")
    assert found["precision"] == "32-true"
    assert found["threads"] == torch.get_num_threads()
    assert "torch" in found["versions"]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--steps=0", "--steps must be at least 1"),
        ("--steps=many", "--steps: expected a whole number"),
        ("--warmup=-1", "--warmup must be at least 0"),
        ("--latency_batch=0", "--latency_batch must be at least 1"),
        ("--peak_flops=0", "--peak_flops must be a finite number above 0"),
        ("--peak_flops=fast", "--peak_flops: expected a number"),
        ("--out=.", "--out must be the name of a file"),
        ("--stepz=3", "--stepz: unknown option; did you mean 'steps'"),
        ("--model.widht=3", "model.init_args.widht"),
        ("--ckpt_path=x", "ckpt_path"),
    ],
)
def test_a_wrong_option_is_refused(argument, told):
    with pytest.raises(ConfigError) as error:
        cli.run(["benchmark", *TINY, argument])
    assert told in str(error.value)


def test_the_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        cli.run(["benchmark", "--help"])
    printed = capsys.readouterr().out
    assert "--latency_batch" in printed
    assert "Rows of a request" in printed
    assert OPTIONS["benchmark"] == tuple(f.name for f in fields(BenchmarkOptions))


class Slow(nn.Module):
    """A model whose forward takes 10 ms longer in training than the 20 ms in inference; it counts no FLOPs."""

    def __init__(self, schema) -> None:
        super().__init__()
        self.schema, self.linear = schema, Linear(schema)

    def forward(self, batch):
        time.sleep(0.03 if self.training else 0.02)
        return self.linear(batch)


def test_what_is_slept_is_measured_and_a_model_without_flops_is_no_error():
    schema = toy_schema()
    module = CTRModule(Slow(schema))
    options = BenchmarkOptions(steps=3, warmup=1, peak_flops=1e12)
    found = measure(module, fixed_batches(Toy(schema)), make_trainer, options)
    assert 8 / 0.3 < found["training"]["spread"][1] < 8 / 0.03
    assert 8 / 0.2 < found["inference"]["spread"][1] < 8 / 0.02
    assert 20 < found["inference"]["latency_ms"]["p50"] < 200
    assert found["training"]["mfu"] is None
    assert found["flops_per_sample"] is None
    assert "no flops(lengths): no MFU" in table("slow", found)
    assert found["parameters"] == {"dense": 3, "embedding": 200}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_flops_are_those_of_the_batches_and_the_peak_that_of_the_precision(precision):
    schema = toy_schema()
    module, batches = CTRModule(Kunlun(schema)), fixed_batches(Toy(schema))
    assert [len(b) for b in batches] == [8] * 4
    assert len({tuple(b.row.tolist()) for b in batches}) == 4

    def with_precision(callbacks, **arguments):
        return make_trainer(callbacks, precision=precision, **arguments)

    found = measure(module, batches, with_precision, BenchmarkOptions(steps=1, warmup=0))
    assert found["flops"] == {
        part: round(n) for part, n in flops_by_part(module.model, map(history_lengths, batches)).items()
    }
    assert found["precision"] == precision
    assert found["peak_source"].endswith("bf16" if precision == "bf16-mixed" else "fp32")
    assert not module.training


def test_batches_take_turns():
    batches = fixed_batches(Toy(toy_schema()), count=3)
    assert [b is batches[i % 3] for i, b in enumerate(Turns(batches, 7))] == [True] * 7
