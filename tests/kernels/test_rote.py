"""ROTE: the rotation itself pair by pair, each backend against the reference, and what torch asks of an op."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from kernels import Rotation, rote
from kernels.rote.reference import rote_reference
from tests.kernels.support import DEVICE, DTYPES, assert_as_good_as_torch, randn, with_gradients

OP = torch.ops.kunlun.rote


def rotation(rows: int, width: int, dtype: torch.dtype = torch.float64) -> Rotation:
    generator = torch.Generator().manual_seed(rows)
    position, log_time = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    theta, phi = torch.rand(2, width // 2, generator=generator, dtype=torch.float64)
    return Rotation(*(t.to(DEVICE, dtype) for t in (position * 50, log_time * 10, theta, phi)))


def on_backend(rows: int, backend: str):
    """``rote`` of x, theta and phi, at positions that float32 has exactly."""
    position, log_time = randn(rows, seed=5).float(), randn(rows, seed=6).float()

    def op(x, theta, phi):
        dtype = torch.promote_types(theta.dtype, torch.float32)
        return rote(x, Rotation(position.to(dtype), log_time.to(dtype), theta, phi), backend=backend)

    return op


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_pairs_turn_by_position_and_log_time(backend):
    x, r = randn(5, 3, 8), rotation(5, 8)
    out = rote(x, r, backend=backend)
    for t in range(5):
        for i in range(4):
            angle = float(r.position[t] * r.theta[i] + r.log_time[t] * r.phi[i])
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).to(x)
            pair = torch.stack([x[t, :, i], x[t, :, i + 4]])
            torch.testing.assert_close(torch.stack([out[t, :, i], out[t, :, i + 4]]), turn @ pair)


def test_without_times_only_the_position_turns():
    r = rotation(5, 8)
    x = randn(5, 2, 8)
    plain = rote(x, Rotation(r.position, None, r.theta, r.phi))
    torch.testing.assert_close(plain, rote(x, Rotation(r.position, torch.zeros_like(r.position), r.theta, r.phi)))
    assert not torch.allclose(plain, rote(x, r))


def test_scores_depend_on_differences_only():
    q, k, r = randn(1, 1, 8), randn(1, 1, 8, seed=1), rotation(2, 8)

    def score(shift: float) -> torch.Tensor:
        turned = [
            rote(x, Rotation(r.position[i : i + 1] + shift, r.log_time[i : i + 1] + shift, r.theta, r.phi))
            for i, x in enumerate((q, k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(0.0), score(17.0))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([0, 1, 5, 33, 70]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([2, 6, 16, 32]),
    st.sampled_from(DTYPES),
)
def test_triton_is_as_good_as_torch(rows, heads, width, dtype):
    inputs = [randn(rows, heads, width), randn(width // 2, seed=1), randn(width // 2, seed=2)]
    assert_as_good_as_torch(on_backend(rows, "triton"), on_backend(rows, "reference"), inputs, dtype)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([0, 1, 5, 70]),
    st.sampled_from([1, 3]),
    st.sampled_from([2, 6, 32]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_torch_is_as_good_as_the_reference(rows, heads, width, dtype):
    inputs = [randn(rows, heads, width), randn(width // 2, seed=1), randn(width // 2, seed=2)]
    assert_as_good_as_torch(on_backend(rows, "torch"), on_backend(rows, "reference"), inputs, dtype)
    grad = randn(rows, heads, width, seed=9)
    found = with_gradients(on_backend(rows, "torch"), inputs, grad)
    torch.testing.assert_close(found, with_gradients(on_backend(rows, "reference"), inputs, grad), rtol=1e-12, atol=0)


def test_torch_in_several_pieces(monkeypatch):
    from kernels.rote import tiled

    monkeypatch.setattr(tiled, "PIECE", 3 * 16)
    x, r = randn(7, 2, 8), rotation(7, 8)
    torch.testing.assert_close(rote(x, r, backend="torch"), rote_reference(x, *r.cos_sin))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strided_views_are_read_where_they_lie(backend):
    both = randn(9, 2, 3, 8).float()
    r = rotation(9, 8, torch.float32)
    for view in (both[:, 0], both[:, 1], both[:, 1].transpose(1, 2).contiguous().transpose(1, 2)):
        found = rote(view, r, backend=backend)
        assert found.is_contiguous()
        torch.testing.assert_close(found, rote_reference(view, *r.cos_sin))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("rows", [0, 3])
def test_gradients_and_their_gradients(rows, backend):
    inputs = [x.requires_grad_() for x in (randn(rows, 2, 4), randn(2, seed=1), randn(2, seed=2))]
    position, log_time = randn(rows, seed=5), randn(rows, seed=6)

    def op(x, theta, phi):
        return rote(x, Rotation(position, log_time, theta, phi), backend=backend)

    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)


def test_x_is_kept_for_the_backward_only_where_the_angles_learn():
    x = randn(5, 2, 8).requires_grad_()
    for learned in (False, True):
        r = rotation(5, 8)
        r = Rotation(r.position, r.log_time, r.theta.requires_grad_(learned), r.phi)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.shape) or t, lambda t: t):
            rote(x, r, backend="torch")
        assert (x.shape in saved) == learned


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_opcheck(backend):
    for dtype in (torch.float32, torch.float16):
        x = randn(5, 2, 8).to(dtype).requires_grad_()
        cos, sin = (t.detach().clone().requires_grad_() for t in rotation(5, 8, torch.float32).cos_sin)
        torch.library.opcheck(OP, (x, cos, sin, backend))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("learned", [False, True])
def test_compiles_in_one_graph_with_a_rotation_made_inside(backend, learned):
    r = rotation(5, 8, torch.float32)
    theta = r.theta.requires_grad_(learned)
    x = randn(5, 2, 8).float().requires_grad_()
    cosines = []

    def op(x, position, log_time, theta, phi):
        turn = Rotation(position, log_time, theta, phi)
        return rote(x, turn, backend=backend) + rote(2 * x.tanh(), turn, backend=backend)

    def counting(graph, _):
        cosines.append(sum(node.target is torch.cos for node in graph.graph.nodes))
        return graph

    arguments = (x, r.position, r.log_time, theta, r.phi)
    torch.compile(op, fullgraph=True, backend=counting)(*arguments)
    assert cosines == [1]
    torch._dynamo.reset()
    wanted = [x, theta] if learned else [x]
    eager, compiled = op(*arguments), torch.compile(op, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, eager)
    grads = [torch.autograd.grad(out.square().sum(), wanted) for out in (compiled, eager)]
    torch.testing.assert_close(*grads)


def test_a_rotation_from_outside_enters_a_compiled_function():
    r, x = rotation(5, 8, torch.float32), randn(5, 2, 8).float()
    compiled = torch.compile(lambda x, r: rote(x, r), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, r), rote(x, r))


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_autocast_leaves_x_and_the_angles_alone(backend):
    r, x = rotation(5, 8, torch.float32), randn(5, 2, 8).float()
    with torch.autocast(DEVICE, torch.bfloat16):
        inside = Rotation(r.position, r.log_time, r.theta, r.phi)
        found = rote(x, inside, backend=backend)
        half = rote(x.half(), inside, backend=backend)
    assert inside.cos_sin[0].dtype == found.dtype == torch.float32
    torch.testing.assert_close(found, rote(x, r))
    # Rounded once, at the end.
    exact = rote_reference(x.half().double(), *r.cos_sin)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), exact, rtol=2**-11 + 1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_two_runs_agree_to_the_bit(backend):
    inputs = [randn(33, 2, 16).float(), randn(8, seed=1).float(), randn(8, seed=2).float()]
    runs = [with_gradients(on_backend(33, backend), inputs, randn(33, 2, 16, seed=3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


X = torch.zeros(5, 2, 4, device=DEVICE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rote(X[..., :3], rotation(5, 4)), "even D"),
        (lambda: rote(X[0], rotation(5, 4)), r"x: shape \(N, H, D\)"),
        (lambda: rote(X, rotation(4, 4)), r"rotation.position: shape \(5,\)"),
        (lambda: rote(X, rotation(5, 6)), r"rotation.theta: shape \(2,\)"),
        (lambda: rote(X, rotation(5, 4), backend="cuda"), "rote: unknown backend 'cuda'"),
        (lambda: Rotation(X[:, 0], None, X[0, 0], X[0, 0]), r"rotation.position: shape \(N,\)"),
        (lambda: Rotation(X[:, 0, 0], X[:3, 0, 0], X[0, 0], X[0, 0]), "rotation.log_time"),
        (lambda: Rotation(X[:, 0, 0], None, X[0], X[0]), r"rotation.theta: shape \(D/2,\)"),
        (lambda: Rotation(X[:, 0, 0], None, X[0, 0], X[0, 0, :1]), r"rotation.phi: shape \(4,\)"),
    ],
    ids=range(9),
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
