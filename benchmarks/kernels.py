"""The ops against what does the same without them: `python -m benchmarks.kernels`.

On a GPU the Triton kernels, on a CPU the torch backend: what a user gets there by default. Each case is first checked
against the reference, then forward + backward is timed in turns with every peer that is installed, in one process:
* gdpa: matmul – activation – matmul on padded sequences, plain and (on a GPU) under torch.compile;
* gdpa_block: the same between torch's norms, or Liger's;
* window_attention: scaled_dot_product_attention with a band mask, and full, without one; on a GPU also compiled
  FlexAttention, torch.nn.attention.varlen, flash-attn, and fla where the window looks back only (fla is causal);
* seed_attention: scaled_dot_product_attention on padded sequences with a key mask;
* rote: the rotation written in torch.
Memory is what a forward and backward takes at its peak beyond inputs, outputs and gradients. The roofline is the larger
of two times, of the case's FLOPs at the matmul rate and of its inputs, outputs and gradients at the copy rate, both
measured here first. A peer that cannot run a case is named with the reason; nothing is written that was not measured.
Ratios are those of times taken side by side; the times themselves belong to the machine of the day.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import device, versions
from kernels import Rotation, gdpa, gdpa_block, rote, seed_attention, window_attention
from kernels.window_attention import pairs

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# (B, T, H, D, n): the towers of configs/base.yaml, models/small and models/base (its click and its other tower).
GDPA_SHAPES = [(512, 48, 2, 16, 16), (256, 200, 4, 16, 64), (32, 1000, 8, 32, 256), (32, 1000, 4, 32, 256)]
GPU_GDPA_SHAPES = [(1152, length, 4, 128, 256) for length in (256, 512, 1024, 2048)] + [
    (1152, 1024, 8, 32, 256),
    (1152, 1024, 4, 64, 256),
]
# (T, left, right); B · T is constant. The first two are the towers of configs/base.yaml and models/small.
WINDOW_SHAPES = [(48, 12, 12), (200, 24, 24), (256, 50, 50), (1024, 50, 50), (4096, 50, 50)]
GPU_WINDOW_SHAPES = [(length, w, v) for length in (1024, 2048, 4096, 8192) for w, v in ((100, 100), (200, 0))]
SEED_SHAPES = [(512, 48, 2, 16, 16), (256, 200, 4, 16, 32), (32, 1000, 8, 32, 256)]  # (B, T, H, D, S)


@dataclass(frozen=True)
class Case:
    """One op at one shape: ``ours`` and ``peers`` take the same differentiable tensors as they want them laid out.

    flops: forward, as the op counts them; the backward has 2.5 times as many · reference: what ``ours`` is checked
    against.
    """

    op: str
    shape: str
    flops: int
    ours: Contender
    reference: Callable[..., Tensor]
    peers: dict[str, Contender] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """A function, its differentiable inputs, and the gradient of its output."""

    run: Callable[..., Tensor]
    inputs: list[Tensor]
    grad: Tensor

    def forward(self) -> None:
        """What a forward in training costs: the graph is made and thrown away."""
        self.run(*self.inputs)

    def step(self) -> None:
        """Forward and backward."""
        for x in self.inputs:
            x.grad = None
        self.run(*self.inputs).backward(self.grad)


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def ragged(batch: int, longest: int, even: bool) -> Tensor:
    """Offsets of equally long sequences, or of lengths spread as in the samples: most short, few at the limit."""
    if even:
        lengths = torch.full((batch,), longest)
    else:
        lengths = (longest * torch.rand(batch) ** 2).long().clamp(min=1)
        lengths[0] = longest
    return torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(DEVICE)


def padded(x: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """(N, …) → (B, T, …), zeros behind each sequence, detached and differentiable."""
    mask = torch.arange(longest, device=x.device) < offsets.diff()[:, None]
    out = x.new_zeros(*mask.shape, *x.shape[1:])
    out[mask] = x.detach()
    return out.requires_grad_()


def gdpa_case(shape: tuple[int, ...], even: bool, dtype: torch.dtype) -> Case:
    batch, longest, heads, width, n = shape
    offsets = ragged(batch, longest, even)
    rows, tau = int(offsets[-1]), float(longest)
    q, k, v = (randn(*s, dtype=dtype) for s in [(rows, heads, width), *[(batch, n, heads, width)] * 2])
    k.data *= tau / width**0.5  # scores of unit size, as the model's gain makes them
    grad = torch.randn_like(q)

    def ours(q: Tensor, k: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
        return gdpa(q, k, v, offsets, longest, tau=tau, backend=backend)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.gelu((q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) / tau)
        return (weights @ v.transpose(1, 2)).transpose(1, 2)

    dense = [padded(q, offsets, longest), *(x.detach().clone().requires_grad_() for x in (k, v))]
    g = padded(grad, offsets, longest).detach()
    peers = {"matmul-gelu-matmul": Contender(naive, dense, g)}
    if ON_GPU:
        peers["matmul-gelu-matmul, compiled"] = Contender(torch.compile(naive), dense, g)
    name = f"B {batch}, T {longest}{'' if even else ' ragged'}, H {heads}, D {width}, n {n}"
    flops = 4 * rows * n * heads * width
    return Case("gdpa", name, flops, Contender(ours, [q, k, v], grad), reference_of(ours), peers)


def block_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    batch, longest, heads, width, n = shape
    offsets = ragged(batch, longest, True)
    rows, wide, tau = int(offsets[-1]), heads * width, float(longest)
    s, k, v = (randn(*x, dtype=dtype) for x in [(rows, wide), *[(batch, n, heads, width)] * 2])
    k.data *= tau / width**0.5
    weights = [torch.ones(wide, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(2)]
    weights.insert(1, torch.zeros(wide, device=DEVICE, dtype=dtype).requires_grad_())

    def ours(s: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, c: Tensor, backend: str | None = None) -> Tensor:
        norms = {"norm_weight": a, "norm_bias": b, "out_weight": c}
        return gdpa_block(s, k, v, offsets, longest, **norms, tau=tau, backend=backend)

    def naive(s: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        q = F.layer_norm(s, (wide,), a, b)
        q_BHTD = q.unflatten(0, (batch, longest)).unflatten(2, (heads, width)).transpose(1, 2)
        out = F.gelu((q_BHTD @ k.permute(0, 2, 3, 1)) / tau) @ v.transpose(1, 2)
        return s + F.rms_norm(out.transpose(1, 2).flatten(0, 1).flatten(1) + q, (wide,), c, 1e-6)

    inputs = [s, k, v, *weights]
    grad = torch.randn_like(s)
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    peers = {"norms, matmul-gelu-matmul": Contender(naive, copies, grad)}
    if ON_GPU:
        peers["norms, matmul-gelu-matmul, compiled"] = Contender(torch.compile(naive), copies, grad)

        def liger(s: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            from liger_kernel.transformers.functional import liger_layer_norm, liger_rms_norm

            q = liger_layer_norm(s, a, b, 1e-5)
            q_BHTD = q.unflatten(0, (batch, longest)).unflatten(2, (heads, width)).transpose(1, 2)
            out = F.gelu((q_BHTD @ k.permute(0, 2, 3, 1)) / tau) @ v.transpose(1, 2)
            return s + liger_rms_norm(out.transpose(1, 2).flatten(0, 1).flatten(1) + q, c, 1e-6, in_place=False)

        peers["Liger's norms, matmul-gelu-matmul"] = Contender(liger, copies, grad)
    name = f"B {batch}, T {longest}, H {heads}, D {width}, n {n}"
    return Case(
        "gdpa_block", name, 4 * rows * n * wide, Contender(ours, inputs, grad), reference_of(ours), peers
    )  # fmt: skip


def window_case(
    shape: tuple[int, int, int], heads: int, width: int, tokens: int, even: bool, dtype: torch.dtype
) -> Case:
    longest, left, right = shape
    batch = max(tokens // longest, 1)
    offsets = ragged(batch, longest, even)
    q, k, v = (randn(int(offsets[-1]), heads, width, dtype=dtype) for _ in range(3))
    grad = torch.randn_like(q)

    def ours(q: Tensor, k: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
        return window_attention(q, k, v, offsets, longest, left=left, right=right, backend=backend)

    position = torch.arange(longest, device=DEVICE)
    distance = position - position[:, None]
    band = ((distance >= -left) & (distance <= right))[None, None]
    if not even:
        # A query that does not exist sees all: no key at all would be NaN.
        real = position < offsets.diff()[:, None]
        band = (band & real[:, None, None]) | ~real[:, None, :, None]

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=band)

    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def dense() -> list[Tensor]:
        return [padded(x, offsets, longest).detach().transpose(1, 2).requires_grad_() for x in (q, k, v)]

    g = padded(grad, offsets, longest).detach().transpose(1, 2)
    peers = {"SDPA with a mask": Contender(masked, dense(), g)}
    if even:
        peers["SDPA, full"] = Contender(full, dense(), g)
    if ON_GPU:
        copies = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        ends = offsets.int()
        peers |= {
            "FlexAttention, compiled": Contender(flex_attention(longest, left, right), dense(), g),
            "torch varlen": Contender(varlen(ends, longest, left, right), copies, grad),
            "flash-attn": Contender(flash_attention(ends, longest, left, right), copies, grad),
        }
        if right == 0:
            peers["fla"] = Contender(flash_linear_attention(ends, left), copies, grad)
    name = f"B {batch}, T {longest}{'' if even else ' ragged'}, window {left} + 1 + {right}, H {heads}, D {width}"
    flops = 4 * heads * width * sum(pairs(length, left, right) for length in offsets.diff().tolist())
    return Case("window_attention", name, flops, Contender(ours, [q, k, v], grad), reference_of(ours), peers)


def flex_attention(longest: int, left: int, right: int) -> Callable[..., Tensor]:
    from torch.nn.attention import flex_attention as flex

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j - i >= -left) & (j - i <= right)

    mask = flex.create_block_mask(near, None, None, longest, longest, device=DEVICE)
    compiled = torch.compile(flex.flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def varlen(ends: Tensor, longest: int, left: int, right: int) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(left, right))

    return run


def flash_attention(ends: Tensor, longest: int, left: int, right: int) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, window_size=(left, right))

    return run


def flash_linear_attention(ends: Tensor, left: int) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from fla.ops.attn.parallel import parallel_attn

        out = parallel_attn(q[None], k[None], v[None], window_size=left + 1, cu_seqlens=ends.long())
        return out[0]

    return run


def seed_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    batch, longest, heads, width, count = shape
    offsets = ragged(batch, longest, False)
    seeds, k, v = (randn(rows, heads, width, dtype=dtype) for rows in (count, int(offsets[-1]), int(offsets[-1])))
    grad = torch.randn(batch, count, heads, width, device=DEVICE).to(dtype)

    def ours(seeds: Tensor, k: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
        return seed_attention(seeds, k, v, offsets, longest, backend=backend)

    mask = (torch.arange(longest, device=DEVICE) < offsets.diff()[:, None])[:, None, None]

    def masked(seeds: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = seeds.transpose(0, 1)[None].expand(batch, -1, -1, -1)
        return F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)

    dense = [seeds.detach().clone().requires_grad_(), *(padded(x, offsets, longest) for x in (k, v))]
    peers = {"SDPA, padded, with a mask": Contender(masked, dense, grad.transpose(1, 2))}
    name = f"B {batch}, T {longest} ragged, H {heads}, D {width}, S {count}"
    flops = 4 * count * int(offsets[-1]) * heads * width
    return Case("seed_attention", name, flops, Contender(ours, [seeds, k, v], grad), reference_of(ours), peers)


def rote_case(rows: int, heads: int, width: int, dtype: torch.dtype) -> Case:
    x = randn(rows, heads, width, dtype=dtype)
    position, log_time = torch.rand(2, rows, device=DEVICE) * 20
    theta, phi = torch.rand(2, width // 2, device=DEVICE)
    rotation = Rotation(position, log_time, theta, phi)
    cos, sin = (t[:, None] for t in rotation.cos_sin)

    def naive(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    def ours(x: Tensor, backend: str | None = None) -> Tensor:
        return rote(x, rotation, backend=backend)

    grad, copy = torch.randn_like(x), x.detach().clone().requires_grad_()
    peers = {"written in torch": Contender(naive, [copy], grad)}
    return Case("rote", f"N {rows}, H {heads}, D {width}", 0, Contender(ours, [x], grad), reference_of(ours), peers)


def reference_of(ours: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *inputs: ours(*inputs, backend="reference")


def check(case: Case) -> None:
    """RuntimeError where an output or a gradient is farther from the reference in float32 than rounding explains."""
    found = case.ours.run(*case.ours.inputs)
    grads = torch.autograd.grad(found, case.ours.inputs, case.ours.grad)
    exact_inputs = [x.detach().float().requires_grad_() for x in case.ours.inputs]
    exact = case.reference(*exact_inputs)
    exact_grads = torch.autograd.grad(exact, exact_inputs, case.ours.grad.float())
    allowed = {torch.float32: 1e-4}.get(found.dtype, 2e-2)
    for name, ours, true in zip(
        ["output", *(f"gradient {i}" for i in range(9))], [found, *grads], [exact, *exact_grads], strict=False
    ):
        error = float(((ours.float() - true).norm() / true.norm().clamp(min=1e-30)).detach())
        if not error <= allowed:
            raise RuntimeError(f"{case.op} ({case.shape}): {name} is off by {error:.1e} of its norm; nothing is timed")


def peak_bytes(contender: Contender) -> int:
    """What one step takes at its peak, beyond the output and the gradients it makes."""
    kept = sum(x.numel() * x.element_size() for x in (*contender.inputs, contender.grad))
    for x in contender.inputs:
        x.grad = None
    if ON_GPU:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.step()
        return torch.cuda.max_memory_allocated() - before - kept
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        contender.step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak - kept


def seconds(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """The time of each step in each round; all in turns, so that load from outside strikes all."""
    if ON_GPU:
        from triton.testing import do_bench

        return {name: [do_bench(step, return_mode="median") / 1e3] for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times


@dataclass(frozen=True)
class Peaks:
    """What this device does at most in the dtype of the run: FLOP/s of a large product, bytes/s of a large copy."""

    flops: float
    bytes: float


def measure_peaks(dtype: torch.dtype) -> Peaks:
    size = 8192 if ON_GPU else 1024
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    large = torch.zeros((1 << 30) if ON_GPU else (1 << 27), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(large)
    times = seconds({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(large)}, 9)
    return Peaks(2 * size**3 / min(times["product"]), 2 * large.numel() / min(times["copy"]))


def roofline(case: Case, peaks: Peaks) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward, that no implementation can be under: inputs and outputs are
    read or written once by each of the two."""
    size = [x.numel() * x.element_size() for x in (*case.ours.inputs, case.ours.grad)]
    once = sum(size)
    forward = max(case.flops / peaks.flops, once / peaks.bytes)
    # The backward reads the inputs, the output and its gradient, and writes the gradients of the inputs.
    backward = max(2.5 * case.flops / peaks.flops, (2 * once) / peaks.bytes)
    return forward, forward + backward


