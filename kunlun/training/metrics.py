"""Metrics of click prediction: log loss, normalised entropy, calibration, AUC and AUC by user.

All are `torchmetrics.Metric` classes. Their states are either float64 sums or the rows themselves, and the ranking
metrics count pairs in integers, so the value does not depend on how rows are split over batches or processes (sums:
up to float64 rounding; rankings: bit for bit).

Legend: B rows of a batch, N rows seen so far, G groups of tied logits, U users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def binary_entropy(rate: float) -> float:
    """Entropy in nats of a coin that shows 1 with probability `rate`: the log loss of always predicting `rate`.

    Raises:
        ValueError: `rate` is not strictly between 0 and 1; a split with one class has no normalised entropy.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(
            f"train_rate is {rate}, but must lie strictly between 0 and 1: it is the share of positive labels in the "
            "training split; check that the split holds both classes"
        )
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


class _DeviceOnlyMetric(Metric):
    """A metric whose states change device with their module, never dtype."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(state: Tensor) -> Tensor:
            # `module.to(torch.bfloat16)`, as a trainer of true half precision does, would round the float64 sums.
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(move, exclude_state)


def _check_rows(logits_B: Tensor, labels_B: Tensor, **columns_B: Tensor | None) -> None:
    for name, column in {"labels": labels_B, **columns_B}.items():
        if logits_B.ndim != 1 or (column is not None and column.shape != logits_B.shape):
            shape = None if column is None else tuple(column.shape)
            raise ValueError(
                f"logits {tuple(logits_B.shape)} and {name} {shape} must both have shape (B,): select the column of "
                "one task first, as in logits[:, task]"
            )


class Slopes(_DeviceOnlyMetric):
    """Least-squares slopes (K, Z) of Z quantities on K others with an intercept, from their float64 moments.

    Where the rows cannot tell (too few, or one quantity follows from others) they are the smallest that fit as well.
    """

    gram: Tensor
    moment: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for name, columns in (("gram", inputs + 1), ("moment", outputs)):
            self.add_state(name, torch.zeros(inputs + 1, columns, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, z: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: `x (B, K)`, `z (B, Z)`, `weight (B,)` ≥ 0 (default 1)."""
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1).double()
        weighted = x if weight is None else x * weight.double()[:, None]
        self.gram = self.gram + weighted.T @ x
        self.moment = self.moment + weighted.T @ z.double()

    def compute(self) -> Tensor:
        return (torch.linalg.pinv(self.gram, hermitian=True) @ self.moment)[1:]


class LogLoss(_DeviceOnlyMetric):
    """Mean binary cross-entropy in nats, Σ w·bce / Σ w, from logits in the overflow-free softplus form.

    Without rows (or with a total weight of 0) the value is nan; a nan logit makes it nan.
    """

    loss_sum: Tensor
    weight_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "weight_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: `logits (B,)`, `labels (B,)` in [0, 1], `weight (B,)` ≥ 0 (default 1)."""
        _check_rows(logits, labels, weight=weight)
        loss_B = F.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")
        weight_B = torch.ones_like(loss_B) if weight is None else weight.double()
        # Not in place: a state that was reset in inference mode may only be replaced outside it.
        self.loss_sum = self.loss_sum + (weight_B * loss_B).sum()
        self.weight_sum = self.weight_sum + weight_B.sum()

    def compute(self) -> Tensor:
        """Mean loss, a float64 scalar."""
        return self.loss_sum / self.weight_sum


class NormalizedEntropy(LogLoss):
    """Log loss relative to always predicting the training rate: `NE = mean BCE / H(train_rate)`.

    The rate is that of the *training* split, so that the value is comparable between evaluation sets and a model that
    knows only the rate scores 1 where the rates agree. Raises ValueError unless 0 < train_rate < 1.
    """

    def __init__(self, train_rate: float) -> None:
        super().__init__()
        self.entropy = binary_entropy(train_rate)

    def compute(self) -> Tensor:
        """Normalised entropy, a float64 scalar."""
        return super().compute() / self.entropy


