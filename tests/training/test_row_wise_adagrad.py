from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import embedding_step
from kunlun.training.row_wise_adagrad import RowWiseAdagrad

ROWS, WIDTH = 20, 4
IDS = [torch.tensor(ids) for ids in ([1, 3, 3, 3, 7], [3, 0, 0], [19, 7, 1, 1, 7, 7], [5])]
SETTINGS: list[dict[str, float]] = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.02, "eps": 1e-3, "initial_accumulator": 0.5},
]


def table(dtype: torch.dtype = torch.float32, sparse: bool = True) -> nn.Embedding:
    embedding = nn.Embedding(ROWS, WIDTH, sparse=sparse)
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    embedding.weight = nn.Parameter(weight.to(dtype))
    return embedding


def upstream_gradient(ids: Tensor, seed: int) -> Tensor:
    return torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(seed))


def backward(embedding: nn.Embedding, ids: Tensor, seed: int) -> None:
    (embedding(ids).float() * upstream_gradient(ids, seed)).sum().backward()


def reference(weight: Tensor, steps: list[Tensor], dtype: torch.dtype, **settings: float) -> tuple[Tensor, Tensor]:
    """Row by row in float64, rounded to the dtype of the table after each step."""
    lr, eps = settings["lr"], settings.get("eps", 1e-8)
    weight = weight.double().clone()
    row_sum = torch.full((ROWS,), settings.get("initial_accumulator", 0.0), dtype=torch.float64)
    for seed, ids in enumerate(steps):
        upstream = upstream_gradient(ids, seed).double()
        for row in set(ids.tolist()):
            occurrences = [upstream[i] for i in range(len(ids)) if ids[i] == row]
            gradient = torch.stack(occurrences).sum(0) + settings.get("weight_decay", 0.0) * weight[row]
            row_sum[row] += (gradient**2).sum() / WIDTH
            weight[row] -= lr * gradient / (row_sum[row] ** 0.5 + eps)
            weight[row] = weight[row].to(dtype).double()
    return weight, row_sum


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_row_by_row_reference(settings: dict[str, float], sparse: bool, dtype: torch.dtype) -> None:
    embedding = table(dtype, sparse)
    if dtype == torch.bfloat16:  # the gradient itself is bfloat16: repeated rows would round their sums
        steps = [ids.unique() for ids in IDS]
    else:
        steps = IDS
    expected, expected_sum = reference(embedding.weight.detach(), steps, dtype, **settings)
    optimizer = RowWiseAdagrad([embedding.weight], **settings)
    for seed, ids in enumerate(steps):
        optimizer.zero_grad()
        backward(embedding, ids, seed)
        assert embedding.weight.grad is not None
        assert embedding.weight.grad.is_sparse == sparse
        optimizer.step()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(embedding.weight.double(), expected, rtol=tolerance, atol=tolerance)
    row_sum = optimizer.state[embedding.weight]["row_sum"]
    assert row_sum.dtype == torch.float32
    torch.testing.assert_close(row_sum.double(), expected_sum, rtol=tolerance, atol=1e-7)