def measure(case: Case, rounds: int, peaks: Peaks) -> dict[str, Any]:
    """One record: times, ratios and memory of ours and of every peer that runs."""
    check(case)
    contenders = {"ours": case.ours}
    failed: dict[str, str] = {}
    for name, peer in case.peers.items():
        try:
            peer.step()
            contenders[name] = peer
        except Exception as error:  # a peer may refuse a shape, a dtype or a device in any way
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    times = seconds({name: c.step for name, c in contenders.items()} | {"forward": case.ours.forward}, rounds)
    memory = {name: peak_bytes(c) for name, c in contenders.items()}
    both, forward = (statistics.median(times[name]) for name in ("ours", "forward"))
    record: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": str(case.ours.grad.dtype)[6:]}
    record["ms"] = {name: 1e3 * statistics.median(t) for name, t in times.items() if name != "forward"}
    record["ms_forward"] = 1e3 * forward
    if case.flops:
        record["tflops_forward"] = case.flops / forward / 1e12
        record["tflops_backward"] = 2.5 * case.flops / (both - forward) / 1e12
    least = roofline(case, peaks)
    record["share_of_roofline"] = {"forward": least[0] / forward, "forward and backward": least[1] / both}
    record["peer_over_ours"] = {
        name: statistics.median(theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True))
        for name in contenders
        if name != "ours"
    }
    record["extra_bytes"] = memory
    record["peers_not_measured"] = failed
    return record


