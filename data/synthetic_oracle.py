"""What the best possible model of a synthetic world can expect, with its Monte-Carlo error, and which part gives it.

    oracle_ne(world, "valid").ne          # the NE of the true probabilities
    oracle_auc(world, "valid").auc        # their AUC
    part_gains(world)                     # the share of the achievable gain that each part carries
    print(summarise(world).line())        # all of it

Rows are independent draws from a world, so errors are those of independent rows. Legend: n rows · K parts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.synthetic_config import PARTS

if TYPE_CHECKING:
    from data.synthetic import SyntheticWorld

MAX_ROWS_READ = 1 << 16
_LEAST, _MOST = 1e-300, 1 - 1e-16  # where logarithms are finite


@dataclass(frozen=True)
class OracleNE:
    """The normalised entropy of the true probabilities of one task: what the best possible model can expect.

    ne: mean entropy of the p of ``rows`` samples over the entropy of the task's rate · standard_error: of ``ne`` as an
    estimate for the whole world · label_error: standard deviation of the NE that p scores against the labels drawn for
    these rows, around ``ne``.
    """

    task: str
    ne: float
    standard_error: float
    label_error: float
    rows: int


@dataclass(frozen=True)
class OracleAUC:
    """The AUC of the true probabilities of one task; ``standard_error`` and ``label_error`` as for ``OracleNE``."""

    task: str
    auc: float
    standard_error: float
    label_error: float
    rows: int


@dataclass(frozen=True)
class PartGain:
    """The share of the achievable gain of the click, 1 - oracle NE, that is lost where one part is not known.

    ne: NE of the best predictor from the other parts.
    """

    part: str
    ne: float
    share: float
    standard_error: float


@dataclass(frozen=True)
class OracleSummary:
    """NE and AUC of each task, and the gains of the parts, all from the same rows of ``split``."""

    split: str
    nes: tuple[OracleNE, ...]
    aucs: tuple[OracleAUC, ...]
    gains: tuple[PartGain, ...]

    def figures(self) -> dict[str, float]:
        """Name → number, for a log: ``oracle/ne``, ``oracle/ne_error``, …, ``oracle/gain/<part>``; further tasks as
        ``oracle/<task>/ne``."""
        found: dict[str, float] = {}
        for number, (ne, auc) in enumerate(zip(self.nes, self.aucs, strict=True)):
            prefix = "oracle" if number == 0 else f"oracle/{ne.task}"
            found |= {f"{prefix}/ne": ne.ne, f"{prefix}/ne_error": ne.standard_error}
            found |= {f"{prefix}/auc": auc.auc, f"{prefix}/auc_error": auc.standard_error}
        for gain in self.gains:
            found |= {f"oracle/gain/{gain.part}": gain.share, f"oracle/gain_error/{gain.part}": gain.standard_error}
        return found

    def line(self) -> str:
        """All of it in a line."""
        told = []
        for ne, auc in zip(self.nes, self.aucs, strict=True):
            name = f"{ne.task} " if len(self.nes) > 1 else ""
            told.append(f"{name}NE {ne.ne:.4f} ± {ne.standard_error:.4f}")
            told.append(f"{name}AUC {auc.auc:.4f} ± {auc.standard_error:.4f}")
        gains = ", ".join(f"{gain.part} {gain.share:.1%}" for gain in self.gains)
        return f"oracle: {' · '.join(told)}; gain lost without {gains}"


def oracle_ne(world: SyntheticWorld, split: str, task: str = "click", max_rows: int = MAX_ROWS_READ) -> OracleNE:
    """The oracle NE on a split, or on its first ``max_rows`` rows."""
    column = _column(world, task)
    return _ne(world, column, world.oracle(_first_rows(world, split, max_rows))[:, column])


def oracle_auc(world: SyntheticWorld, split: str, task: str = "click", max_rows: int = MAX_ROWS_READ) -> OracleAUC:
    """The oracle AUC on a split, or on its first ``max_rows`` rows."""
    column = _column(world, task)
    return _auc(task, world.oracle(_first_rows(world, split, max_rows))[:, column])


def part_gains(world: SyntheticWorld, split: str = "valid", max_rows: int = MAX_ROWS_READ) -> tuple[PartGain, ...]:
    """The gain of the click that is lost without each part, in the order of ``PARTS``.

    The best predictor that does not know part k is E[p | the other parts]. It is fitted: log-odds quadratic in the
    others, by logistic regression on the true probabilities, which find the others' correlations with k. Shares need
    not add up to 1: what two parts tell alike is lost with neither. A part of strength 0 loses nothing.
    """
    parts = world.parts(_first_rows(world, split, max_rows))
    return _gains(world, parts)


def summarise(world: SyntheticWorld, split: str = "valid", max_rows: int = 1 << 15) -> OracleSummary:
    """Everything above in one pass over the first ``max_rows`` rows of a split."""
    parts = world.parts(_first_rows(world, split, max_rows))
    p = world.probability(parts)
    tasks = [task.name for task in world.schema.tasks]
    return OracleSummary(
        split=split,
        nes=tuple(_ne(world, column, p[:, column]) for column in range(len(tasks))),
        aucs=tuple(_auc(task, p[:, column]) for column, task in enumerate(tasks)),
        gains=_gains(world, parts),
    )


def soft_auc(p: Tensor) -> tuple[float, float, float]:
    """AUC of p (n,) float64 on labels that are drawn by p itself, its standard error, and the labels' part in it.

    A pair (i, j) is (positive, negative) with probability p_i (1 - p_j), so with K = 1 where p_i > p_j, ½ on ties,

        AUC = Σ_{i≠j} p_i (1 - p_j) K(p_i, p_j)  /  Σ_{i≠j} p_i (1 - p_j),

    the limit of the AUC on ever more labels. It is a ratio of two U-statistics; the errors are first-order exact: what
    each row (or each label, given the rows) contributes to it, squared and summed up: the infinitesimal jackknife.
    nan where no pair has both classes.
    """
    a = p.double().sort().values
    b = 1.0 - a
    _, group, count = torch.unique_consecutive(a, return_inverse=True, return_counts=True)
    last = count.cumsum(0).index_select(0, group)
    first = last - count.index_select(0, group)
    below, above = _running(b), _running(a)
    # Of row i: negatives ranked under it, and positives over it; itself is no partner.
    under = below[first] + 0.5 * (below[last] - below[first] - b)
    over = above[-1] - above[last] + 0.5 * (above[last] - above[first] - a)
    negatives, positives = below[-1] - b, above[-1] - a
    pairs = float((a * negatives).sum())
    if pairs <= 0:
        return math.nan, math.nan, math.nan
    auc = float((a * under).sum()) / pairs
    of_row = (a * under + b * over - auc * (a * negatives + b * positives)) / pairs
    of_label = (under - over - auc * (negatives - positives)) / pairs
    return auc, float(of_row.square().sum().sqrt()), float((a * b * of_label.square()).sum().sqrt())


def _running(values: Tensor) -> Tensor:
    """(n + 1,) sums of the first 0, 1, … n values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _first_rows(world: SyntheticWorld, split: str, max_rows: int) -> Tensor:
    if max_rows < 1:
        raise ValueError(f"synthetic world: max_rows must be ≥ 1, got {max_rows}")
    own = world.split(split)
    return torch.arange(own.start, own.start + min(len(own), max_rows))


