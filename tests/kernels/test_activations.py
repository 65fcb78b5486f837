"""Each activation has one definition: its value is torch's function of that name, its slope the derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import triton_math
from kernels.activations import ACTIVATIONS, DEFINITIONS, FUSED, activate, per_head, triton_activation
from tests.kernels.support import DEVICE

TORCHS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
# Up to where the exponentials of float32 end; no definition is an approximation, so there is no narrower range.
X = torch.cat([torch.linspace(-88, 88, 1001), torch.linspace(-5, 5, 1001)]).double()


def test_all_have_a_torch_function_to_compare_with():
    assert set(TORCHS) == set(ACTIVATIONS) == set(DEFINITIONS) == set(FUSED)


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_and_slope(name, dtype):
    x = X.to(dtype).requires_grad_()
    value, slope = DEFINITIONS[name](x)
    exact = TORCHS[name](X)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(value.double(), exact, **close)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    away = (X.abs() > 1e-9) & ((X.abs() - 3).abs() > 1e-9)  # corners have any slope between the two sides
    torch.testing.assert_close(slope.double()[away], derivative.double()[away], **close)
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", sorted(FUSED))
def test_torchs_own_operators_compute_the_same(name):
    value, gradient = FUSED[name]
    grad = torch.linspace(-2, 2, len(X)).double()
    exact, slope = DEFINITIONS[name](X)
    torch.testing.assert_close(value(X.clone()), exact)
    away = (X.abs() > 1e-9) & ((X.abs() - 3).abs() > 1e-9)
    torch.testing.assert_close(gradient(grad, X)[away], (grad * slope)[away])


@triton.jit
def _erf(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, triton_math.erf(tl.load(X + i)))


@triton.jit
def _activate(X, VALUE, SLOPE, ACT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value, slope = ACT(tl.load(X + i))
    tl.store(VALUE + i, value)
    tl.store(SLOPE + i, slope)


def test_the_kernels_error_function():
    x = torch.cat([torch.linspace(-10, 10, 4095), torch.tensor([0.0])]).to(DEVICE)
    out = torch.empty_like(x)
    _erf[(1,)](x, out, BLOCK=4096)
    error = (out.double() - torch.erf(x.double())).abs()
    assert error.max() < 1.3e-7
    assert out[-1] == 0
    assert (out[x > 4] == 1).all()
    assert (out[x < -4] == -1).all()


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_in_the_kernels(name):
    x = X[X.abs() <= 87].float()
    x = torch.cat([x, x.new_zeros(4096 - len(x))]).to(DEVICE)
    value, slope = torch.empty_like(x), torch.empty_like(x)
    _activate[(1,)](x, value, slope, ACT=triton_activation(name), BLOCK=4096)
    exact_value, exact_slope = DEFINITIONS[name](x.double())
    torch.testing.assert_close(value.double(), exact_value, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), exact_slope.double(), rtol=2e-5, atol=1e-6)


def test_half_precision_is_computed_in_float32():
    x = X.to(torch.bfloat16)
    exact = F.gelu(x.double()).bfloat16()
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), exact, rtol=0.005, atol=1e-6)


def test_each_head_gets_its_own():
    scores = torch.randn(2, 3, 4, 5)
    out = activate(scores, ["gelu", "relu", "gelu"])
    torch.testing.assert_close(out[:, 1], F.relu(scores[:, 1]))
    torch.testing.assert_close(out[:, 2], F.gelu(scores[:, 2]))


def test_names_are_checked():
    assert per_head("silu", 3) == ("silu",) * 3
    with pytest.raises(ValueError, match="unknown 'swish'; known are gelu"):
        per_head("swish", 2)
    with pytest.raises(ValueError, match="2 names given for 3 heads"):
        per_head(["gelu", "relu"], 3)
