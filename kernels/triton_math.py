"""What the activations compute with in Triton: its language, but for an error function of half the instructions."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def __getattr__(name: str) -> Any:
    # Looked up when it is used, not imported: the interpreter puts functions of its own into the language.
    return getattr(tl, name)


@triton.jit
def erf(x):
    """``erf`` in float32, within 1.1e-7: ``1 − 2^P(|x|)``, P a polynomial without constant term fitted to log₂ erfc.

    The library's has two polynomials and selects each coefficient: twice the instructions, many of them moves, and more
    than the tensor cores leave time for (`python -m benchmarks.activation_cost`). From 4 on, erfc is below float32's
    resolution of 1. *Source*: fitted here, by weighted least squares on [0, 4]; tests compare it with float64.
    """
    z = tl.minimum(tl.abs(x), 4.0)
    p = -4.53436769e-05 * z + 0.000445398997
    p = p * z - 0.0014891309
    p = p * z - 0.000775075634
    p = p * z + 0.028254021
    p = p * z - 0.148481742
    p = p * z - 0.918416381
    p = p * z - 1.62790859
    rest = tl.exp2(p * z)
    return tl.where(x < 0, rest - 1.0, 1.0 - rest)
