"""Every op on the torch path against the same thing enumerated in plain loops, in float64, over random layouts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from kernels import Rotation, gdpa, rote, seed_attention, segment_matmul, window_attention
from kernels.activations import ACTIVATIONS
from kernels.packed import layout_of
from kernels.window_attention import pairs
from tests.support import gdpa_by_hand, seeds_by_hand, spans, window_by_hand

LENGTHS = st.lists(st.one_of(st.integers(0, 9), st.sampled_from([17, 33, 70])), min_size=1, max_size=6)


def layout(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def randn(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


@settings(max_examples=40, deadline=None)
@given(
    LENGTHS,
    st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=2, max_size=2),
    st.sampled_from([1, 5]),
    st.sampled_from(["pre", "post"]),
    st.sampled_from([0.1, 1.0, 10.0]),
)
def test_gdpa_equals_enumeration(lengths, names, n, position, scale):
    offsets = layout(lengths)
    rows = int(offsets[-1])
    q, k, v = randn(rows, 2, 4) * scale, randn(len(lengths), n, 2, 4), randn(len(lengths), n, 2, 4, seed=1)
    out = gdpa(q, k, v, offsets, max(lengths), tau=7.0, activation=names, tau_position=position)
    torch.testing.assert_close(out, gdpa_by_hand(q, k, v, offsets, names, 7.0, position))


def test_gdpa_is_a_bias_free_ffn_per_sample_and_head():
    """Per head it is W₂ act(W₁ q) with W₁ = K/τ and W₂ = Vᵀ (model.md: the identity behind the name)."""
    offsets, tau = layout([3, 2]), 11.0
    q, k, v = randn(5, 2, 4), randn(2, 6, 2, 4), randn(2, 6, 2, 4, seed=1)
    out = gdpa(q, k, v, offsets, 3, tau=tau)
    for b, (start, end) in enumerate(spans(offsets)):
        for h in range(2):
            ffn = torch.nn.Sequential(
                torch.nn.Linear(4, 6, bias=False), torch.nn.GELU(), torch.nn.Linear(6, 4, bias=False)
            ).double()
            ffn[0].weight.data, ffn[2].weight.data = k[b, :, h] / tau, v[b, :, h].T.contiguous()
            torch.testing.assert_close(out[start:end, h], ffn(q[start:end, h]))


@pytest.mark.parametrize(("name", "ratio"), [("relu", 1), ("leaky_relu", 1), ("identity", 1), ("relu2", 13)])
def test_tau_before_and_after_agree_up_to_the_degree_of_the_activation(name, ratio):
    q, k, v, offsets = randn(5, 2, 4), randn(2, 3, 2, 4), randn(2, 3, 2, 4, seed=1), layout([2, 3])
    pre = gdpa(q, k, v, offsets, 3, tau=13.0, activation=name, tau_position="pre")
    post = gdpa(q, k, v, offsets, 3, tau=13.0, activation=name, tau_position="post")
    torch.testing.assert_close(pre * ratio, post)


@pytest.mark.parametrize("window", [None, (0, 0), (2, 1)])
def test_gdpa_with_packed_and_with_shared_keys(window):
    """Packed keys of other lengths, grouped heads and shared sets, with an activation that is not 0 at 0."""
    offsets, kv_offsets, index = layout([4, 0, 3, 9]), layout([2, 6, 0]), torch.tensor([1, 0, 2, 1])
    q, k, v = randn(16, 4, 6), randn(8, 2, 6), randn(8, 2, 6, seed=1)
    out = gdpa(q, k, v, offsets, 9, tau=3.0, activation="sigmoid", kv_offsets=kv_offsets, kv_index=index, window=window)
    for b, (start, end) in enumerate(spans(offsets)):
        low, high = spans(kv_offsets)[index[b]]
        for t in range(start, end):
            for h in range(4):
                expected = torch.zeros(6, dtype=torch.float64)
                for j in range(low, high):
                    distance = (j - low) - (t - start)
                    if window is None or -window[0] <= distance <= window[1]:
                        expected += torch.sigmoid(q[t, h] @ k[j, h // 2] / 3.0) * v[j, h // 2]
                torch.testing.assert_close(out[t, h], expected)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(0, 40), st.integers(0, 40))
def test_window_attention_equals_enumeration(lengths, left, right):
    offsets = layout(lengths)
    q, k, v = (randn(int(offsets[-1]), 2, 4, seed=s) for s in range(3))
    out = window_attention(q, k, v, offsets, max(lengths), left=left, right=right)
    torch.testing.assert_close(out, window_by_hand(q, k, v, offsets, left, right, 0.5))


def test_a_window_as_wide_as_the_sequence_is_full_attention():
    offsets = layout([40, 7, 0, 100])
    q, k, v = (randn(147, 1, 4, seed=s) for s in range(3))
    full = window_attention(q, k, v, offsets, 100, left=None, right=None)
    torch.testing.assert_close(window_attention(q, k, v, offsets, 100, left=100, right=99), full)
    start = 47
    scores = q[start:, 0] @ k[start:, 0].T / 2
    torch.testing.assert_close(full[start:, 0], scores.softmax(-1) @ v[start:, 0])


def test_window_attention_needs_memory_linear_in_length():
    """The largest tensor autograd keeps grows with T, not T²."""

    def largest(length: int) -> int:
        sizes = []
        q = randn(length, 1, 4, grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            window_attention(q, q * 2, q * 3, layout([length]), length, left=8, right=8)
        return max(sizes)

    assert largest(2048) <= 2.2 * largest(1024)
    assert largest(2048) < 2048 * 64


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 70))
def test_pairs_are_counted_exactly(length, left, right):
    expected = sum(-left <= j - i <= right for i in range(length) for j in range(length))
    assert pairs(length, left, right) == expected
    if left < length:
        assert pairs(length, left, left) == length * (2 * left + 1) - left * (left + 1)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_seed_attention_equals_enumeration(lengths, seeds):
    offsets = layout(lengths)
    s, k, v = randn(seeds, 2, 4), randn(int(offsets[-1]), 2, 4), randn(int(offsets[-1]), 2, 4, seed=1)
    out = seed_attention(s, k, v, offsets, max(lengths))
    torch.testing.assert_close(out, seeds_by_hand(s, k, v, offsets, 0.5))


def test_segment_matmul_equals_a_loop():
    offsets = layout([3, 0, 20, 1])
    x, w = randn(24, 3), randn(4, 3, 5)
    expected = torch.cat([x[a:b] @ w[i] for i, (a, b) in enumerate(spans(offsets))])
    torch.testing.assert_close(segment_matmul(x, w, offsets), expected)


def rotation(rows: int, width: int) -> Rotation:
    generator = torch.Generator().manual_seed(rows)
    position, log_time = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    theta, phi = torch.rand(2, width // 2, generator=generator, dtype=torch.float64)
    return Rotation(position * 50, log_time * 10, theta, phi)


def test_rote_turns_pairs_by_position_and_log_time():
    x, r = randn(5, 3, 8), rotation(5, 8)
    out = rote(x, r)
    for t in range(5):
        for i in range(4):
            angle = float(r.position[t] * r.theta[i] + r.log_time[t] * r.phi[i])
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
            pair = torch.stack([x[t, :, i], x[t, :, i + 4]])
            torch.testing.assert_close(torch.stack([out[t, :, i], out[t, :, i + 4]]), turn @ pair)


def test_rote_scores_depend_on_differences_only():
    q, k, r = randn(1, 1, 8), randn(1, 1, 8, seed=1), rotation(2, 8)

    def score(shift: float) -> torch.Tensor:
        turned = [
            rote(x, Rotation(r.position[i : i + 1] + shift, r.log_time[i : i + 1] + shift, r.theta, r.phi))
            for i, x in enumerate((q, k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(0.0), score(17.0))


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0, 0]])
def test_gradients_and_their_gradients(lengths):
    offsets, n = layout(lengths), len(lengths)
    rows = int(offsets[-1])
    q, k, v = (randn(rows, 2, 4, seed=s, grad=True) for s in range(3))
    dense = [randn(n, 3, 2, 4, seed=s, grad=True) for s in (3, 4)]
    seeds, turn, longest = randn(2, 2, 4, grad=True), rotation(rows, 4), max(lengths)
    ops = [
        (lambda *a: gdpa(*a, offsets, longest, tau=2.0, activation=["gelu", "silu"]), (q, *dense)),
        (lambda *a: window_attention(*a, offsets, longest, left=1, right=1, rotation=turn), (q, k, v)),
        (lambda *a: seed_attention(*a, offsets, longest, rotation=turn), (seeds, k, v)),
        (lambda x, w: segment_matmul(x, w, offsets), (randn(rows, 3, grad=True), randn(n, 3, 2, grad=True))),
    ]
    for op, inputs in ops:
        assert gradcheck(op, inputs)
        assert gradgradcheck(op, inputs)


def test_a_layout_is_made_anew_when_its_offsets_change():
    offsets = layout([2, 3])
    assert layout_of(offsets) is layout_of(offsets)
    old = layout_of(offsets)
    offsets[1] = 4
    assert layout_of(offsets) is not old


Q, KV, OFFSETS = torch.zeros(5, 2, 4), torch.zeros(2, 3, 2, 4), torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gdpa(Q[0], KV, KV, OFFSETS, 3, tau=1.0), r"q: shape \(N, H, D\)"),
        (lambda: gdpa(Q, KV[..., :2], KV, OFFSETS, 3, tau=1.0), "k: shape"),
        (lambda: gdpa(Q, KV, KV.double(), OFFSETS, 3, tau=1.0), "v: torch.float32"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=0.0), "tau: must be > 0"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=1.0, activation="gelo"), "unknown 'gelo'; known are gelu"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=1.0, activation=["gelu"]), "1 names given for 2 heads"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=1.0, tau_position="mid"), "'pre' or 'post'"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=1.0, window=(-1, 2)), "window"),
        (lambda: gdpa(Q, KV[:1], KV[:1], OFFSETS, 3, tau=1.0), "1 sets for 2 samples"),
        (lambda: gdpa(Q, KV, KV, OFFSETS, 3, tau=1.0, backend="cuda"), "unknown backend 'cuda'"),
        (lambda: window_attention(Q, Q, Q, OFFSETS + 1, 3, left=1, right=1), "offsets: must run from 0 to 5"),
        (lambda: window_attention(Q, Q, Q, torch.tensor([0, 6, 5]), 3, left=1, right=1), "must never decrease"),
        (lambda: window_attention(Q, Q, Q, OFFSETS.float(), 3, left=1, right=1), "1-d int64"),
        (lambda: window_attention(Q, Q, Q, OFFSETS, 3, left=-1, right=1), "left: ≥ 0"),
        (lambda: seed_attention(Q[:1, :1], Q, Q, OFFSETS, 3), "k: shape"),
        (lambda: rote(Q[..., :3], rotation(5, 4)), "even D"),
        (lambda: segment_matmul(Q[:, 0], torch.zeros(2, 3, 3), OFFSETS), "segment_matmul"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
