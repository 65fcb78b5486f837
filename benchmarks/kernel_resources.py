"""What the compiler makes of every kernel, for chips that need not be here: `python -m benchmarks.kernel_resources`.

Compiles each kernel for each target through the code that launches it, and prints registers, local memory (stack and
spills), shared memory, the instructions that multiply matrices, and how many blocks a multiprocessor has room for. That
last one is a **prediction** of occupancy from the first ones; nothing here runs on a GPU. Ends with an error if a
kernel does not fit its chip or is not what was chosen for it; see :func:`problems`.

All of it takes long the first time; then Triton has it in its cache. ``--brief`` compiles each
entry of the tables of block sizes once, at the widest head it serves: what `tests/kernels/test_compilation.py` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import versions
from kernels.activations import DEFINITIONS
from kernels.compilation import SHARED_MEMORY, TARGETS, TENSOR_MEMORY, compiling_for
from kernels.gdpa import triton as gdpa
from kernels.gdpa_block import _FUSED_WIDTH
from kernels.gdpa_block import triton as gdpa_block
from kernels.rote import triton as rote
from kernels.seed_attention import triton as seed_attention
from kernels.window_attention import triton as window_attention

HEADS, LENGTH, BATCH = 4, 512, 2
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WIDTHS = (16, 32, 64, 128, 256)
MATMUL = {
    "sm_80": "mma.sync",
    "sm_89": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
}


@dataclass(frozen=True)
class Chosen:
    """What to compile for: one target and dtype, all cases or (brief) those that reach each entry of the tables."""

    target: str
    dtype_name: str
    brief: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    def tokens(self, width: int, batch: int = BATCH, heads: int = HEADS) -> tuple[Tensor, Tensor]:
        """(N, H, D) and the offsets of ``batch`` sequences of LENGTH."""
        return torch.randn(batch * LENGTH, heads, width).to(self.dtype), torch.arange(batch + 1) * LENGTH

    def skips(self, width: int, configuration: Callable[[int], Any]) -> bool:
        """Whether wider heads have the same configuration: brief, these alone are compiled."""
        return self.brief and 2 * width in WIDTHS and configuration(width) == configuration(2 * width)


@dataclass(frozen=True)
class Case:
    """One call of a launcher: ``launch(*arguments)``."""

    op: str
    width: int
    variant: str
    launch: Callable[..., Any]
    arguments: tuple[Any, ...]


def gdpa_cases(c: Chosen, width: int) -> Iterator[Case]:
    """Forward and backward, with as many keys as each entry holds, and more than any: these stream."""
    if c.skips(width, partial(gdpa_entries, c)):
        return
    for n, launches in key_counts(c, width, gdpa.forward, gdpa.backward):
        yield from (case for case in gdpa_case(c, width, n) if case.launch in launches)
    if not c.brief or c.target == "sm_90":
        yield from gdpa_case(c, width, 512, window=[8, 8])
    if not c.brief:
        for n in (256, 512):
            yield from gdpa_case(c, width, n, packed=True)
            yield from gdpa_case(c, width, n, shared=True)
            yield from gdpa_case(c, width, n, packed=True, shared=True)
        yield from gdpa_case(c, width, 512, packed=True, window=[8, 8])
        for n in (64, 256, 512):
            yield from gdpa_case(c, width, n, names=list(DEFINITIONS))
    elif (c.target, c.dtype_name, width) == ("sm_90", "bfloat16", 64):
        yield from gdpa_case(c, width, 64, names=list(DEFINITIONS))


def gdpa_entries(c: Chosen, width: int) -> list[gdpa.Blocks | None]:
    kinds = ("forward", "stream", *dict.fromkeys(kind for plan in gdpa.PLANS for kind in plan))
    return [
        gdpa.configuration(kind + variant, c.target, width, c.dtype)
        for kind in kinds
        for variant in ("", ", norm", ", window")
    ]


def gdpa_case(
    c: Chosen,
    width: int,
    n: int,
    packed: bool = False,
    shared: bool = False,
    window: list[int] | None = None,
    names: Sequence[str] = ("gelu",) * HEADS,
) -> Iterator[Case]:
    """One shape. ``names``: an activation for each head; with several, each is a launch."""
    q, offsets = c.tokens(width, heads=len(names))
    sets = BATCH - 1 if shared else BATCH
    rows = (sets * n,) if packed else (sets, n)
    k = torch.randn(*rows, len(names), width).to(c.dtype)
    kv_offsets = torch.arange(sets + 1) * n if packed else None
    kv_index = torch.zeros(BATCH, dtype=torch.int64) if shared else None
    arguments = (q, k, k, offsets, kv_offsets, kv_index, LENGTH, n, names, 0.1, 1.0, window)
    words = {"packed": packed, "shared": shared, "window": window, "all activations": len(set(names)) > 1}
    variant = ", ".join([f"n {n}", *(word for word, true in words.items() if true)])
    yield Case("gdpa", width, variant, gdpa.forward, arguments)
    yield Case("gdpa", width, variant, gdpa.backward, (q, *arguments))


def key_counts(c: Chosen, width: int, forward: Any, backward: Any, norm: str = "") -> list[tuple[int, list[Any]]]:
    """Numbers of keys that reach every entry of GDPA's table, each with which of the launchers it is needed for."""
    if not c.brief:
        return [(n, [forward, backward]) for n in (16, 64, 128, 256, 512)]
    counts = {}
    for launch, kinds in ((forward, ("forward",)), (backward, ("kvq", "kq"))):
        whole = [gdpa.configuration(kind + norm, c.target, width, c.dtype) for kind in kinds]
        counts[launch] = {512, *(blocks.n for blocks in whole if blocks is not None)}
    return [(n, [launch for launch, of in counts.items() if n in of]) for n in sorted(set().union(*counts.values()))]


