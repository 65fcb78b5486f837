"""GDPA: the reference against plain loops, every backend against the reference, and what an op promises."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from kernels import gdpa
from kernels.activations import ACTIVATIONS
from tests.kernels.support import DEVICE, DTYPES, LENGTHS, assert_as_good_as_torch, layout, randn, with_gradients
from tests.support import gdpa_by_hand, spans

NAMES = sorted(ACTIVATIONS)
BACKENDS = ["torch", "triton"]


def enumerated(q, k, v, offsets, names, tau, kv_offsets, index, window) -> Tensor:
    """One pair at a time; keys packed and shared, heads grouped."""
    out = torch.zeros_like(q)
    sets = spans(kv_offsets)
    group = q.shape[1] // k.shape[1]
    for b, (start, end) in enumerate(spans(offsets)):
        low, high = sets[index[b]]
        for t in range(start, end):
            for h, name in enumerate(names):
                for j in range(low, high):
                    distance = (j - low) - (t - start)
                    if window is None or -window[0] <= distance <= window[1]:
                        weight = ACTIVATIONS[name]((q[t, h] * k[j, h // group]).sum() / tau)
                        out[t, h] += weight * v[j, h // group]
    return out


@settings(max_examples=40, deadline=None)
@given(
    LENGTHS,
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=2),
    st.sampled_from([1, 5]),
    st.sampled_from(["pre", "post"]),
    st.sampled_from([0.1, 1.0, 10.0]),
)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_enumeration(backend, lengths, names, n, position, scale):
    offsets = layout(lengths)
    q, k, v = randn(int(offsets[-1]), 2, 4, scale=scale), randn(len(lengths), n, 2, 4), randn(len(lengths), n, 2, 4)
    out = gdpa(q, k, v, offsets, max(lengths), tau=7.0, activation=names, tau_position=position, backend=backend)
    torch.testing.assert_close(out, gdpa_by_hand(q, k, v, offsets, names, 7.0, position))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("window", [None, (0, 0), (2, 1)])
def test_packed_and_shared_keys_equal_enumeration(window, backend):
    """Packed keys of other lengths, grouped heads and shared sets, with an activation that is not 0 at 0."""
    offsets, kv_offsets, index = layout([4, 0, 3, 9]), layout([2, 6, 0]), torch.tensor([1, 0, 2, 1], device=DEVICE)
    q, k, v = randn(16, 4, 6), randn(8, 2, 6), randn(8, 2, 6, seed=1)
    names = ["sigmoid", "gelu", "relu2", "sigmoid"]
    options = {"kv_offsets": kv_offsets, "kv_max_length": 6, "kv_index": index, "window": window}
    out = gdpa(q, k, v, offsets, 9, tau=3.0, activation=names, backend=backend, **options)
    torch.testing.assert_close(out, enumerated(q, k, v, offsets, names, 3.0, kv_offsets, index.tolist(), window))


def test_is_a_bias_free_ffn_per_sample_and_head():
    """Per head it is W₂ act(W₁ q) with W₁ = K/τ and W₂ = Vᵀ (docs/model.md: the identity behind the name)."""
    offsets, tau = layout([3, 2]), 11.0
    q, k, v = randn(5, 2, 4), randn(2, 6, 2, 4), randn(2, 6, 2, 4, seed=1)
    out = gdpa(q, k, v, offsets, 3, tau=tau)
    for b, (start, end) in enumerate(spans(offsets)):
        for h in range(2):
            ffn = torch.nn.Sequential(
                torch.nn.Linear(4, 6, bias=False), torch.nn.GELU(), torch.nn.Linear(6, 4, bias=False)
            ).to(q)
            ffn[0].weight.data, ffn[2].weight.data = k[b, :, h] / tau, v[b, :, h].T.contiguous()
            torch.testing.assert_close(out[start:end, h], ffn(q[start:end, h]))


@pytest.mark.parametrize(("name", "ratio"), [("relu", 1), ("leaky_relu", 1), ("identity", 1), ("relu2", 13)])
def test_tau_before_and_after_agree_up_to_the_degree_of_the_activation(name, ratio):
    q, k, v, offsets = randn(5, 2, 4), randn(2, 3, 2, 4), randn(2, 3, 2, 4, seed=1), layout([2, 3])
    pre = gdpa(q, k, v, offsets, 3, tau=13.0, activation=name, tau_position="pre")
    post = gdpa(q, k, v, offsets, 3, tau=13.0, activation=name, tau_position="post")
    torch.testing.assert_close(pre * ratio, post)


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0, 0]])
def test_gradients_and_their_gradients(lengths):
    offsets, rows, n = layout(lengths), sum(lengths), len(lengths)
    inputs = [x.requires_grad_() for x in (randn(rows, 2, 4), randn(n, 3, 2, 4), randn(n, 3, 2, 4, seed=1))]
    op = partial(gdpa, tau=2.0, activation=["gelu", "silu"])
    assert gradcheck(lambda *x: op(*x, offsets, max(lengths), backend="reference"), inputs)
    assert gradgradcheck(lambda *x: op(*x, offsets, max(lengths), backend="reference"), inputs)
    assert gradcheck(lambda *x: op(*x, offsets, max(lengths), backend="torch"), inputs)
    first = torch.autograd.grad(op(*inputs, offsets, max(lengths)).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="gdpa: only the reference is differentiable twice; pass backend='ref"):
        first[0].sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(
    lengths=LENGTHS,
    n=st.sampled_from([1, 9, 16, 20, 32, 50]),  # one block, two programs, many blocks; not multiples of a block
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    width=st.sampled_from([4, 16, 24]),
    position=st.sampled_from(["pre", "post"]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    names=st.one_of(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), min_size=4, max_size=4)),
    window=st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 20))),
)
def test_backends_are_as_good_as_torch(backend, dtype, lengths, n, heads, width, position, scale, names, window):
    offsets, (h, h_kv) = layout(lengths), heads
    inputs = [
        randn(sum(lengths), h, width, scale=scale),
        *(randn(len(lengths), n, h_kv, width, seed=s) for s in (1, 2)),
    ]
    options = {
        "tau": 4.0,
        "activation": names if isinstance(names, str) else names[:h],
        "tau_position": position,
        "window": window,
    }
    op = lambda name: lambda *x: gdpa(*x, offsets, max(lengths), backend=name, **options)  # noqa: E731
    assert_as_good_as_torch(op(backend), op("reference"), inputs, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(
    lengths=LENGTHS,
    kv_lengths=st.lists(st.sampled_from([0, 1, 7, 16, 33]), min_size=1, max_size=4),
    data=st.data(),
    name=st.sampled_from(["sigmoid", "gelu"]),
    window=st.sampled_from([None, (3, 5)]),
    packed=st.booleans(),
)
def test_packed_and_shared_keys_in_every_backend(backend, lengths, kv_lengths, data, name, window, packed):
    index = data.draw(
        st.lists(st.integers(0, len(kv_lengths) - 1), min_size=len(lengths), max_size=len(lengths)), "index"
    )
    options = {"tau": 4.0, "activation": name, "window": window, "kv_index": torch.tensor(index, device=DEVICE)}
    if packed:
        options |= {"kv_offsets": layout(kv_lengths), "kv_max_length": max(kv_lengths)}
        shape = (sum(kv_lengths), 2, 16)
    else:
        shape = (len(kv_lengths), 20, 2, 16)
    offsets = layout(lengths)
    op = lambda name: lambda *x: gdpa(*x, offsets, max(lengths), backend=name, **options)  # noqa: E731
    inputs = [randn(sum(lengths), 4, 16), randn(*shape, seed=1), randn(*shape, seed=2)]
    assert_as_good_as_torch(op(backend), op("reference"), inputs, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_in_the_kernels(name):
    offsets = layout([19, 3])
    op = lambda backend: lambda *x: gdpa(*x, offsets, 19, tau=1.0, activation=name, backend=backend)  # noqa: E731
    inputs = [randn(22, 2, 16, scale=2.0), randn(2, 20, 2, 16), randn(2, 20, 2, 16, seed=1)]
    assert_as_good_as_torch(op("triton"), op("reference"), inputs, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_their_gradients(backend):
    """q as one of three projections, k and v transposed: nothing is taken for contiguous."""
    offsets = layout([5, 20])
    qkv = randn(25, 3, 2, 16).float()
    k, v = (randn(2, 2, 16, 20, seed=s).float().permute(0, 3, 1, 2) for s in (1, 2))
    grad = randn(25, 16, 2).float().transpose(1, 2)
    exact = with_gradients(lambda *x: gdpa(*x, offsets, 20, tau=1.0, backend="reference"), [qkv[:, 1], k, v], grad)
    strided = [x.requires_grad_() for x in (qkv[:, 1], k, v)]
    assert not any(x.is_contiguous() for x in (*strided, grad))
    out = gdpa(*strided, offsets, 20, tau=1.0, backend=backend)
    for ours, theirs in zip([out, *torch.autograd.grad(out, strided, grad)], exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_deterministic(backend):
    offsets, index = layout([40, 3, 17]), torch.tensor([0, 0, 0], device=DEVICE)
    inputs = [randn(60, 4, 16).float(), *(randn(1, 40, 1, 16, seed=s).float() for s in (1, 2))]
    op = lambda *x: gdpa(*x, offsets, 40, tau=1.0, kv_index=index, backend=backend)  # noqa: E731
    once, twice = (with_gradients(op, inputs, randn(60, 4, 16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_scores_are_never_kept():
    """What autograd keeps is the inputs: nothing grows with queries times keys."""
    q, k, v = randn(600, 1, 4), randn(1, 200, 1, 4), randn(1, 200, 1, 4, seed=1)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        gdpa(*(x.requires_grad_() for x in (q, k, v)), layout([600]), 600, tau=1.0)
    assert max(kept) == q.numel()


def op_inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    inputs = [randn(9, 2, 16), randn(3, 5, 2, 16), randn(3, 5, 2, 16, seed=1)]
    return [x.to(dtype).requires_grad_() for x in inputs], layout([4, 0, 5])


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_a_well_behaved_operator(backend):
    inputs, offsets = op_inputs()
    options = (None, None, 5, 5, "gelu,silu", 0.5, 1.0, [2, 3], backend)
    torch.library.opcheck(torch.ops.kunlun.gdpa, (*inputs, offsets, *options))
    grad, plain = torch.ones(9, 2, 16, device=DEVICE), [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.kunlun.gdpa_backward, (grad, *plain, offsets, *options))


def test_compiles_into_one_graph():
    inputs, offsets = op_inputs()

    def loss(*x: Tensor) -> Tensor:
        return gdpa(*x, offsets, 5, tau=2.0, activation=["gelu", "relu2"], window=(2, 3)).square().sum()

    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_its_dtype():
    inputs, offsets = op_inputs()
    with torch.autocast(DEVICE, torch.bfloat16):
        out = gdpa(inputs[0], inputs[1].bfloat16(), inputs[2], offsets, 5, tau=2.0)
        exact = gdpa(*(x.double() for x in inputs), offsets, 5, tau=2.0)
    assert out.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    assert torch.autograd.grad(out.sum(), inputs)[0].dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from([None, (0, 0), (3, 1), (0, 50)]))
def test_flops_are_those_of_the_enumerated_pairs(lengths, window):
    offsets, kv_offsets, index = layout(lengths), layout([4, 0, 11]), [b % 3 for b in range(len(lengths))]
    k = randn(15, 1, 4).requires_grad_()
    sizes = [4, 0, 11]
    pairs = sum(
        window is None or -window[0] <= j - i <= window[1]
        for b, length in enumerate(lengths)
        for i in range(length)
        for j in range(sizes[index[b]])
    )
    options = {"kv_offsets": kv_offsets, "kv_max_length": 11, "kv_index": torch.tensor(index, device=DEVICE)}
    with FlopCounterMode(display=False) as counter:
        out = gdpa(randn(sum(lengths), 3, 4), k, k, offsets, max(lengths), tau=1.0, window=window, **options)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 4 * 3 * 4 * pairs
    assert counter.get_total_flops() - forward == 10 * 3 * 4 * pairs


Q, KV, OFFSETS = torch.zeros(5, 2, 4), torch.zeros(2, 3, 2, 4), torch.tensor([0, 2, 5])
PACKED = torch.zeros(5, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Q[0], KV, KV, OFFSETS, 3), {}, r"q: shape \(N, H, D\)"),
        ((Q, KV[..., :2], KV, OFFSETS, 3), {}, "k: shape"),
        ((Q, KV, KV.double(), OFFSETS, 3), {}, "v: torch.float32"),
        ((Q, KV, KV.to("meta"), OFFSETS, 3), {}, "v: torch.float32 on cpu expected, got torch.float32 on meta"),
        ((Q, KV.repeat(1, 1, 2, 1)[:, :, :3], KV.repeat(1, 1, 2, 1)[:, :, :3], OFFSETS, 3), {}, "its 3 heads must div"),
        ((Q, KV, KV, OFFSETS, 3), {"tau": 0.0}, "tau: must be > 0"),
        ((Q, KV, KV, OFFSETS, 3), {"activation": "gelo"}, "unknown 'gelo'; known are gelu"),
        ((Q, KV, KV, OFFSETS, 3), {"activation": ["gelu"]}, "1 names given for 2 heads"),
        ((Q, KV, KV, OFFSETS, 3), {"tau_position": "mid"}, "'pre' or 'post'"),
        ((Q, KV, KV, OFFSETS, 3), {"window": (-1, 2)}, r"window: \(left, right\) ≥ 0 expected, got \(-1, 2\)"),
        ((Q, KV[:1], KV[:1], OFFSETS, 3), {}, "1 sets for 2 samples"),
        ((Q, KV, KV, OFFSETS, 3), {"kv_index": torch.tensor([0, 2])}, "kv_index: 0 … 1 expected, got 0 … 2"),
        ((Q, KV, KV, OFFSETS, 3), {"kv_index": torch.tensor([0.0, 1.0])}, r"kv_index: int64 \(2,\) expected"),
        ((Q, PACKED, PACKED, OFFSETS, 3), {"kv_offsets": OFFSETS}, "kv_max_length: give the longest"),
        ((Q, KV, KV, OFFSETS, 3), {"kv_max_length": 3}, "kv_max_length: only with kv_offsets"),
        (
            (Q, PACKED, PACKED, OFFSETS, 3),
            {"kv_offsets": OFFSETS, "kv_max_length": 2},
            "kv_offsets: sequence 1 has 3 tokens, over max_length 2",
        ),
        ((Q, KV, KV, OFFSETS, 2), {}, "offsets: sequence 1 has 3 tokens, over max_length 2"),
        ((Q, KV, KV, OFFSETS + 1, 3), {}, "offsets: must run from 0 to 5, got 1 … 6"),
        ((Q, KV, KV, torch.tensor([0, 6, 5]), 6), {}, "offsets: must never decrease"),
        ((Q, KV, KV, OFFSETS.float(), 3), {}, "offsets: a 1-d int64 tensor"),
        ((Q, KV, KV, OFFSETS, 3), {"backend": "cuda"}, "unknown backend 'cuda'; known: 'reference', 'torch', 'triton'"),
        ((Q.double(), KV.double(), KV.double(), OFFSETS, 3), {"backend": "triton"}, "computes in float16, bfloat16"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        gdpa(*arguments, **{"tau": 1.0, **options})
