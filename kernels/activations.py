"""The activations GDPA can use, one definition each, and how a different one per head is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def per_head(activation: str | Sequence[str], heads: int) -> tuple[str, ...]:
    """One activation name per head; ValueError names an unknown one, or a list of the wrong length."""
    names = (activation,) * heads if isinstance(activation, str) else tuple(activation)
    if len(names) != heads:
        raise ValueError(f"activation: {len(names)} names given for {heads} heads; give one name or one per head")
    for name in names:
        if name not in ACTIVATIONS:
            raise ValueError(f"activation: unknown {name!r}; known are {', '.join(ACTIVATIONS)}")
    return names


def activate(scores: Tensor, names: Sequence[str]) -> Tensor:
    """Apply ``names[h]`` to head h of ``scores`` (B, H, …)."""
    if len(set(names)) == 1:
        return ACTIVATIONS[names[0]](scores)
    return torch.stack([ACTIVATIONS[name](scores[:, h]) for h, name in enumerate(names)], dim=1)