class Calibration(_DeviceOnlyMetric):
    """Predicted over observed positives, Σ w·σ(logit) / Σ w·label: 1 is calibrated, above 1 over-predicts.

    Without a positive label the ratio is undefined: the value is nan, never infinite.
    """

    predicted: Tensor
    observed: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("predicted", "observed"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: `logits (B,)`, `labels (B,)` in [0, 1], `weight (B,)` ≥ 0 (default 1)."""
        _check_rows(logits, labels, weight=weight)
        weight_B: Tensor | float = 1.0 if weight is None else weight.double()
        self.predicted = self.predicted + (weight_B * logits.double().sigmoid()).sum()
        self.observed = self.observed + (weight_B * labels.double()).sum()

    def compute(self) -> Tensor:
        """Ratio of sums, a float64 scalar."""
        return torch.where(self.observed > 0, self.predicted / self.observed, torch.nan)


def _runs(new_N: Tensor) -> tuple[Tensor, Tensor]:
    """First and one-past-last index of each run of equal rows, given where a run begins."""
    start = new_N.nonzero().squeeze(1)
    return start, torch.cat([start[1:], start.new_tensor([len(new_N)])])


def _count_pairs(logits_N: Tensor, labels_N: Tensor, users_N: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mann-Whitney counts per user: twice the pairs (positive, negative) ranked right, positives, negatives.

    A tied pair counts half, which is the rule of mid-ranks; twice the count is therefore an integer, and int64 holds
    it up to 4 billion rows. All rows are one user where `users_N` is None. Returns three int64 tensors (U,).
    """
    order_N = logits_N.argsort()
    new_user_N = torch.zeros_like(labels_N)
    if users_N is not None:
        order_N = order_N[users_N[order_N].argsort(stable=True)]
        users_N = users_N[order_N]
        new_user_N[1:] = users_N[1:] != users_N[:-1]
    logits_N, labels_N = logits_N[order_N], labels_N[order_N]
    new_tie_N = new_user_N.clone()
    new_tie_N[1:] |= logits_N[1:] != logits_N[:-1]
    new_user_N[:1] = new_tie_N[:1] = True

    # positives_before[i] = positives among the first i sorted rows; negatives are the rest of those i rows.
    positives_before = F.pad(labels_N.cumsum(0), (1, 0))
    start_U, end_U = _runs(new_user_N)
    start_G, end_G = _runs(new_tie_N)
    positives_G = positives_before[end_G] - positives_before[start_G]
    negatives_G = end_G - start_G - positives_G
    user_G = new_user_N[start_G].cumsum(0) - 1
    negatives_below_G = (start_G - positives_before[start_G]) - (start_U - positives_before[start_U])[user_G]
    twice_right_G = positives_G * (2 * negatives_below_G + negatives_G)
    twice_right_U = torch.zeros_like(start_U).index_add_(0, user_G, twice_right_G)
    positives_U = positives_before[end_U] - positives_before[start_U]
    return twice_right_U, positives_U, end_U - start_U - positives_U


def _weighted_auc(logits_N: Tensor, labels_N: Tensor, users_N: Tensor | None) -> Tensor:
    """Mean AUC of the users that have both classes, weighted by their numbers of rows; nan if there is none."""
    if len(logits_N) == 0 or logits_N.isnan().any():
        return torch.tensor(torch.nan, dtype=torch.float64, device=logits_N.device)
    twice_right_U, positives_U, negatives_U = _count_pairs(logits_N, labels_N, users_N)
    both_U = (positives_U > 0) & (negatives_U > 0)
    positives, negatives = positives_U[both_U], negatives_U[both_U]
    auc = twice_right_U[both_U].double() / (2 * positives * negatives)
    rows = (positives + negatives).double()
    return (auc * rows).sum() / rows.sum()


class AUC(_DeviceOnlyMetric):
    """Area under the ROC curve: the share of (positive, negative) pairs ranked right, tied pairs counted half.

    Exact (all rows are kept: 4 bytes of logit and 1 of label each). nan with one class only, without rows, or with a
    nan logit. Unweighted: sample weights have no agreed meaning for pairs.
    """

    logits: list[Tensor]
    labels: list[Tensor]
    columns: ClassVar[dict[str, torch.dtype]] = {"logits": torch.float32, "labels": torch.bool}

    def __init__(self) -> None:
        super().__init__()
        for name in self.columns:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        for name, dtype in self.columns.items():
            # A process without rows must still gather a tensor of the right dtype, and compute() one to sort.
            getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))

    def _append(self, **rows_B: Tensor) -> None:
        for name, dtype in self.columns.items():
            # Copied: a view would keep the whole batch in memory.
            getattr(self, name).append(rows_B[name].detach().to(dtype, copy=True))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add rows: `logits (B,)`, kept as float32, and `labels (B,)`, positive above 0.5."""
        _check_rows(logits, labels)
        self._append(logits=logits, labels=labels > 0.5)

    def compute(self) -> Any:
        """AUC, a float64 scalar."""
        return _weighted_auc(dim_zero_cat(self.logits), dim_zero_cat(self.labels), None)


class RankingMetrics(AUC):
    """AUC over all rows and AUC by user (GAUC) from one copy of the rows: `{"auc", "gauc"}`.

    `GAUC = Σ_u n_u·AUC_u / Σ_u n_u` over the users with both classes, n_u = rows (impressions) of user u. nan if no
    user has both. 13 bytes per row.
    """

    users: list[Tensor]
    columns: ClassVar[dict[str, torch.dtype]] = {**AUC.columns, "users": torch.int64}

    def update(self, logits: Tensor, labels: Tensor, users: Tensor) -> None:  # type: ignore[override]
        """Add rows: `logits (B,)`, `labels (B,)`, `users (B,)` integer; a user's rows need not be together."""
        _check_rows(logits, labels, users=users)
        self._append(logits=logits, labels=labels > 0.5, users=users)

    def compute(self) -> Any:
        """Both values, float64 scalars."""
        logits_N, labels_N, users_N = (dim_zero_cat(getattr(self, name)) for name in self.columns)
        return {"auc": _weighted_auc(logits_N, labels_N, None), "gauc": _weighted_auc(logits_N, labels_N, users_N)}


