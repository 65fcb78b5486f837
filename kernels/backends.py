"""Which implementation of an op runs, and what all ops share around it: autocast, checks, second derivatives.

* ``reference``: a few lines of torch, differentiable twice, in any dtype. Scores lie in memory.
* ``torch``: the same in pieces that stay in the cache, with its own backward: what a CPU gets, and float64 anywhere.
* ``triton``: the kernels, on a GPU; with ``TRITON_INTERPRET=1`` in Triton's interpreter on a CPU, to test them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "torch", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


# Constants, so that a compiled graph may depend on them. Triton reads the variable when it is first imported.
HAS_TRITON = find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def choose_backend(backend: str | None, x: Tensor, op: str) -> str:
    """The backend to use for inputs like ``x``; ``None`` = by device and dtype. ValueError where it cannot run."""
    if backend is None:
        return "triton" if x.device.type == "cuda" and x.dtype in TRITON_DTYPES and HAS_TRITON else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {backend!r}; known: {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        if not HAS_TRITON:
            raise ValueError(f"{op}: backend 'triton' asked for, but triton is not installed: pip install triton")
        if x.dtype not in TRITON_DTYPES:
            raise ValueError(f"{op}: backend 'triton' computes in float16, bfloat16 and float32, got {x.dtype}")
        if x.device.type != "cuda" and not INTERPRETED:
            raise ValueError(
                f"{op}: backend 'triton' needs tensors on a GPU, got {x.device}; "
                "to run the kernels in Triton's interpreter, set TRITON_INTERPRET=1 before the first import"
            )
    return backend


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inside ``torch.autocast`` the tensors in its dtype (float64 and integers stay), else as they are.

    All ops are matrix products at heart, so they take the lower precision; sums inside them stay in float32.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: the body of an op runs inside it too, and would be cast again, sums in float32 included."""
    return torch.autocast(x.device.type, enabled=False)


def no_second_derivative(backward_op: Any, name: str) -> None:
    """Make differentiating ``backward_op`` an error that says what to do, instead of a silent constant."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name}: only the reference is differentiable twice; pass backend='reference'")

    backward_op.register_autograd(refuse)


def check_heads(name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """``x`` must have this shape (``None`` = any), and the dtype and device of ``like``."""
    wrong = x.ndim != len(shape) or any(s is not None and s != n for s, n in zip(shape, x.shape, strict=True))
    if wrong:
        expected = ", ".join("?" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape ({expected}) expected, got {(*x.shape,)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"{name}: {like.dtype} on {like.device} expected, got {x.dtype} on {x.device}")


def check_offsets(name: str, offsets: Tensor, like: Tensor) -> None:
    """``offsets`` must be (B + 1,) int64 on the device of ``like``; :func:`check_layout` looks at the values."""
    if offsets.ndim != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"{name}: a 1-d int64 tensor (B + 1,) expected, got {offsets.dtype} {(*offsets.shape,)}")
    if offsets.device != like.device:
        raise ValueError(f"{name}: on {like.device} expected, got {offsets.device}")


def contiguous_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each with the elements of a head side by side, as every kernel takes them to be."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def triton_target() -> str:
    """The chip that kernels are launched on: "sm_90", "gfx942", …, or "interpreter"."""
    if INTERPRETED:
        return "interpreter"
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; in the interpreter so few that short tests split their work."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