def test_first_update_has_the_size_of_the_learning_rate() -> None:
    for scale in (1e-4, 1e4):
        embedding = table()
        before = embedding.weight.detach().clone()
        (embedding(torch.tensor([2])).sum() * scale).backward()
        RowWiseAdagrad([embedding.weight], lr=0.1).step()
        torch.testing.assert_close(before[2] - embedding.weight[2], torch.full((WIDTH,), 0.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_untouched_rows_keep_every_bit(settings: dict[str, float]) -> None:
    embedding = table()
    optimizer = RowWiseAdagrad([embedding.weight], **settings)
    backward(embedding, torch.arange(ROWS), seed=0)
    optimizer.step()
    weight, row_sum = embedding.weight.detach().clone(), optimizer.state[embedding.weight]["row_sum"].clone()
    optimizer.zero_grad()
    backward(embedding, torch.tensor([4, 9, 4]), seed=1)
    optimizer.step()
    changed = torch.zeros(ROWS, dtype=torch.bool)
    changed[[4, 9]] = True
    assert torch.equal((embedding.weight != weight).any(1), changed)
    assert torch.equal(optimizer.state[embedding.weight]["row_sum"] != row_sum, changed)


def test_accumulated_gradients_are_summed_before_they_are_squared() -> None:
    whole, parts = table(), table()
    ids = torch.tensor([3, 1, 3, 3, 8])
    weight = upstream_gradient(ids, seed=0)
    (whole(ids) * weight).sum().backward()
    (parts(ids[:2]) * weight[:2]).sum().backward()
    (parts(ids[2:]) * weight[2:]).sum().backward()
    for embedding in (whole, parts):
        RowWiseAdagrad([embedding.weight], lr=0.1).step()
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zeroed_gradients_leave_no_trace(set_to_none: bool) -> None:
    embedding, fresh = table(), table()
    optimizer = RowWiseAdagrad([embedding.weight], lr=0.1)
    backward(embedding, IDS[0], seed=0)
    optimizer.zero_grad(set_to_none)
    for one in (embedding, fresh):
        backward(one, IDS[1], seed=1)
    optimizer.step()
    RowWiseAdagrad([fresh.weight], lr=0.1).step()
    assert torch.equal(embedding.weight, fresh.weight)


def test_empty_batch_changes_nothing() -> None:
    embedding = table()
    before = embedding.weight.detach().clone()
    backward(embedding, torch.empty(0, dtype=torch.int64), seed=0)
    optimizer = RowWiseAdagrad([embedding.weight], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(embedding.weight, before)


def test_padding_row_is_never_updated() -> None:
    embedding = nn.Embedding(ROWS, WIDTH, sparse=True, padding_idx=0)
    embedding(torch.tensor([0, 0, 5])).sum().backward()
    RowWiseAdagrad([embedding.weight], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(embedding.weight[0], torch.zeros(WIDTH))
    assert embedding.weight[5].any()


class _LargeTensorOps(TorchDispatchMode):
    """Names of the operators that see or make a tensor with at least `size` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        if any(tensor.layout == torch.strided and tensor.numel() >= self.size for tensor in tensors):
            self.names.add(func.overloadpacket.__name__)
        return result


def test_no_operation_runs_over_the_whole_table() -> None:
    rows = 10_000
    embedding = nn.Embedding(rows, WIDTH, sparse=True)
    optimizer = RowWiseAdagrad([embedding.weight], lr=0.1, weight_decay=0.1)
    for _ in range(2):  # the first step also fills the new state
        optimizer.zero_grad()
        embedding(torch.tensor([1, 9_999, 1])).sum().backward()
        with _LargeTensorOps(rows) as seen:
            optimizer.step()
    assert seen.names == {"index_select", "index_copy_"}


def test_state_is_one_float_per_row() -> None:
    embedding = table(torch.bfloat16)
    backward(embedding, IDS[0], seed=0)
    optimizer = RowWiseAdagrad([embedding.weight], lr=0.1)
    optimizer.step()
    state = optimizer.state[embedding.weight]
    assert list(state) == ["row_sum"]
    assert state["row_sum"].nbytes == 4 * ROWS


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"eps": 0.0}, {"weight_decay": -1.0}, {"initial_accumulator": -1.0}]
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} {next(iter(settings.values()))}"):
        RowWiseAdagrad([table().weight], **settings)


def test_a_parameter_that_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        RowWiseAdagrad([nn.Parameter(torch.zeros(3))])


def test_benchmark_reports_every_draw_and_optimizer(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    sizes = ["--small-rows", "500", "--large-rows", "2000", "--batch-size", "32", "--fields", "4", "--dim", "8"]
    embedding_step.main([*sizes, "--rounds", "2", "--warmup", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert {(r["draw"], r["table_optimizer"]) for r in results} == {
        (draw, name) for draw in embedding_step.DRAWS for name in embedding_step.TABLE_OPTIMIZERS
    }
    assert all(r["step_ms_ratio"] > 0 and r["distinct_rows_per_step"] <= 128 for r in results)
    ours = [r["large_state_bytes_per_row"] for r in results if "ours" in r["table_optimizer"]]
    assert ours == [4.0] * len(embedding_step.DRAWS)
