"""FSDP2 on two processes: the gradients of every model, and a run of cli.py against one process."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks import data_parallel as benchmark
from benchmarks.reliability.attempts import Setting
from data import SyntheticData
from kunlun.training.data_parallel import exchange_sparse_gradients
from kunlun.training.fully_sharded import layers_of, split_dense
from kunlun.training.module import CTRModule
from tests.processes import WORLD, spawn
from tests.test_configs import BASELINES, model_of
from tests.training.test_module import Linear, trainer
from tests.training.test_nonfinite import SCHEMA

MODELS = sorted(BASELINES | {"kunlun", "drop_wukong", "no_gdpa", "no_compskip", "unfused_gdpa"})


def _backward(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    rows = SyntheticData().split("train")
    for name in MODELS:
        torch.manual_seed(0)
        whole = CTRModule(model_of(Path(f"ablations/{name}.yaml")))
        split = copy.deepcopy(whole)
        if rank:  # rank 0's values count
            torch.nn.init.zeros_(next(split.model.parameters()))
        tables = split_dense(split.model, mesh)
        assert tables
        batches = [rows.__getitems__(np.arange(8 * r, 8 * r + 8)) for r in range(WORLD)]
        for r in range(WORLD):
            (whole._loss(whole(batches[r]), batches[r]) / WORLD).backward()
        split._loss(split(batches[rank]), batches[rank]).backward()
        exchange_sparse_gradients(tables)
        expected = dict(whole.named_parameters())
        for key, parameter in split.named_parameters():
            assert isinstance(parameter, DTensor) == all(parameter is not table for table in tables), (name, key)
            grad = parameter.grad.full_tensor() if isinstance(parameter, DTensor) else parameter.grad.to_dense()
            reference = expected[key].grad
            reference = reference.to_dense() if reference.is_sparse else reference
            scale = float(reference.abs().max())
            torch.testing.assert_close(grad, reference, rtol=1e-3, atol=1e-5 * scale + 1e-9, msg=f"{name}: {key}")
    dist.barrier()


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    spawn(_backward, tmp_path)


def test_layers_are_split_one_by_one() -> None:
    model = model_of(Path("ablations/kunlun.yaml"))
    layers = list(layers_of(model))
    assert set(model.interactions) <= set(layers)
    assert not {id(p) for layer in layers for p in layer.parameters()} & {id(p) for p in model.tables.parameters()}


def test_another_model_parallel_strategy_is_refused() -> None:
    """It would train every rank on its own."""
    module = CTRModule(Linear(SCHEMA))
    module._trainer = trainer()
    module.trainer._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(TypeError, match=r"use --trainer\.strategy fsdp2"):
        module.configure_model()


@pytest.mark.slow
def test_two_ranks_are_level_with_one(tmp_path: Path) -> None:
    more = ("--trainer.accumulate_grad_batches=2", "--run.test=true")
    found = benchmark.parity(tmp_path, *more, strategy="fsdp2", epochs=1, batches=12)
    assert found["steps"] == 12
    assert found["largest_loss_gap"] < 1e-5
    assert found["largest_metric_gap"] < 1e-4
    assert found["largest_weight_gap"] < 1e-3
    assert found["ranks_end_with_equal_weights"]
    summaries = [Setting(tmp_path, 1, name=f"{n}-fsdp2").runs.glob("*/summary.json") for n in ("one-rank", "two-ranks")]
    one, two = (json.loads(next(paths).read_text())["test"] for paths in summaries)
    assert two["test/ne"] == pytest.approx(one["test/ne"], abs=1e-4)