def _column(world: SyntheticWorld, task: str) -> int:
    names = [t.name for t in world.schema.tasks]
    if task not in names:
        raise ValueError(f"synthetic world: no task {task!r}; there are {', '.join(names)}")
    return names.index(task)


def _entropy(p: Tensor) -> Tensor:
    return _cross_entropy(p, p)


def _cross_entropy(p: Tensor, predicted: Tensor) -> Tensor:
    """(n,) expected log loss of ``predicted`` on labels drawn by ``p``."""
    q = predicted.clamp(_LEAST, _MOST)
    return -p * torch.log(q) - (1 - p) * torch.log1p(-q)


def _base(rate: float) -> float:
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


def _ne(world: SyntheticWorld, column: int, p: Tensor) -> OracleNE:
    task = world.schema.tasks[column]
    p, rows, whole = p.clamp(_LEAST, _MOST), len(p), _base(task.train_rate)
    entropy = _entropy(p)
    log_odds = torch.log(p) - torch.log1p(-p)
    label_variance = (p * (1 - p) * log_odds.square()).mean() / rows
    return OracleNE(
        task=task.name,
        ne=float(entropy.mean()) / whole,
        standard_error=float(entropy.std()) / math.sqrt(rows) / whole if rows > 1 else math.inf,
        label_error=math.sqrt(float(label_variance)) / whole,
        rows=rows,
    )


def _auc(task: str, p: Tensor) -> OracleAUC:
    auc, standard_error, label_error = soft_auc(p)
    return OracleAUC(task=task, auc=auc, standard_error=standard_error, label_error=label_error, rows=len(p))


def _gains(world: SyntheticWorld, parts: Tensor) -> tuple[PartGain, ...]:
    """From the ``parts`` (n, K) of some rows."""
    c, rows, whole = world.config, len(parts), _base(world.config.ctr)
    strengths = parts.new_tensor(list(c.strengths.by_part().values()))
    p = world.probability(parts)[:, 0]
    clean = torch.sigmoid(world.calibration.bias[0] + parts @ strengths)
    entropy = _entropy(p.clamp(_LEAST, _MOST))
    achievable = whole - entropy
    found = []
    for number, part in enumerate(PARTS):
        others = [i for i in range(len(PARTS)) if i != number]
        start = torch.cat([parts.new_tensor([world.calibration.bias[0]]), strengths[others]])
        predicted = _fitted(parts[:, others], clean, start)
        loss = _cross_entropy(p, (1.0 - c.label_noise) * predicted + c.label_noise * c.ctr)
        lost, whole_gain = loss - entropy, float(achievable.mean())
        # A ratio of two means; without anything to gain, nothing is lost.
        share = float(lost.mean()) / whole_gain if whole_gain > 1e-9 else 0.0
        spread = float((lost - share * achievable).std()) if rows > 1 else math.inf
        error = spread / math.sqrt(rows) / whole_gain if whole_gain > 1e-9 else 0.0
        found.append(PartGain(part, float(loss.mean()) / whole, share, error))
    return tuple(found)


def _fitted(x: Tensor, p: Tensor, start: Tensor) -> Tensor:
    """(n,) the logistic regression of ``p`` on ``x`` (n, k), its squares and its products, by Newton's method from the
    weights ``start`` of (1, x)."""
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    columns = [torch.ones_like(p), *x.T, *(x[:, i] * x[:, j] for i, j in pairs)]
    design = torch.stack(columns, dim=1)
    weights = torch.cat([start, start.new_zeros(design.shape[1] - len(start))])
    ridge = 1e-9 * len(p) * torch.eye(design.shape[1], dtype=design.dtype)  # a part that is constant has no weight
    for _ in range(25):
        fitted = torch.sigmoid(design @ weights)
        slope = design.T @ (p - fitted)
        step = torch.linalg.solve(design.T @ (design * (fitted * (1 - fitted))[:, None]) + ridge, slope)
        weights = weights + step
        if float(step.abs().max()) < 1e-8:
            break
    return torch.sigmoid(design @ weights)
