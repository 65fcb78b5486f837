"""Seed attention: the reference against plain loops, every backend against the reference, and what an op promises."""

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

from kernels import Rotation, rote, seed_attention
from kernels.seed_attention import flops, tiled
from tests.kernels.support import (
    DEVICE,
    DTYPES,
    LENGTHS,
    assert_as_good_as_torch,
    layout,
    poisoned,
    randn,
    with_gradients,
)
from tests.kernels.test_rote import rotation
from tests.support import seeds_by_hand, spans

# Rows of padding, which are not stored, may overflow; numpy tells, a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

BACKENDS = ["torch", "triton"]
SEEDS = [1, 5, 17, 40]


def op(offsets: Tensor, backend: str | None, **options):
    """As a function of seeds, k and v."""
    longest = int(offsets.diff().max())
    return lambda *x: seed_attention(*x, offsets, longest, **options, backend=backend)


def turned(offsets: Tensor, backend: str | None):
    """As a function of theta and phi besides; at positions that float32 has exactly."""
    position, log_time = (randn(int(offsets[-1]), seed=s).float() for s in (5, 6))

    def call(seeds: Tensor, k: Tensor, v: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        dtype = torch.promote_types(theta.dtype, torch.float32)
        return op(offsets, backend, rotation=Rotation(position.to(dtype), log_time.to(dtype), theta, phi))(seeds, k, v)

    return call


def inputs(lengths: list[int], seeds: int = 5, heads: int = 2, width: int = 4, scale: float = 1.0) -> list[Tensor]:
    """Seeds, keys and values in float64; the scores deviate by about ``scale``."""
    rows = sum(lengths)
    return [randn(seeds, heads, width, scale=scale), *(randn(rows, heads, width, seed=s) for s in (1, 2))]


def angles(width: int) -> list[Tensor]:
    """theta and phi."""
    return [randn(width // 2, seed=s) for s in (3, 4)]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.sampled_from(SEEDS), st.sampled_from([1, 3]), st.sampled_from([0.1, 1.0, 10.0]), st.booleans())
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_enumeration(backend, lengths, seeds, heads, scale, turn):
    offsets, (e, k, v) = layout(lengths), inputs(lengths, seeds, heads, 6, scale)
    r = rotation(sum(lengths), 6) if turn else None
    out = op(offsets, backend, scale=0.3, rotation=r)(e, k, v)
    if r is not None:  # a seed sits at position and log-time 0
        k = rote(k, r, backend="reference")
    torch.testing.assert_close(out, seeds_by_hand(e, k, v, offsets, 0.3))


@pytest.mark.parametrize("lengths", [[3, 0, 1, 2], [0, 0]])
@pytest.mark.parametrize("turn", [False, True])
def test_gradients_and_their_gradients(lengths, turn):
    offsets = layout(lengths)
    tensors = [x.requires_grad_() for x in [*inputs(lengths), *(angles(4) if turn else [])]]
    on = partial(turned if turn else op, offsets)
    assert gradcheck(on("reference"), tensors)
    assert gradgradcheck(on("reference"), tensors)
    assert gradcheck(on("torch"), tensors)
    first = torch.autograd.grad(on("torch")(*tensors).sum(), tensors[:3], create_graph=True)
    with pytest.raises(RuntimeError, match="seed_attention: only the reference is differentiable twice; pass backend="):
        first[0].sum().backward()


@pytest.mark.parametrize("scores", [0, 5 * 10, 1 << 60], ids=["fused", "both", "plain"])
def test_the_two_ways_of_the_torch_backend(scores, monkeypatch):
    """In several pieces, some of several sequences and some of one; with padding and without."""
    monkeypatch.setattr(tiled, "FUSED_SCORES", scores)
    monkeypatch.setattr(tiled, "PIECE_BYTES", 6 * 2 * 4 * 8)
    monkeypatch.setattr(tiled, "PIECES", 100)
    lengths = [3, 0, 1, 9, 2, 2, 8, 12]
    offsets, (e, k, v) = layout(lengths), [x.requires_grad_() for x in inputs(lengths)]
    ways = [tiled._fused(piece, e.transpose(0, 1)) for piece in tiled._pieces(offsets, e.transpose(0, 1), k)]
    assert len(ways) > 4
    assert set(ways) == {0: {True}, 50: {True, False}}.get(scores, {False})
    torch.testing.assert_close(op(offsets, "torch")(e, k, v), seeds_by_hand(e, k, v, offsets, 0.5))
    assert gradcheck(op(offsets, "torch"), (e, k, v))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, deadline=None)
@given(
    # Of a single key the weight is 1 whatever its score: gradients that are 0 have no relative error.
    lengths=LENGTHS.filter(lambda lengths: max(lengths) > 1),
    seeds=st.sampled_from(SEEDS),
    heads=st.sampled_from([1, 2]),
    width=st.sampled_from([4, 16, 24, 64]),  # the widest is turned by a kernel of its own in the interpreter
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    turn=st.booleans(),
)
def test_backends_are_as_good_as_torch(backend, dtype, lengths, seeds, heads, width, scale, turn):
    options = {"rotation": rotation(sum(lengths), width) if turn else None}
    ours, reference = (op(layout(lengths), name, **options) for name in (backend, "reference"))
    assert_as_good_as_torch(ours, reference, inputs(lengths, seeds, heads, width, scale), dtype)


@pytest.mark.parametrize("shift", [-400.0, 400.0])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_what_all_scores_of_a_sequence_share_changes_nothing(backend, shift):
    """However far from 0 the scores are: no sum of exponentials overflows or vanishes, no padding counts."""
    offsets, (e, k, v), grad = layout([1, 20, 3]), inputs([24], 5, 2, 16), randn(3, 5, 2, 16)
    e[..., 0], k[..., 0] = 1.0, 0.0
    far = k.clone()
    far[..., 0] = shift
    one, other = (
        with_gradients(op(offsets, backend, scale=1.0), [x.float() for x in (e, keys, v)], grad) for keys in (k, far)
    )
    # The gradient of a seed's first component is Σ ds · k: 0 up to the rounding of what cancels, now much larger.
    one[1][..., 0] = other[1][..., 0] = 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("turn", "width", "longest"), [(False, 16, 700), (True, 16, 700), (True, 64, 70)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_sequence_among_short_ones(backend, turn, width, longest):
    offsets, options = layout([1, longest, 0, 2]), {"rotation": rotation(longest + 3, width) if turn else None}
    ours, reference = (op(offsets, name, **options) for name in (backend, "reference"))
    assert_as_good_as_torch(ours, reference, inputs([longest + 3], 17, 1, width), torch.float32)


@pytest.mark.parametrize("lengths", [[200], [0], [5], [130, 64], [70, 0, 3]])
def test_sequences_split_over_programs(lengths, monkeypatch):
    """The forward joins what it split, parts without a key included: a limit far over the lengths is allowed."""
    kernels = import_module("kernels.seed_attention.triton")
    splits, join = [], kernels._join

    class Recorded:
        def __getitem__(self, grid):
            return lambda *arguments, **sizes: splits.append(arguments[5]) or join[grid](*arguments, **sizes)

    monkeypatch.setattr(kernels, "_join", Recorded())
    offsets, tensors = layout(lengths), inputs(lengths, 5, 1, 16)
    ours, reference = (
        lambda *x, name=name: seed_attention(*x, offsets, 1000, backend=name) for name in ("triton", "reference")
    )
    if max(lengths):
        assert_as_good_as_torch(ours, reference, tensors, torch.float32)
    else:
        assert not ours(*(x.float() for x in tensors)).any()
    assert splits == [6 // len(lengths)]


def test_the_interpreter_meets_both_ways_of_turning():
    chosen = import_module("kernels.seed_attention.triton").configuration("interpreter", 64, torch.float32, 5)
    assert 24 <= chosen.widest_turned < 64


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_angles_that_learn_get_gradients(backend, width):
    offsets, tensors = layout([20, 0, 7]), [*inputs([27], 5, 2, width), *angles(width)]
    assert_as_good_as_torch(turned(offsets, backend), turned(offsets, "reference"), tensors, torch.float32)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_empty_samples_give_zeros(backend, turn):
    for lengths in ([0, 2, 0], [0, 0]):
        options = {"rotation": rotation(sum(lengths), 4, torch.float32) if turn else None}
        tensors, grad = [x.float() for x in inputs(lengths)], randn(len(lengths), 5, 2, 4)
        with poisoned():
            out, *grads = with_gradients(op(layout(lengths), backend, **options), tensors, grad)
        empty = torch.tensor(lengths) == 0
        assert out.shape == grad.shape
        assert not out[empty].any()
        assert [x.shape for x in grads] == [x.shape for x in tensors]
        assert all(bool(x.any()) == (sum(lengths) > 0) for x in (out, *grads))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_batch_without_samples(backend):
    tensors = [x.float() for x in inputs([])]
    out, *grads = with_gradients(
        lambda *x: seed_attention(*x, layout([]), 0, backend=backend), tensors, randn(0, 5, 2, 4)
    )
    assert out.shape == (0, 5, 2, 4)
    assert not any(x.any() for x in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_alone_equals_the_sample_in_a_batch(backend):
    lengths = [9, 0, 40, 17, 1]
    offsets, (e, k, v) = layout(lengths), [x.float() for x in inputs(lengths, 17)]
    grad = randn(5, 17, 2, 4)
    out, de, dk, dv = with_gradients(op(offsets, backend), [e, k, v], grad)
    total = torch.zeros_like(de)
    for b, (start, end) in enumerate(spans(offsets)):
        alone = with_gradients(op(layout([end - start]), backend), [e, k[start:end], v[start:end]], grad[b : b + 1])
        for a, together in zip(alone, (out[b : b + 1], None, dk[start:end], dv[start:end]), strict=True):
            if together is not None:
                torch.testing.assert_close(a, together)
        total += alone[1]
    torch.testing.assert_close(total, de)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("scores", [0, 1 << 60], ids=["fused", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_their_gradients(backend, scores, turn, monkeypatch):
    """Keys and values of one projection, or with no dimension where torch would put it; the gradient neither."""
    monkeypatch.setattr(tiled, "FUSED_SCORES", scores)
    offsets, (e, k, v), grad = (
        layout([20, 20, 5]),
        inputs([45], 5, 2, 16),
        randn(2, 16, 5, 3).float().permute(3, 2, 0, 1),
    )
    options = {"rotation": rotation(45, 16, torch.float32) if turn else None}
    kv = torch.stack([k, v], 1).float()
    backwards = [x.float().permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (e, k, v)]
    exact = with_gradients(op(offsets, "reference", **options), [x.float() for x in (e, k, v)], grad)
    for strided in (backwards, [backwards[0], *kv.unbind(1)]):
        strided = [x.requires_grad_() for x in strided]
        assert not any(x.is_contiguous() for x in (*strided, grad))
        out = op(offsets, backend, **options)(*strided)
        for ours, theirs in zip([out, *torch.autograd.grad(out, strided, grad)], exact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_deterministic(backend):
    lengths = [70, 3, 17, 0]
    tensors = [x.float() for x in inputs(lengths, 17, 2, 16)]
    ours = op(layout(lengths), backend, rotation=rotation(90, 16, torch.float32))
    once, twice = (with_gradients(ours, tensors, randn(4, 17, 2, 16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_never_kept(backend):
    """What autograd keeps is inputs and output: nothing grows with seeds times keys."""
    e, k, v = (x.float().requires_grad_() for x in inputs([300], 40, 1, 4))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        op(layout([300]), backend)(e, k, v)
    assert max(kept) == k.numel()


def op_inputs() -> tuple[list[Tensor], Tensor]:
    return [x.float().requires_grad_() for x in inputs([4, 0, 5], 5, 2, 16)], layout([4, 0, 5])


@pytest.mark.parametrize(("backend", "turn"), [("torch", False), ("triton", False), ("triton", True)])
def test_is_a_well_behaved_operator(backend, turn):
    tensors, offsets = op_inputs()
    cos_sin = rotation(9, 16, torch.float32).cos_sin if turn else (None, None)
    options = (5, 0.25, backend)
    torch.library.opcheck(torch.ops.kunlun.seed_attention, (*tensors, offsets, *cos_sin, *options))
    plain = [x.detach() for x in tensors]
    out, lse = torch.ops.kunlun.seed_attention(*plain, offsets, *cos_sin, *options)
    arguments = (torch.ones_like(out), *plain, out, lse, offsets, *cos_sin, *options)
    torch.library.opcheck(torch.ops.kunlun.seed_attention_backward, arguments)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("backend", [None, "triton"])
def test_compiles_into_one_graph(backend, turn):
    tensors, offsets = op_inputs()
    r = rotation(9, 16, torch.float32) if turn else None
    eager = lambda *x: seed_attention(*x, offsets, 5, rotation=r, backend=backend)  # noqa: E731
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    grad = randn(3, 5, 2, 16)
    for a, b in zip(with_gradients(eager, tensors, grad), with_gradients(compiled, tensors, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_autocast_computes_in_its_dtype(backend):
    tensors, offsets = op_inputs()
    half = torch.float16 if DEVICE == "cpu" and backend == "triton" else torch.bfloat16
    with torch.autocast(DEVICE, half):
        out = op(offsets, backend)(tensors[0], tensors[1].to(half), tensors[2])
        exact = op(offsets, "torch")(*(x.double() for x in tensors))
    assert out.dtype == half
    if backend != "reference":  # inside, nothing is rounded more than without autocast
        assert torch.equal(out, op(offsets, backend)(*(x.to(half) for x in tensors)))
    assert exact.dtype == torch.float64
    assert torch.autograd.grad(out.sum(), tensors)[0].dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from(SEEDS), st.booleans())
def test_flops_are_those_of_the_enumerated_pairs(lengths, seeds, turn):
    pairs = sum(seeds for length in lengths for _ in range(length))
    options = {"rotation": rotation(sum(lengths), 4) if turn else None}
    tensors = [x.requires_grad_() for x in inputs(lengths, seeds, 3)]
    with FlopCounterMode(display=False) as counter:
        out = op(layout(lengths), "torch", **options)(*tensors)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 4 * 3 * 4 * pairs == sum(flops(length, seeds, 12) for length in lengths)
    assert counter.get_total_flops() - forward == 10 * 3 * 4 * pairs


E, X, OFFSETS = torch.zeros(3, 2, 4), torch.zeros(5, 2, 4), torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((E[0], X, X, OFFSETS, 3), {}, r"seeds: shape \(S, H, D\) with none of them 0 expected, got \(2, 4\)"),
        ((E[:0], X, X, OFFSETS, 3), {}, r"seeds: shape \(S, H, D\) with none of them 0 expected, got \(0, 2, 4\)"),
        ((E, X[..., :2], X, OFFSETS, 3), {}, r"k: shape \(\?, 2, 4\) expected, got \(5, 2, 2\)"),
        ((E, X, X[:4], OFFSETS, 3), {}, r"v: shape \(5, 2, 4\) expected, got \(4, 2, 4\)"),
        ((E, X.double(), X, OFFSETS, 3), {}, "k: torch.float32 on cpu expected, got torch.float64 on cpu"),
        ((E, X, X.to("meta"), OFFSETS, 3), {}, "v: torch.float32 on cpu expected, got torch.float32 on meta"),
        ((E, X, X, OFFSETS.to("meta"), 3), {}, "offsets: on cpu expected, got meta"),
        ((E, X, X, OFFSETS.float(), 3), {}, "offsets: a 1-d int64 tensor"),
        ((E, X, X, OFFSETS[None], 3), {}, "offsets: a 1-d int64 tensor"),
        ((E, X, X, OFFSETS + 1, 3), {}, "offsets: must run from 0 to 5, got 1 … 6"),
        ((E, X, X, torch.tensor([0, 2, 4]), 3), {}, "offsets: must run from 0 to 5, got 0 … 4"),
        ((E, X, X, torch.tensor([0, 6, 5]), 6), {}, "offsets: must never decrease"),
        ((E, X, X, OFFSETS, 2), {}, "offsets: sequence 1 has 3 tokens, over max_length 2"),
        ((E, X, X, OFFSETS, 3), {"scale": 0.0}, "scale: > 0 expected, got 0.0"),
        ((E, X, X, OFFSETS, 3), {"scale": float("nan")}, "scale: > 0 expected, got nan"),
        ((E, X, X, OFFSETS, 3), {"backend": "cuda"}, "unknown backend 'cuda'; known: 'reference', 'torch', 'triton'"),
        ((E, X, X, OFFSETS, 3), {"rotation": rotation(4, 4)}, r"rotation.position: shape \(5,\) expected, got \(4,\)"),
        ((E, X, X, OFFSETS, 3), {"rotation": rotation(5, 6)}, r"rotation.theta: shape \(2,\) expected, got \(3,\)"),
        ((E[..., :3], X[..., :3], X[..., :3], OFFSETS, 3), {"rotation": rotation(5, 4)}, "even D"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_bad_arguments_are_named(backend, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        seed_attention(*arguments, **{"backend": backend, **options})


def test_what_triton_cannot_do_is_named():
    with pytest.raises(ValueError, match="backend 'triton' computes in float16, bfloat16 and float32"):
        seed_attention(E.double(), X.double(), X.double(), OFFSETS, 3, backend="triton")
    wide = [x.repeat(1, 1, 65) for x in (E, X, X)]
    with pytest.raises(ValueError, match="takes heads of up to 256, got 260; backend 'torch' takes any"):
        seed_attention(*wide, OFFSETS, 3, backend="triton")
    assert seed_attention(*wide, OFFSETS, 3, backend="torch").shape == (2, 3, 2, 260)
