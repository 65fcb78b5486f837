"""How an op is compared with its reference in float64, and what the tests of all ops draw from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter gets bfloat16 matrix products wrong (errors of 1e11): bfloat16 is tested on a GPU only.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]

# Lengths of sequences: empty, single, odd, over a block, very unequal.
LENGTHS = st.lists(st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 33, 70])), min_size=1, max_size=5)


def layout(lengths: Sequence[int]) -> Tensor:
    """Offsets (B + 1,) of sequences of these lengths."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0)


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """float64, the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(DEVICE)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch allocates without filling is NaN: an element that nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def with_gradients(op: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """``op(*inputs)`` and the gradient of each input for ``grad``, which is cast to the output's dtype."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = op(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_as_good_as_torch(
    op: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """``op`` in ``dtype`` errs from the float64 reference at most 2 (gradients: 5) times as much as the reference
    computed in ``dtype`` does, and in float32 by less than 1e-5 of the norm beyond torch. ``inputs`` are float64.

    What the problem itself makes of a rounding of its inputs is allowed on top: sigmoid(-100) has no more digits to
    give, and a single row of it is easily lucky in one computation.
    """
    # Rounded before anything: all three see the same numbers.
    inputs = [x.to(dtype).double() for x in inputs]
    grad = randn(*reference(*inputs).shape, seed=99).to(dtype).double()
    exact = with_gradients(reference, inputs, grad)
    eps = torch.finfo(dtype).eps
    nudged = with_gradients(reference, [x * (1 + eps * randn(*x.shape, seed=7).sign()) for x in inputs], grad)
    same = with_gradients(reference, [x.to(dtype) for x in inputs], grad)
    with poisoned():
        found = with_gradients(op, [x.to(dtype) for x in inputs], grad)
    # A gradient may be exactly 0 as a difference of equals (that of the score of a single key): the difference is as
    # large as other gradients are, and what it is multiplied with as the inputs.
    largest = max(float(x.norm()) for x in exact) * max([1.0, *(float(x.abs().mean()) for x in inputs if x.numel())])
    for i, (true, near, torchs, ours) in enumerate(zip(exact, nudged, same, found, strict=True)):
        name = "output" if i == 0 else f"gradient of input {i - 1}"
        assert ours.dtype == dtype
        assert ours.shape == true.shape
        assert not ours.isnan().any(), f"{name}: NaN, an element that nobody wrote"
        norm = float(true.norm())
        error = float((ours.double() - true).norm())
        # The floor: where torch happens to be exact, two roundings of the result and of the inputs are still allowed.
        floor = 2 * eps * largest + 2 * float((near - true).norm())
        torchs_error = float((torchs.double() - true).norm())
        allowed = (2 if i == 0 else 5) * torchs_error + floor
        assert error <= allowed, f"{name}: error {error:.3g} of {norm:.3g}, torch in {dtype} allows {allowed:.3g}"
        if dtype == torch.float32:
            assert error <= 1e-5 * norm + torchs_error + floor + 1e-30, f"{name}: error {error:.3g} of {norm:.3g}"
