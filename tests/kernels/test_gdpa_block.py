"""The fused block: every backend against the block put together from torch's own norms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kernels import gdpa, gdpa_block
from tests.kernels.support import DEVICE, DTYPES, LENGTHS, assert_as_good_as_torch, layout, randn, with_gradients

WEIGHTS = ("norm_weight", "norm_bias", "out_weight")


def block(offsets: Tensor, longest: int, backend: str | None, **options):
    """As a function of its six tensors."""

    def call(s: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(WEIGHTS, weights, strict=True))
        return gdpa_block(s, k, v, offsets, longest, **named, **{"tau": 4.0, **options}, backend=backend)

    return call


def inputs(lengths: list[int], n: int, heads: int, width: int, scale: float = 1.0) -> list[Tensor]:
    wide = heads * width
    s = randn(sum(lengths), wide, scale=scale)
    keys = [randn(len(lengths), n, heads, width, seed=i) for i in (1, 2)]
    return [s, *keys, 1 + 0.3 * randn(wide), 0.3 * randn(wide, seed=1), 1 + 0.3 * randn(wide, seed=2)]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_is_the_block_of_the_model(backend):
    """docs/model.md: q̂ = LN(S); g = Act(q̂Kᵀ/τ)V + q̂; S ← S + RMSNorm(g)."""
    offsets, (s, k, v, *weights) = layout([4, 0, 5]), inputs([4, 0, 5], 3, 2, 6)
    norm, out_norm = nn.LayerNorm(12).to(s), nn.RMSNorm(12, eps=1e-6).to(s)
    norm.weight.data, norm.bias.data, out_norm.weight.data = weights
    q = norm(s)
    g = gdpa(q.unflatten(1, (2, 6)), k, v, offsets, 5, tau=4.0).flatten(1) + q
    torch.testing.assert_close(block(offsets, 5, backend)(s, k, v, *weights), s + out_norm(g))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    lengths=LENGTHS,
    n=st.sampled_from([1, 16, 20, 50]),
    heads=st.sampled_from([1, 2, 3]),
    width=st.sampled_from([4, 16, 24]),
    position=st.sampled_from(["pre", "post"]),
    name=st.sampled_from(["gelu", "sigmoid", "relu2"]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_kernels_are_as_good_as_torch(dtype, lengths, n, heads, width, position, name, scale):
    offsets, options = layout(lengths), {"activation": name, "tau_position": position}
    op = lambda backend: block(offsets, max(lengths), backend, **options)  # noqa: E731
    assert_as_good_as_torch(op("triton"), op("reference"), inputs(lengths, n, heads, width, scale), dtype)


def test_tokens_of_higher_precision_keep_it():
    """As in a mixed-precision run: s in float32, k and v in half precision."""
    lengths = [4, 0, 30]
    offsets, exact = layout(lengths), inputs(lengths, 20, 2, 16)
    half = torch.float16 if DEVICE == "cpu" else torch.bfloat16
    exact[1:3] = (x.to(half).double() for x in exact[1:3])
    mixed = [x.float() for x in exact]
    mixed[1:3] = (x.to(half) for x in mixed[1:3])
    grad = randn(34, 32)
    found = with_gradients(block(offsets, 30, "triton"), mixed, grad)
    for ours, true, x in zip(
        found, with_gradients(block(offsets, 30, "reference"), exact, grad), [mixed[0], *mixed], strict=True
    ):
        assert ours.dtype == x.dtype
        assert (ours.double() - true).norm() <= 5e-3 * true.norm()
    # The sum s + … itself is not rounded to half precision.
    assert (found[0].double() - block(offsets, 30, "reference")(*exact)).abs().max() < 5e-3


def test_is_deterministic():
    lengths = [40, 3, 17]
    tensors = [x.float() for x in inputs(lengths, 20, 2, 16)]
    op = block(layout(lengths), 40, "triton")
    once, twice = (with_gradients(op, tensors, randn(60, 32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_is_a_well_behaved_operator():
    lengths = [4, 0, 5]
    tensors, offsets = [x.float().requires_grad_() for x in inputs(lengths, 5, 2, 16)], layout(lengths)
    torch.library.opcheck(
        torch.ops.kunlun.gdpa_block, (*tensors, offsets, 5, "gelu,silu", 0.5, 1.0, 1e-5, 1e-6)
    )  # fmt: skip
    plain = [x.detach() for x in tensors]
    out, g, mean, rstd = torch.ops.kunlun.gdpa_block(*plain, offsets, 5, "gelu,silu", 0.5, 1.0, 1e-5, 1e-6)
    arguments = (torch.ones_like(out), *plain, offsets, g, mean, rstd, 5, "gelu,silu", 0.5, 1.0, 1e-6)
    torch.library.opcheck(torch.ops.kunlun.gdpa_block_backward, arguments)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_into_one_graph(backend):
    lengths = [4, 0, 5]
    tensors = [x.float().requires_grad_() for x in inputs(lengths, 5, 2, 16)]
    op = block(layout(lengths), 5, backend)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        with_gradients(op, tensors, randn(9, 32)), with_gradients(compiled, tensors, randn(9, 32)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_flops_are_those_of_gdpa(backend):
    lengths = [4, 0, 5]
    tensors = [x.float().requires_grad_() for x in inputs(lengths, 5, 2, 16)]
    with FlopCounterMode(display=False) as counter:
        out = block(layout(lengths), 5, backend)(*tensors)
        assert counter.get_total_flops() == 4 * 9 * 5 * 32
        out.sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 9 * 5 * 32


S, KV, OFFSETS, W = torch.zeros(5, 8), torch.zeros(2, 3, 2, 4), torch.tensor([0, 2, 5]), torch.ones(8)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((S[0], KV, KV, W, W, W), {}, r"s: shape \(N, H · D\) expected"),
        ((S, KV[..., :2], KV, W, W, W), {}, r"k: \(B, n, H, D\) expected with H · D = 8 and B = 2, got \(2, 3, 2, 2\)"),
        ((S, KV[:1], KV[:1], W, W, W), {}, "B = 2, got"),
        ((S, KV, KV.double(), W, W, W), {}, "v: torch.float32"),
        ((S, KV, KV, W[:3], W, W), {}, r"norm_weight: \(8,\) on cpu expected"),
        ((S, KV, KV, W, W, W[:3]), {}, r"out_weight: \(8,\) on cpu expected"),
        ((S, KV, KV, W, W, W), {"tau": -1.0}, "tau: must be > 0"),
        ((S, KV, KV, W, W, W), {"tau_position": "in"}, "tau_position: 'pre' or 'post'"),
        ((S, KV, KV, W, W, W), {"activation": "gelo"}, "activation: unknown 'gelo'"),
    ],
)
def test_bad_arguments_are_named(tensors, options, message):
    with pytest.raises(ValueError, match=message):
        block(OFFSETS, 3, None, **options)(*tensors)
