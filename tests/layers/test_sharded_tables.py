"""Sharded tables find, draw and move the rows that plain ones would, on two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.torchrec import on_processes
from kunlun.features import FeatureSchema, Table
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.layers.sharded_tables import SHARDINGS, Adagrad, ShardedTables
from tests.support import toy_batch, toy_schema

pytest.importorskip("torchrec", reason="TorchRec is not installed; `make torchrec` installs it")

CONFIG = EmbeddingConfig(width=8, widths={"shop": 4}, init_std=0.5)
CPU = torch.device("cpu")


def sharded(*shardings: str, schema: FeatureSchema | None = None, memory: int = 1 << 30) -> ShardedTables:
    torch.manual_seed(3)
    world = torch.distributed.get_world_size()
    return ShardedTables(schema or toy_schema(), CONFIG, Adagrad(lr=0.5), CPU, world, memory, shardings)


def batch_of(rank: int) -> Any:
    return toy_batch(toy_schema(), 5, torch.Generator().manual_seed(rank))


def rows_and_moves(sharding: str) -> dict[str, Any]:
    """On one of several processes: the tables before and after a step, and what lookups gave."""
    tables, rank = sharded(sharding), torch.distributed.get_rank()
    before = {name: tables.weight(name) for name in tables.rows}
    batch, fields = batch_of(rank), tables.schema.sparse
    tables.fetch(batch)
    found = tables(fields, batch.sparse)
    wanted = [before[field.table][batch.sparse[:, i]] for i, field in enumerate(fields)]
    right = [torch.equal(*pair) for pair in zip(found, wanted, strict=True)]
    torch.stack([rows.sum() for rows in found]).sum().backward()
    after = {name: tables.weight(name) for name in tables.rows}
    tables.learning_rate = lambda: 0.0
    tables.fetch(batch)
    torch.stack([rows.sum() for rows in tables(fields, batch.sparse)]).sum().backward()
    still = {name: tables.weight(name) for name in tables.rows}
    local = [len(values) for key, _, values in tables._local() if key == "item.rows"]
    return {"before": before, "after": after, "still": still, "right": right, "local": sum(local)}


def errors() -> dict[str, Any]:
    """What is refused, and what nan does, on one of several processes."""
    from torchrec.distributed.planner.types import PlannerError

    tables, rank = sharded("row_wise"), torch.distributed.get_rank()
    batch, fields = batch_of(rank), tables.schema.sparse
    before = tables.weight("item")
    # The other process has no batch of its own.
    if rank == 0:
        tables.fetch(batch)
        (torch.stack([rows.sum() for rows in tables(fields, batch.sparse)]).sum() * torch.nan).backward()
    else:
        tables.fetch_nothing()
        torch.stack([rows.sum() for rows in tables._found.values()]).sum().backward()
    told = {"moved by nan": not torch.equal(before, tables.weight("item")), "finite": tables.is_finite()}
    try:
        tables(fields, torch.full((1, 3), 199))
        told["unknown"] = ""
    except RuntimeError as error:
        told["unknown"] = str(error)
    large = replace(toy_schema(), tables={"item": Table(200_000), "shop": Table(20), "device": Table(5)})
    enough = 5 << 20  # 200,000 rows of 8 float32 and a row sum are 6.9 MiB: too much for one process, not for two
    told["sharded"] = sum(values.nbytes for _, _, values in sharded(*SHARDINGS, schema=large, memory=enough)._local())
    try:
        sharded("table_wise", schema=large, memory=enough)
        told["refused"] = ""
    except PlannerError as error:
        told["refused"] = type(error).__name__
    return told


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    results = on_processes(_everything, folder, 2)
    return {name: [one[name] for one in results] for name in results[0]}


def _everything() -> dict[str, Any]:
    return {**{sharding: rows_and_moves(sharding) for sharding in SHARDINGS}, "errors": errors()}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_every_field_finds_its_rows(processes: dict[str, Any], sharding: str) -> None:
    for one in processes[sharding]:
        assert one["right"] == [True] * 3


def test_initial_rows_do_not_depend_on_the_sharding(processes: dict[str, Any]) -> None:
    table, row = (processes[sharding][0] for sharding in SHARDINGS)
    assert {name: t.shape for name, t in table["before"].items()} == {
        "item": (200, 8),
        "shop": (20, 4),
        "device": (5, 8),
    }
    for name, values in table["before"].items():
        assert torch.equal(values, row["before"][name])
    assert float(table["before"]["item"].std()) == pytest.approx(0.5, rel=0.1)


def test_a_sharding_puts_rows_where_it_says(processes: dict[str, Any]) -> None:
    assert sorted(one["local"] for one in processes["table_wise"]) == [0, 200]
    assert [one["local"] for one in processes["row_wise"]] == [100, 100]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_rows_move_once_by_the_mean_gradient_over_processes(processes: dict[str, Any], sharding: str) -> None:
    """The gradient of a row is half the times that both batches name it; Adagrad's first step is its sign."""
    batches = [batch_of(0).sparse, batch_of(1).sparse]
    first = processes[sharding][0]
    for column, name in enumerate(("item", "shop", "device")):
        moved = first["before"][name] - first["after"][name]
        named = torch.zeros(len(moved), dtype=torch.bool)
        named[torch.cat([b[:, column] for b in batches])] = True
        torch.testing.assert_close(moved, 0.5 * named[:, None].float().expand_as(moved), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_rows_follow_the_learning_rate_of_their_lookup(processes: dict[str, Any], sharding: str) -> None:
    first = processes[sharding][0]
    for name, after in first["after"].items():
        assert torch.equal(after, first["still"][name])


def test_a_gradient_that_is_not_finite_moves_no_row(processes: dict[str, Any]) -> None:
    assert [one["moved by nan"] for one in processes["errors"]] == [False, False]
    assert [one["finite"] for one in processes["errors"]] == [True, True]


def test_an_id_that_was_not_fetched_is_refused(processes: dict[str, Any]) -> None:
    assert all("was not fetched" in one["unknown"] for one in processes["errors"])


def test_tables_may_be_larger_than_the_memory_of_one_process(processes: dict[str, Any]) -> None:
    for one in processes["errors"]:
        assert 3_600_000 <= one["sharded"] < 3_700_000  # half of 200,000 rows of 36 bytes
        assert one["refused"] == "PlannerError"