def block_cases(c: Chosen, width: int) -> Iterator[Case]:
    """The fused block, with tokens as precise as keys, and (mixed) in float32 beside half-precision keys: this wants
    more registers, so it is what brief compiles."""
    fused = _FUSED_WIDTH[c.dtype]
    if width > fused or c.skips(width, lambda w: w <= fused and gdpa_entries(c, w)):
        return
    half = c.dtype != torch.float32
    for mixed in (half,) if c.brief else (False, True)[: 1 + half]:
        for heads in (HEADS,) if c.brief else (HEADS, 16, 32):  # the passes over rows depend on the width of all heads
            launchers: list[Callable[..., Any]] = [gdpa_block.forward, gdpa_block.backward]
            counts = key_counts(c, width, gdpa_block.forward, gdpa_block.backward, ", norm")
            for n, launches in counts if heads == HEADS else [(128, launchers)]:
                q, offsets = c.tokens(width, heads=heads)
                s, weight = q.flatten(1), torch.ones(heads * width)
                s = s.float() if mixed else s
                k = torch.randn(BATCH, n, heads, width).to(c.dtype)
                statistic, names = torch.ones(s.shape[0]), ["gelu"] * heads
                weights = (weight, weight, weight, offsets)
                forward = (s, k, k, *weights, LENGTH, names, 0.1, 1.0, 1e-5, 1e-6)
                backward = (s, s, k, k, *weights, s, statistic, statistic, LENGTH, names, 0.1, 1.0, 1e-6)
                variant = f"n {n}, {heads} heads{', mixed' if mixed else ''}"
                for launch, arguments in zip(launchers, (forward, backward), strict=True):
                    if launch in launches:
                        yield Case("gdpa_block", width, variant, launch, arguments)