class GAUC(RankingMetrics):
    """AUC by user, weighted by impressions, alone; see `RankingMetrics`."""

    def compute(self) -> Any:
        """GAUC, a float64 scalar."""
        return _weighted_auc(*(dim_zero_cat(getattr(self, name)) for name in self.columns))


class CTRMetrics(nn.Module):
    """All metrics of one task: `ne`, `log_loss`, `calibration`, `auc` and, with users, `gauc`.

    One instance per task and split; every state is kept once.

    Args:
        train_rate: share of positive labels in the training split, strictly between 0 and 1.
        users: whether rows carry a user to group by; `update` then requires `user`.
    """

    def __init__(self, train_rate: float, users: bool) -> None:
        super().__init__()
        self.entropy = binary_entropy(train_rate)
        self.log_loss = LogLoss()
        self.calibration = Calibration()
        self.ranking = RankingMetrics() if users else AUC()

    def update(self, logits: Tensor, labels: Tensor, user: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Add rows: `logits`, `labels`, and where given `user`, `weight`, all (B,); rankings ignore the weight."""
        self.log_loss.update(logits, labels, weight)
        self.calibration.update(logits, labels, weight)
        if isinstance(self.ranking, RankingMetrics):
            if user is None:
                raise ValueError("these metrics were built with users=True: pass `user` (B,), or build without users")
            self.ranking.update(logits, labels, user)
        else:
            self.ranking.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """Values over all rows of all processes since the last reset, float64 scalars."""
        log_loss, ranking = self.log_loss.compute(), self.ranking.compute()
        return {
            "ne": log_loss / self.entropy,
            "log_loss": log_loss,
            "calibration": self.calibration.compute(),
            **(ranking if isinstance(ranking, dict) else {"auc": ranking}),
        }

    def reset(self) -> None:
        """Forget all rows."""
        for metric in (self.log_loss, self.calibration, self.ranking):
            metric.reset()
