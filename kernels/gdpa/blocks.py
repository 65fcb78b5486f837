"""The block sizes of GDPA's kernels, by chip, head width and kind of kernel, and the ways to make its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """Block sizes of one kernel: query rows, key rows (at most), warps, stages of its pipeline.

    registers: of a thread, at most (NVIDIA). Left to itself, ptxas spills a few to make room for one more block.
    """

    m: int
    n: int
    warps: int
    stages: int
    registers: int | None = None

    def options(self, target: str) -> dict[str, int]:
        """What Triton is told beside the block sizes."""
        chosen = {"num_warps": self.warps, "num_stages": self.stages}
        return chosen | {"maxnreg": self.registers} if self.registers and target.startswith("sm_") else chosen


# The ways to make the gradients, best first; a letter is a gradient (kv: dK and dV in one program). A q beside others
# wants all keys in one block, since a dQ is written once: 5 products of matrices, 6, 7 and 8.
PLANS = (("kvq",), ("v", "kq"), ("kv", "q"), ("v", "k", "q"))

# Block sizes by what a chip has room for, checked by compiling; none was tuned by measurement. By the widest head and
# kind: an entry of a plan, the forward with all keys in shared memory, or the one that streams them (where it is not
# given: the same); ", norm" where queries are normalised on the way, ", window" with a window, if they differ. A kind
# that does not fit is left out.
_HALF: dict[str, dict[int, dict[str, Blocks]]] = {
    "sm_80": {
        64: {
            "forward": Blocks(64, 128, 4, 2),
            "kvq": Blocks(32, 128, 8, 2),
            "v": Blocks(64, 256, 8, 2),
            "kq": Blocks(32, 256, 8, 2),
            "kv": Blocks(64, 128, 8, 2),
            "q": Blocks(128, 64, 8, 2),
        },
        128: {
            "forward": Blocks(64, 128, 8, 1),
            "kvq": Blocks(64, 64, 8, 1),
            "kv": Blocks(64, 64, 8, 1),
            "q": Blocks(64, 64, 4, 1),
        },
        256: {"forward": Blocks(64, 128, 8, 1), "kv": Blocks(32, 32, 4, 1), "q": Blocks(32, 32, 4, 1)},
    },
    "sm_90": {
        64: {
            "forward": Blocks(128, 256, 8, 2),
            "forward, norm": Blocks(128, 128, 8, 2),
            "stream": Blocks(128, 128, 8, 2),
            "stream, norm": Blocks(128, 64, 8, 2),
            "kvq": Blocks(64, 128, 8, 2),
            "kvq, norm": Blocks(32, 128, 8, 2),
            "v": Blocks(64, 256, 8, 2),
            "v, norm": Blocks(32, 256, 8, 2),
            "kq": Blocks(32, 256, 8, 2),
            "kq, norm": Blocks(32, 256, 8, 1),
            "kv": Blocks(64, 128, 8, 2),
            "kv, norm": Blocks(32, 128, 8, 2),
            "kv, window": Blocks(32, 128, 8, 2),
            "q": Blocks(128, 64, 8, 2),
        },
        128: {
            "forward": Blocks(128, 256, 8, 2),
            "forward, norm": Blocks(64, 128, 8, 2),
            "stream": Blocks(128, 64, 8, 2),
            "stream, norm": Blocks(64, 64, 8, 2),
            "kvq": Blocks(32, 128, 8, 1),
            "kvq, norm": Blocks(16, 128, 8, 1),
            "kv": Blocks(32, 128, 8, 2),
            "kv, norm": Blocks(32, 128, 8, 1),
            "q": Blocks(128, 64, 8, 2),
            "q, norm": Blocks(128, 32, 8, 2),
        },
        256: {
            "forward": Blocks(64, 128, 8, 1),
            "stream": Blocks(64, 64, 8, 1),
            "v": Blocks(32, 128, 8, 2),
            "k": Blocks(32, 128, 8, 2),
            "q": Blocks(128, 32, 8, 1),
        },
    },
    "sm_100": {
        64: {
            "forward": Blocks(128, 256, 8, 2),
            "stream": Blocks(128, 128, 8, 2),
            "kvq": Blocks(64, 128, 8, 1),
            "v": Blocks(64, 256, 8, 2),
            "kq": Blocks(32, 256, 8, 2),
            "kv": Blocks(64, 128, 8, 2),
            "q": Blocks(128, 64, 8, 2),
        },
        128: {
            "forward": Blocks(64, 128, 8, 1),
            "kvq": Blocks(64, 64, 8, 1),
            "v": Blocks(64, 256, 8, 1),
            "kq": Blocks(32, 256, 8, 2),
            "kq, norm": Blocks(32, 256, 8, 1),
            "kv": Blocks(64, 128, 8, 1),
            "q": Blocks(128, 64, 8, 1),
        },
        256: {
            "forward": Blocks(64, 128, 8, 1),
            "v": Blocks(64, 64, 8, 1),
            "k": Blocks(64, 64, 8, 1),
            "q": Blocks(64, 64, 8, 1),
        },
    },
    "gfx942": {
        128: {
            "forward": Blocks(128, 64, 8, 1),
            "kvq": Blocks(64, 64, 4, 1),
            "kv": Blocks(64, 64, 4, 1),
            "q": Blocks(64, 64, 4, 1),
        },
        256: {"forward": Blocks(64, 64, 8, 1), "kv": Blocks(32, 32, 8, 1), "q": Blocks(64, 32, 8, 1)},
    },
    # Any other chip: 96 KB of shared memory or more.
    "other": {
        128: {
            "forward": Blocks(64, 64, 4, 1),
            "kvq": Blocks(64, 64, 8, 1),
            "kv": Blocks(64, 64, 8, 1),
            "q": Blocks(64, 64, 4, 1),
        },
        256: {"forward": Blocks(64, 32, 8, 1), "kv": Blocks(32, 32, 4, 1), "q": Blocks(32, 32, 4, 1)},
    },
}
# Exact products without tensor cores, the same on every chip.
_FLOAT32: dict[int, dict[str, Blocks]] = {
    64: {
        "forward": Blocks(32, 64, 8, 1, 128),
        "kvq": Blocks(16, 64, 8, 1, 168),
        "kv": Blocks(16, 64, 8, 1, 128),
        "q": Blocks(32, 32, 4, 1, 128),
    },
    128: {
        "forward": Blocks(32, 32, 4, 1, 168),
        "kv": Blocks(16, 32, 8, 1, 128),
        "q": Blocks(32, 32, 4, 1, 128),
    },
    256: {
        "forward": Blocks(16, 16, 8, 1, 128),
        "kv": Blocks(16, 16, 4, 1, 168),
        "q": Blocks(16, 16, 4, 1, 168),
    },
}


def configuration(kind: str, target: str, width: int, dtype: torch.dtype) -> Blocks | None:
    """Block sizes of ``kind`` for heads of ``width``; None where the kind is not worth having there."""
    if target == "interpreter":
        return Blocks(16, 32 if kind in ("v", "kq") else 16, 4, 1)
    table = _FLOAT32 if dtype == torch.float32 else _HALF.get(target, _HALF["other"])
    kinds = table[min(widest for widest in table if width <= widest)]
    plain = kind.split(",")[0]
    return kinds.get(kind) or kinds.get(plain) or (kinds["forward"] if plain == "stream" else None)