def line(record: dict[str, Any]) -> str:
    share = record["share_of_roofline"]
    ours = f"{record['ms']['ours']:8.2f} ms, forward {record['ms_forward']:.2f}"
    if "tflops_forward" in record:
        ours += f"; TFLOP/s {record['tflops_forward']:.3f} forward, {record['tflops_backward']:.3f} backward"
    ours += f"; {100 * share['forward']:.0f} % and {100 * share['forward and backward']:.0f} % of the roofline"
    peers = [
        f"{name}: {ratio:.2f} × the time, {mebibytes(record['extra_bytes'][name])} extra"
        for name, ratio in record["peer_over_ours"].items()
    ]
    peers += [f"{name}: not measured ({why})" for name, why in record["peers_not_measured"].items()]
    return (
        f"{record['op']:>16} {record['shape']:<48} {record['dtype']:>8}: {ours}; "
        f"{mebibytes(record['extra_bytes']['ours'])} extra; " + "; ".join(peers)
    )


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def cases(dtype: torch.dtype, only: Sequence[str]) -> list[Callable[[], Case]]:
    """The cases of this device, made one at a time: together they would not fit in memory."""
    found: list[tuple[str, Callable[[], Case]]] = []
    for shape in GPU_GDPA_SHAPES if ON_GPU else GDPA_SHAPES:
        found.append(("gdpa", lambda s=shape: gdpa_case(s, True, dtype)))
        found.append(("gdpa", lambda s=shape: gdpa_case(s, False, dtype)))
        found.append(("gdpa_block", lambda s=shape: block_case(s, dtype)))
    for window in GPU_WINDOW_SHAPES if ON_GPU else WINDOW_SHAPES:
        for heads, width in [(4, 128), (8, 32)] if ON_GPU else [(2, 16), (4, 32)]:
            for even in (True,) if ON_GPU else (True, False):
                arguments = (window, heads, width, 1 << (19 if ON_GPU else 14), even, dtype)
                found.append(("window_attention", lambda a=arguments: window_case(*a)))
    for shape in SEED_SHAPES:
        found.append(("seed_attention", lambda s=shape: seed_case(s, dtype)))
    found.append(("rote", lambda: rote_case(1 << (20 if ON_GPU else 15), 4, 32, dtype)))
    return [make for op, make in found if not only or op in only]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each case; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ops = ["gdpa", "gdpa_block", "window_attention", "seed_attention", "rote"]
    parser.add_argument("--op", nargs="+", choices=ops, default=[], help="only these")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16" if ON_GPU else None)
    parser.add_argument("--rounds", type=int, default=15, help="of timing, on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype or "float32")
    results = []
    peaks = measure_peaks(dtype)
    print(f"peaks measured here: {peaks.flops / 1e12:.3f} TFLOP/s, {peaks.bytes / 1e9:.1f} GB/s", flush=True)
    for make in cases(dtype, args.op):
        record = measure(make(), args.rounds, peaks)
        results.append(record)
        print(line(record), flush=True)
    if args.out:
        packages = ("torch", "triton") if ON_GPU else ("torch",)
        report = {
            "benchmark": "kernels",
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "device": gpu() if ON_GPU else device(args.threads),
            "versions": versions(*packages),
            "peaks": {"flops_per_s": peaks.flops, "bytes_per_s": peaks.bytes},
            "results": results,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def gpu() -> dict[str, Any]:
    """Name, multiprocessors and the CUDA (or HIP) version of this build of torch."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


if __name__ == "__main__":
    main()
