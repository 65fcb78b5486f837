"""The activations GDPA can use: one definition each, for the reference, the torch backend and the Triton kernels.

A definition gives the value and the slope of its function in operations that torch and Triton's language share;
``m`` stands for one of the two (for Triton: :mod:`kernels.triton_math`). The references differentiate the value by
autograd, which checks the slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

m: Any = torch


# Constants are written out, since a kernel cannot see a module's variables.
def gelu(x):
    cdf = 0.5 + 0.5 * m.erf(x * 0.7071067811865475)
    return x * cdf, cdf + x * (0.3989422804014327 * m.exp(-0.5 * x * x))


def gelu_tanh(x):
    # ½(1 + tanh u) = σ(2u), u = √(2/π)(x + 0.044715 x³)
    gate = m.sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * x * x))
    return x * gate, gate + x * gate * (1 - gate) * (1.5957691216057308 + 0.21406444881780076 * x * x)


def silu(x):
    gate = m.sigmoid(x)
    return x * gate, gate + x * gate * (1 - gate)


def relu(x):
    return m.where(x > 0, x, 0.0), m.where(x > 0, 1.0, 0.0)


def relu2(x):
    positive = m.where(x > 0, x, 0.0)
    return positive * positive, 2 * positive


def leaky_relu(x):
    return m.where(x > 0, x, 0.01 * x), m.where(x > 0, 0 * x + 1, 0.01)  # the constant 1 in the precision of x


def hardswish(x):
    inside = m.where(x < 3, m.where(x > -3, x * (x * 0.16666666666666666 + 0.5), 0.0), x)
    return inside, m.where(x < 3, m.where(x > -3, x * 0.3333333333333333 + 0.5, 0.0), 1.0)


def sigmoid(x):
    gate = m.sigmoid(x)
    return gate, gate * (1 - gate)


def identity(x):
    return x, 0 * x + 1


DEFINITIONS = {f.__name__: f for f in (gelu, gelu_tanh, silu, relu, relu2, leaky_relu, hardswish, sigmoid, identity)}


def _value(name: str) -> Callable[[Tensor], Tensor]:
    def value(x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):  # as torch's own operators: computed in float32
            return DEFINITIONS[name](x.float())[0].to(x.dtype)
        return DEFINITIONS[name](x)[0]

    return value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {name: _value(name) for name in DEFINITIONS}

_aten = torch.ops.aten
# Torch's own operators for the same functions, one pass over memory each: what the torch backend computes with.
# name: value(x), and gradient(grad, x) = grad · slope.
FUSED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gelu": (F.gelu, _aten.gelu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(_aten.gelu_backward, approximate="tanh")),
    "silu": (F.silu, _aten.silu_backward),
    "relu": (F.relu, lambda grad, x: _aten.threshold_backward(grad, x, 0)),
    "relu2": (lambda x: F.relu(x).square_(), lambda grad, x: F.relu(x).mul_(2).mul_(grad)),
    "leaky_relu": (F.leaky_relu, lambda grad, x: _aten.leaky_relu_backward(grad, x, 0.01, False)),
    "hardswish": (F.hardswish, _aten.hardswish_backward),
    "sigmoid": (torch.sigmoid, lambda grad, x: _aten.sigmoid_backward(grad, torch.sigmoid(x))),
    "identity": (lambda x: x, lambda grad, x: grad),
}


@cache
def triton_activation(name: str) -> Any:
    """The definition as a Triton function: scores (float32) → (value, slope)."""
    import triton
    import triton.language as tl

    from kernels import triton_math

    # The interpreter wants to see the language among the names that a function knows.
    names = {"m": triton_math, "tl": tl, "__name__": __name__}
    definition = FunctionType(DEFINITIONS[name].__code__, names, name)
    definition.__module__, definition.__qualname__ = __name__, name
    return triton.jit(definition)


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
