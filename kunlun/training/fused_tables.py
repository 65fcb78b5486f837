"""The learning rate of sharded tables, whose row-wise Adagrad steps inside the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from kunlun.layers.sharded_tables import ShardedTables
from kunlun.training.row_wise_adagrad import evaluate


class FusedTables(Optimizer):
    """A param group "tables" without parameters, for schedules and logs, whose learning rate ``tables`` follow.

    There is nothing to step, and nothing but the group in its ``state_dict``: rows and row sums are spread over
    processes, and saved with the tables.

    Args:
        tables: whose backward pass moves the rows.
        lr: peak learning rate.
    """

    def __init__(self, tables: ShardedTables, lr: float) -> None:
        super().__init__([{"params": [], "name": "tables"}], {"lr": lr})
        tables.learning_rate = lambda: self.param_groups[0]["lr"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return evaluate(closure)
