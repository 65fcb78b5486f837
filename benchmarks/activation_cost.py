"""What an activation costs a score, and the ceiling that leaves GDPA: `python -m benchmarks.activation_cost`.

Compiles GDPA's forward with each activation, disassembles it, and counts what it has beyond the same kernel with the
identity, per score and thread. A score is also 4 · D FLOPs on the tensor cores. Beside them stand **predicted** upper
bounds on a chip: its multiprocessors issue so many instructions a clock, its tensor cores do so many FLOPs (data
sheet). Both can overlap, so the bound is the slower of the two alone; loads, conversions and waiting come on top.
Nothing here is measured: no GPU is needed, and none is used.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.machine import versions
from kernels import compilation
from kernels.activations import ACTIVATIONS
from kernels.gdpa import triton as gdpa

TOKENS, KEYS, HEADS = 1024, 256, 4


@dataclass(frozen=True)
class Chip:
    """bfloat16 FLOP/s without sparsity, multiprocessors, boost clock in Hz: NVIDIA's H200 data sheet. Four schedulers a
    multiprocessor issue one instruction for 32 threads each."""

    name: str = "H200"
    flops: float = 989e12
    multiprocessors: int = 132
    clock: float = 1.98e9

    @property
    def instructions(self) -> float:
        """Of single threads, a second."""
        return 4 * 32 * self.multiprocessors * self.clock


@contextmanager
def cubins() -> Iterator[list[bytes]]:
    """What is compiled inside, in its order."""
    found: list[bytes] = []
    describe = compilation._describe

    def keep(compiled: Any, target: str) -> compilation.Built:
        found.append(compiled.asm["cubin"])
        return describe(compiled, target)

    compilation._describe = keep
    try:
        yield found
    finally:
        compilation._describe = describe


def instructions(cubin: bytes) -> Counter[str]:
    """How often each instruction stands in the code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text))


def forward(width: int, activation: str) -> tuple[Counter[str], float]:
    """The instructions of GDPA's forward on sm_90 in bfloat16, and how many scores of a block each thread has."""
    q = torch.empty(TOKENS, HEADS, width, dtype=torch.bfloat16)
    k = torch.empty(2, KEYS, HEADS, width, dtype=torch.bfloat16)
    offsets = torch.tensor([0, TOKENS // 2, TOKENS])
    with cubins() as found, compilation.compiling_for("sm_90") as built:
        gdpa.forward(q, k, k, offsets, None, None, TOKENS // 2, KEYS, [activation] * HEADS, 0.1, 1.0, None)
    blocks = built[0].blocks
    return instructions(found[0]), blocks["BLOCK_M"] * blocks["BLOCK_N"] / (32 * built[0].warps)


def costs(widths: Sequence[int], chip: Chip) -> Iterator[dict[str, Any]]:
    for width in widths:
        plain, scores = forward(width, "identity")
        for name in sorted(ACTIVATIONS):
            counted, _ = forward(width, name)
            extra = {op: (counted[op] - plain[op]) / scores for op in counted | plain}
            total = sum(extra.values())
            seconds = max(4 * width / chip.flops, total / chip.instructions)
            yield {
                "width": width,
                "activation": name,
                "instructions_per_score": total,
                "by_instruction": {op: count for op, count in sorted(extra.items()) if abs(count) >= 0.1},
                "predicted_bound_tflops": 4 * width / seconds / 1e12,
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each activation and head width; with --out, write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", nargs="+", type=int, default=[32, 64, 128], help="of a head")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    chip, records = Chip(), []
    for record in costs(args.width, chip):
        records.append(record)
        print(
            f"D {record['width']:3d} {record['activation']:>10}: {record['instructions_per_score']:5.1f} instructions "
            f"a score; predicted bound on {chip.name} {record['predicted_bound_tflops']:4.0f} TFLOP/s",
            flush=True,
        )
    if args.out:
        report = {
            "benchmark": "activation_cost",
            "note": "counted in code compiled for sm_90; bounds are predictions from data sheets; nothing was run",
            "versions": versions("torch", "triton"),
            "results": records,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
