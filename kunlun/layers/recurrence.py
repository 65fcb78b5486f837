"""Recurrent units on packed sequences: a GRU, and DIEN's AUGRU, whose update gate attention scales.

Each step takes all sequences that are still running, the longest first, so that they are always the first rows: no
padding, as many steps as the longest sequence has tokens.
Legend: B sequences · N packed tokens · d input width · h state width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kernels.packed import nothing
from kunlun.features import Jagged


@dataclass(frozen=True)
class Steps:
    """Packed tokens step by step. order (N,): their numbers · sizes: how many sequences run at each step · rows (B,):
    the sequences, longest first."""

    order: Tensor
    sizes: list[int]
    rows: Tensor


def steps_of(sequence: Jagged) -> Steps:
    """The first token of every sequence that has one, then the second …"""
    segments = sequence.segments()
    position = torch.arange(segments.numel(), device=segments.device) - sequence.offsets[segments]
    rows = torch.argsort(sequence.lengths(), descending=True, stable=True)
    rank = torch.argsort(rows)
    order = torch.argsort(position * len(sequence) + rank[segments])
    return Steps(order, torch.bincount(position).tolist(), rows)


class GRU(nn.Module):
    """Every state of a GRU that starts each sequence at zero: Jagged of (N, d) → (N, h)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.unit = nn.GRU(inputs, width)
        self.weights = 3 * width * (inputs + width)

    def forward(self, sequence: Jagged) -> Jagged:
        steps = steps_of(sequence)
        if not steps.sizes:
            empty = nothing((0, self.unit.hidden_size), [sequence.values, *self.unit.parameters()])
            return sequence.with_values(empty)
        # In the weights' own precision: rounding adds up over the steps.
        with torch.autocast(sequence.values.device.type, enabled=False):
            values = sequence.values[steps.order].to(next(self.unit.parameters()).dtype)
            states, _ = self.unit(PackedSequence(values, torch.tensor(steps.sizes)))
        return sequence.with_values(torch.empty_like(states.data).index_copy(0, steps.order, states.data))

    def flops(self, length: int) -> int:
        return 2 * length * self.weights


class AUGRU(nn.Module):
    """GRU with attentional update gate: ``u ← a_t u``, then ``h ← (1 − u) ⊙ h + u ⊙ h̃`` (DIEN, arXiv 1809.03672,
    "Interest Evolving Layer").

    An event that the candidate does not ask for leaves the state as it is.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 3 * width)
        self.recurrent = nn.Linear(width, 3 * width)
        self.width = width

    def forward(self, sequence: Jagged, attention_N: Tensor) -> Tensor:
        """Jagged of (N, d) over B sequences, a_t (N,) → the last state of each, (B, h); zeros where it is empty."""
        steps = steps_of(sequence)
        if not steps.sizes:
            return nothing((len(sequence), self.width), [sequence.values, attention_N, *self.parameters()])
        with torch.autocast(sequence.values.device.type, enabled=False):
            values = sequence.values[steps.order].to(self.inputs.weight.dtype)
            gates_N3h, a_N1 = self.inputs(values), attention_N[steps.order, None].to(values.dtype)
            state, ended = values.new_zeros(len(sequence), self.width), []
            for gates, a in zip(gates_N3h.split(steps.sizes), a_N1.split(steps.sizes), strict=True):
                ended.append(state[len(a) :])
                state = self._step(state[: len(a)], gates, a)
        last = torch.cat([state, *reversed(ended)])
        return torch.empty_like(last).index_copy(0, steps.rows, last)

    def _step(self, state: Tensor, gates: Tensor, a: Tensor) -> Tensor:
        reset, update, new = gates.chunk(3, dim=1)
        reset_h, update_h, new_h = self.recurrent(state).chunk(3, dim=1)
        u = a * torch.sigmoid(update + update_h)
        candidate = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        return (1 - u) * state + u * candidate

    def flops(self, length: int) -> int:
        return 2 * length * (self.inputs.weight.numel() + self.recurrent.weight.numel())
