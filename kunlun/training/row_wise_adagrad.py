"""Row-wise Adagrad: embedding tables with sparse gradients and one float32 of optimizer state per row.

Legend: N rows of a table, D its width, K its lookups in a step, R the distinct rows among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer


def evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Float32StateOptimizer(Optimizer):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict` bit for bit."""
        super().load_state_dict(state_dict)
        # torch has cast the float32 state of a bfloat16 table to bfloat16: take it from the source again.
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved_ids, params, strict=True):
            saved = state_dict["state"].get(index, {})
            if "row_sum" in saved:
                self.state[param]["row_sum"] = saved["row_sum"].to(param.device)


class RowWiseAdagrad(Float32StateOptimizer):
    """Adagrad with one accumulator per table row (FBGEMM's EXACT_ROWWISE_ADAGRAD, L2 mode).

    With g the row's gradient, summed over all its occurrences, plus `weight_decay * row`:
    `row_sum += mean(g²); row -= lr * g / (√row_sum + eps)`, in float32 whatever the dtype of the table.

    Only touched rows are read or written: those in a sparse gradient, those with a non-zero gradient in a dense one.
    Weight decay therefore acts on a row when a batch shows it, so that frequent rows decay more often than rare ones.
    The updated row is rounded to the dtype of the table: in bfloat16, updates below 1/256 of a weight can be lost.

    Args:
        params: tables (N, D), or param groups of them.
        initial_accumulator: value every `row_sum` starts with.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        eps: float = 1e-8,
        initial_accumulator: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not (min(lr, initial_accumulator, weight_decay) >= 0 and eps > 0):
            raise ValueError(
                f"lr {lr}, initial_accumulator {initial_accumulator}, weight_decay {weight_decay} must be 0 or more, "
                f"eps {eps} above 0"
            )
        defaults = {"lr": lr, "eps": eps, "initial_accumulator": initial_accumulator, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for table in group["params"]:
                if table.ndim != 2:
                    raise ValueError(f"row-wise Adagrad takes tables (N, D), got a parameter {tuple(table.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the touched rows of every table that has a gradient; returns the closure's loss."""
        loss = evaluate(closure)
        for group in self.param_groups:
            for table_ND in group["params"]:
                if table_ND.grad is not None:
                    self._update(table_ND, table_ND.grad, group)
        return loss

    def _update(self, table_ND: Tensor, grad_ND: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table_ND]
        if not state:
            fill = group["initial_accumulator"]
            state["row_sum"] = torch.full((len(table_ND),), fill, dtype=torch.float32, device=table_ND.device)
        rows_R, grad_RD = touched_rows(grad_ND)
        if len(rows_R) == 0:
            return
        # On the CPU, index_select, index_copy_ and in-place arithmetic take a third of the time of plain expressions.
        weight_RD = table_ND.index_select(0, rows_R).float()
        if group["weight_decay"]:
            grad_RD = grad_RD.add(weight_RD, alpha=group["weight_decay"])
        row_sum_R = state["row_sum"].index_select(0, rows_R).add_(grad_RD.square().mean(1))
        state["row_sum"].index_copy_(0, rows_R, row_sum_R)
        scale_R = row_sum_R.sqrt_().add_(group["eps"]).reciprocal_()
        weight_RD.addcmul_(grad_RD, scale_R[:, None], value=-group["lr"])
        table_ND.index_copy_(0, rows_R, weight_RD.to(table_ND.dtype))


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct touched rows (R,) in ascending order and their summed gradients (R, D) in float32."""
    if not grad.is_sparse:
        rows_R = grad.any(1).nonzero().squeeze(1)
        return rows_R, grad.index_select(0, rows_R).float()
    # What grad.coalesce() does, in a fraction of its time on the CPU: sort the rows, then sum each run of equal ones.
    rows_K, order_K = grad._indices()[0].sort(stable=True)
    rows_R, count_R = torch.unique_consecutive(rows_K, return_counts=True)
    return rows_R, F.embedding_bag(order_K, grad._values().float(), count_R.cumsum(0) - count_R, mode="sum")
