"""The MLP, and the head every model ends in: one MLP per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(inputs: int, hidden: list[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with GELU and dropout between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.GELU(), nn.Dropout(dropout)]  # a ReLU here was seen to die
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def linear_flops(module: nn.Module) -> int:
    """Forward FLOPs of all ``nn.Linear`` inside ``module``, for one row; 1 multiply-add = 2."""
    return 2 * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


class Heads(nn.ModuleList):
    """An MLP per task on the same input: (B, inputs) → logits (B, tasks)."""

    def __init__(self, inputs: int, hidden: list[int] | None, tasks: int, dropout: float = 0.0) -> None:
        super().__init__(mlp(inputs, hidden or [64], 1, dropout) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self], dim=1)

    def flops(self) -> int:
        return linear_flops(self)