def rote_cases(c: Chosen, width: int) -> Iterator[Case]:
    for heads in (16,) if c.brief else (1, HEADS, 16):
        x, _ = c.tokens(width, heads=heads)
        angles = torch.ones(x.shape[0], width // 2)
        yield Case("rote", width, f"{heads} heads", rote.forward, (x, angles, angles))


def seed_cases(c: Chosen, width: int) -> Iterator[Case]:
    """Numbers of seeds that reach every configuration, dense and (one sample of two heads) split and joined."""
    counts = (16, 32, 64, 128)
    configuration = partial(seed_attention.configuration, c.target)
    if c.skips(width, lambda w: [configuration(w, c.dtype, count) for count in counts]):
        return
    reached = set()
    for count in counts:
        chosen = configuration(width, c.dtype, count)
        if c.brief and chosen in reached:
            continue
        reached.add(chosen)
        for batch, heads in ((1, 2), (BATCH, HEADS))[: 1 if c.brief else 2]:
            k, offsets = c.tokens(width, batch, heads)
            seeds = torch.randn(count, heads, width).to(c.dtype)
            out, lse = torch.zeros(batch, *seeds.shape).to(c.dtype), torch.zeros(batch, count, heads)
            angles = torch.ones(k.shape[0], width // 2)
            for cos in (angles,) if c.brief else (angles, None):
                rest = (offsets, cos, cos, LENGTH, 0.1)
                variant = f"S {count}{', turned' if cos is not None else ''}{', split' if batch == 1 else ''}"
                yield Case("seed_attention", width, variant, seed_attention.forward, (seeds, k, k, *rest))
                backward = (out, seeds, k, k, out, lse, *rest)
                yield Case("seed_attention", width, variant, seed_attention.backward, backward)


def window_cases(c: Chosen, width: int) -> Iterator[Case]:
    if c.skips(width, lambda w: window_attention.configuration(c.target, w, c.dtype)):
        return
    q, offsets = c.tokens(width)
    angles, lse = torch.ones(q.shape[0], width // 2), torch.zeros(q.shape[:2])
    for cos in (angles,) if c.brief else (angles, None):
        rest = (offsets, cos, cos, LENGTH, 100, 100, 0.1)
        variant = "plain" if cos is None else "turned"
        yield Case("window_attention", width, variant, window_attention.forward, (q, q, q, *rest))
        yield Case("window_attention", width, variant, window_attention.backward, (q, q, q, q, q, lse, *rest))


# An op is a function that gives its cases for a head width.
OPS = {
    "gdpa": gdpa_cases,
    "gdpa_block": block_cases,
    "rote": rote_cases,
    "seed_attention": seed_cases,
    "window_attention": window_cases,
}


def compile_all(c: Chosen, widths: Sequence[int], ops: Sequence[str] = tuple(OPS)) -> Iterator[dict[str, Any]]:
    """One record for each kernel; of cases for which it comes out the same, the first is named."""
    seen = set()
    for op in ops:
        for width in widths:
            for case in OPS[op](c, width):
                with compiling_for(c.target) as built:
                    case.launch(*case.arguments)
                for kernel in built:
                    record = {"op": op, "dtype": c.dtype_name, "width": width, **asdict(kernel)}
                    if str(record) not in seen:
                        seen.add(str(record))
                        yield record | {"variant": case.variant, "predicted_blocks_per_sm": kernel.blocks_per_sm}


def problems(record: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel: it does not fit, or (sm_90) spills, or multiplies in another way than it should.

    In half precision by the chip's instruction for matrices; float32 is exact, so on NVIDIA by none.
    """
    target, found = record["target"], []
    if record["shared_bytes"] > SHARED_MEMORY[target]:
        found.append(f"{record['shared_bytes']} bytes of shared memory of {SHARED_MEMORY[target]}")
    if record["tensor_memory"] > TENSOR_MEMORY:
        found.append(f"{record['tensor_memory']} columns of tensor memory of {TENSOR_MEMORY}")
    if target == "sm_90" and record["local_bytes"]:
        found.append(f"{record['local_bytes']} bytes of local memory: registers spill")
    instructions = record["matmul_instructions"]
    if record["dtype"] != "float32":
        if record["products"] and not instructions[MATMUL[target]]:
            found.append(f"no {MATMUL[target]} for {record['products']} products")
    elif target != "gfx942" and any(instructions.values()):
        found.append(f"float32 products that are not exact: {instructions}")
    return found


def line(record: dict[str, Any]) -> str:
    products = ", ".join(f"{count} {name}" for name, count in record["matmul_instructions"].items() if count)
    shared, limit = record["shared_bytes"] / 1024, SHARED_MEMORY[record["target"]] / 1024
    blocks = " × ".join(str(size) for name, size in record["blocks"].items() if name not in ("BLOCK_D", "BLOCK_P"))
    wrong = "".join(f"; WRONG: {problem}" for problem in problems(record))
    return (
        f"{record['target']:>6} {record['op']:>16} {record['name']:>20} {record['dtype']:>8} D {record['width']:3d} "
        f"{record['variant']:>14}: {blocks}, {record['warps']:2d} warps, {record['stages']} stages: "
        f"{record['registers']:3d} registers, {record['local_bytes']:4d} B local, "
        f"{shared:5.1f} of {limit:.0f} KB shared, "
        f"predicted blocks per SM {record['predicted_blocks_per_sm'] or '–'}; "
        f"{record['products']} products: {products or 'no matrix instructions'}{wrong}"
    )


def main(arguments: Sequence[str] | None = None) -> str | None:
    """Print a line for each kernel; with --out, write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--op", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument("--width", nargs="+", type=int, default=WIDTHS, help="of a head")
    parser.add_argument("--brief", action="store_true", help="each entry of the tables of block sizes once")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    records = []
    for target in args.target:
        for dtype in args.dtype:
            for record in compile_all(Chosen(target, dtype, args.brief), args.width, args.op):
                records.append(record)
                print(line(record), flush=True)
    if args.out:
        report = {
            "benchmark": "kernel_resources",
            "note": "figures of the compiler; blocks per SM are a prediction; nothing was run on a GPU",
            "cases": "each entry of the tables of block sizes" if args.brief else "all",
            "versions": versions("torch", "triton"),
            "results": records,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    wrong = sum(bool(problems(record)) for record in records)
    return f"{wrong} of {len(records)} kernels are wrong" if wrong else None


if __name__ == "__main__":
    sys.exit(main())
