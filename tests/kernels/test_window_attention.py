"""Window attention: each backend against plain enumeration and against the reference, and what an op promises."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from kernels import Rotation, rote, window_attention
from kernels.window_attention import pairs
from tests.kernels.support import DEVICE, DTYPES, LENGTHS, assert_as_good_as_torch, layout, randn, with_gradients
from tests.kernels.test_rote import rotation
from tests.support import spans, window_by_hand

BACKENDS = ["torch", "triton"]
SIDES = st.one_of(st.none(), st.integers(0, 40), st.just(0))


def op(offsets: Tensor, backend: str | None, **options):
    """As a function of q, k and v."""
    longest = int(offsets.diff().max())
    return lambda *x: window_attention(*x, offsets, longest, **{"left": 3, "right": 5, **options}, backend=backend)


def qkv(rows: int, heads: int = 2, width: int = 4, scale: float = 1.0) -> list[Tensor]:
    return [randn(rows, heads, width, seed=0, scale=scale), *(randn(rows, heads, width, seed=s) for s in (1, 2))]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SIDES, SIDES, st.booleans())
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_enumeration(backend, lengths, left, right, turn):
    offsets, (q, k, v) = layout(lengths), qkv(sum(lengths))
    r = rotation(sum(lengths), 4) if turn else None
    out = op(offsets, backend, left=left, right=right, rotation=r)(q, k, v)
    if r is not None:
        q, k = rote(q, r, backend="reference"), rote(k, r, backend="reference")
    sides = (10**6 if side is None else side for side in (left, right))
    torch.testing.assert_close(out, window_by_hand(q, k, v, offsets, *sides, 0.5))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_window_as_wide_as_the_sequence_is_full_attention(backend):
    offsets, (q, k, v) = layout([40, 7, 0, 100]), (x.float() for x in qkv(147))
    full = op(offsets, backend, left=None, right=None)(q, k, v)
    torch.testing.assert_close(op(offsets, backend, left=100, right=99)(q, k, v), full)
    for start, end in spans(offsets):
        part = (x[start:end].transpose(0, 1) for x in (q, k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(*part).transpose(0, 1)
        torch.testing.assert_close(full[start:end], expected)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_what_lies_out_of_the_window_changes_nothing(backend):
    offsets, (q, k, v) = layout([50, 9]), (x.float() for x in qkv(59))
    out = op(offsets, backend, left=4, right=2)(q, k, v)
    k2, v2 = k.clone(), v.clone()
    k2[20], v2[20] = 9.0, -9.0
    changed = (op(offsets, backend, left=4, right=2)(q, k2, v2) != out).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(18, 25))


@pytest.mark.parametrize("lengths", [[3, 0, 5], [0, 0]])
@pytest.mark.parametrize("turn", [False, True])
def test_gradients_and_their_gradients(lengths, turn):
    offsets, rows = layout(lengths), sum(lengths)
    inputs = [x.requires_grad_() for x in qkv(rows)]
    options = {"left": 1, "right": 2, "rotation": rotation(rows, 4) if turn else None}
    assert gradcheck(op(offsets, "reference", **options), inputs)
    assert gradgradcheck(op(offsets, "reference", **options), inputs)
    assert gradcheck(op(offsets, "torch", **options), inputs)
    first = torch.autograd.grad(op(offsets, "torch", **options)(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="window_attention: only the reference is differentiable twice; pass back"):
        first[0].sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=LENGTHS,
    left=SIDES,
    right=SIDES,
    heads=st.sampled_from([1, 2, 3]),
    width=st.sampled_from([4, 16, 24, 64]),  # the widest is turned by a kernel of its own in the interpreter
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    turn=st.booleans(),
)
def test_backends_are_as_good_as_torch(backend, dtype, lengths, left, right, heads, width, scale, turn):
    offsets, options = layout(lengths), {"left": left, "right": right}
    options["rotation"] = rotation(sum(lengths), width) if turn else None
    inputs = qkv(sum(lengths), heads, width, scale)
    assert_as_good_as_torch(op(offsets, backend, **options), op(offsets, "reference", **options), inputs, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_sequence_among_short_ones(backend):
    """Several blocks of queries and keys in every kernel and in the torch path, and windows of unequal sides."""
    offsets = layout([1, 300, 0, 2])
    for left, right in [(40, 7), (0, 60), (60, 0)]:
        options = {"left": left, "right": right}
        ours, reference = (op(offsets, name, **options) for name in (backend, "reference"))
        assert_as_good_as_torch(ours, reference, qkv(303, 1, 16), torch.float32)


def test_the_interpreter_meets_both_ways_of_turning():
    chosen = import_module("kernels.window_attention.triton").configuration("interpreter", 64, torch.float32)
    assert 24 <= chosen.widest_turned < 64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_alone_equals_the_sample_in_a_batch(backend):
    offsets, inputs = layout([9, 0, 40, 17]), [x.float() for x in qkv(66)]
    grad = randn(66, 2, 4).float()
    together = with_gradients(op(offsets, backend), inputs, grad)
    for start, end in spans(offsets):
        alone = with_gradients(op(layout([end - start]), backend), [x[start:end] for x in inputs], grad[start:end])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[start:end])


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_angles_that_learn_get_gradients(backend):
    rows, (q, k, v) = 12, (x.float() for x in qkv(12))
    position, log_time = randn(rows, seed=5).float(), randn(rows, seed=6).float()
    angles = [x.float() for x in (randn(2, seed=7), randn(2, seed=8))]

    def turned(name: str):
        return lambda *a: op(layout([5, 7]), name, rotation=Rotation(position, log_time, *a))(q, k, v)

    grad = randn(rows, 2, 4).float()
    ours, true = (with_gradients(turned(name), angles, grad) for name in (backend, "reference"))
    assert all(x.abs().sum() > 0 for x in true)
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_their_gradients(backend):
    """q, k and v as slices of one projection, heads as the first dimension of the gradient."""
    offsets, qkv_N3HD = layout([5, 40]), randn(45, 3, 2, 16).float()
    grad = randn(2, 45, 16).float().transpose(0, 1)
    exact = with_gradients(op(offsets, "reference"), qkv_N3HD.unbind(1), grad)
    strided = [x.requires_grad_() for x in qkv_N3HD.unbind(1)]
    assert not any(x.is_contiguous() for x in (*strided, grad))
    out = op(offsets, backend)(*strided)
    for ours, theirs in zip([out, *torch.autograd.grad(out, strided, grad)], exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_whose_elements_are_apart(backend):
    inputs = [randn(45, 16, 2, seed=s).float().transpose(1, 2) for s in range(3)]
    assert not any(x.stride(-1) == 1 for x in inputs)
    grad, offsets = randn(45, 16, 2).float().transpose(1, 2), layout([5, 40])
    ours, exact = (with_gradients_of_views(op(offsets, name), inputs, grad) for name in (backend, "reference"))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def with_gradients_of_views(call, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """As :func:`with_gradients`, without clones, which would be contiguous."""
    views = [x.detach().requires_grad_() for x in inputs]
    out = call(*views)
    return [out.detach(), *torch.autograd.grad(out, views, grad)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_deterministic(backend):
    offsets, inputs = layout([70, 3, 17]), [x.float() for x in qkv(90, 2, 16)]
    ours = op(offsets, backend, rotation=rotation(90, 16))
    once, twice = (with_gradients(ours, inputs, randn(90, 2, 16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_is_linear_in_the_length(backend):
    q, k, v = (x.float().requires_grad_() for x in qkv(600, 1, 4))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        op(layout([600]), backend, left=8, right=8)(q, k, v)
    assert max(kept) == q.numel()


def op_inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    return [x.to(dtype).requires_grad_() for x in qkv(9, 2, 16)], layout([4, 0, 5])


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_a_well_behaved_operator(backend, turn):
    inputs, offsets = op_inputs()
    angles = rotation(9, 16, torch.float32).cos_sin if turn else (None, None)
    options = (5, 2, 3, 0.25, backend)
    torch.library.opcheck(torch.ops.kunlun.window_attention, (*inputs, offsets, *angles, *options))
    plain = [x.detach() for x in inputs]
    out, lse = torch.ops.kunlun.window_attention(*plain, offsets, *angles, *options)
    arguments = (torch.ones_like(out), *plain, out, lse, offsets, *angles, *options)
    torch.library.opcheck(torch.ops.kunlun.window_attention_backward, arguments)


@pytest.mark.parametrize("backend", [None, "triton"])
def test_compiles_into_one_graph(backend):
    inputs, offsets = op_inputs()
    eager = op(offsets, backend, rotation=rotation(9, 16, torch.float32))
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    grad = randn(9, 2, 16)
    for a, b in zip(with_gradients(eager, inputs, grad), with_gradients(compiled, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_its_dtype():
    inputs, offsets = op_inputs()
    with torch.autocast(DEVICE, torch.bfloat16):
        out = op(offsets, None)(inputs[0], inputs[1].bfloat16(), inputs[2])
        exact = op(offsets, None)(*(x.double() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    assert torch.autograd.grad(out.sum(), inputs)[0].dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 70))
def test_pairs_are_counted_exactly(length, left, right):
    expected = sum(-left <= j - i <= right for i in range(length) for j in range(length))
    assert pairs(length, left, right) == expected
    if left < length:
        assert pairs(length, left, left) == length * (2 * left + 1) - left * (left + 1)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, SIDES, SIDES)
def test_flops_are_those_of_the_enumerated_pairs(lengths, left, right):
    low, high = (10**6 if side is None else side for side in (left, right))
    count = sum(-low <= j - i <= high for length in lengths for i in range(length) for j in range(length))
    inputs = [x.requires_grad_() for x in qkv(sum(lengths), 3)]
    with FlopCounterMode(display=False) as counter:
        out = op(layout(lengths), "torch", left=left, right=right)(*inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 4 * 3 * 4 * count
    assert counter.get_total_flops() - forward == 10 * 3 * 4 * count


X, OFFSETS = torch.zeros(5, 2, 4), torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], X, X, OFFSETS, 3), {}, r"q: shape \(N, H, D\) with H and D ≥ 1 expected, got \(2, 4\)"),
        ((X[..., :0],) * 3 + (OFFSETS, 3), {}, r"q: .* H and D ≥ 1 expected, got \(5, 2, 0\)"),
        ((X, X[..., :2], X, OFFSETS, 3), {}, r"k: shape \(5, 2, 4\) expected, got \(5, 2, 2\)"),
        ((X, X, X.double(), OFFSETS, 3), {}, "v: torch.float32 on cpu expected, got torch.float64"),
        ((X, X.to("meta"), X, OFFSETS, 3), {}, "k: torch.float32 on cpu expected, got torch.float32 on meta"),
        ((X, X, X, OFFSETS, 3), {"left": -1}, "left: ≥ 0 or None expected, got -1"),
        ((X, X, X, OFFSETS, 3), {"right": -3}, "right: ≥ 0 or None expected, got -3"),
        ((X, X, X, OFFSETS, 3), {"scale": 0.0}, "scale: > 0 expected, got 0.0"),
        ((X, X, X, OFFSETS, 2), {}, "offsets: sequence 1 has 3 tokens, over max_length 2"),
        ((X, X, X, OFFSETS + 1, 3), {}, "offsets: must run from 0 to 5, got 1 … 6"),
        ((X, X, X, torch.tensor([0, 2, 4]), 3), {}, "offsets: must run from 0 to 5, got 0 … 4"),
        ((X, X, X, torch.tensor([0, 6, 5]), 6), {}, "offsets: must never decrease"),
        ((X, X, X, OFFSETS.float(), 3), {}, "offsets: a 1-d int64 tensor"),
        ((X, X, X, OFFSETS, 3), {"backend": "cuda"}, "unknown backend 'cuda'; known: 'reference', 'torch', 'triton'"),
        ((X, X, X, OFFSETS, 3), {"rotation": rotation(4, 4)}, r"rotation.position: shape \(5,\) expected, got \(4,\)"),
        ((X, X, X, OFFSETS, 3), {"rotation": rotation(5, 6)}, r"rotation.theta: shape \(2,\) expected, got \(3,\)"),
        ((X[..., :3], X[..., :3], X[..., :3], OFFSETS, 3), {"rotation": rotation(5, 4)}, "even D"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_bad_arguments_are_named(backend, arguments, options, message):
    call = partial(window_attention, *(x.to(DEVICE) if x is X else x for x in arguments[:3]))
    with pytest.raises(ValueError, match=message):
        call(*arguments[3:], **{"left": 1, "right": 1, "backend": backend, **options})
