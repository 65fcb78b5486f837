"""Compile the kernels for a GPU that is not here: ``with compiling_for("sm_90") as built: …call the launchers…``.

Inside, a launch compiles for the target through the very code that launches on that target, with the tensors given (on
a CPU), and runs nothing. Not in the interpreter: unset ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes a block of threads may use: CUDA C programming guide, technical specifications per compute capability (163, 99
# and 227 KB); AMD CDNA3 ISA (64 KB of LDS).
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
TENSOR_MEMORY = 512  # columns, on sm_100
# Per multiprocessor: 32-bit registers; shared memory, threads and blocks by chip (same source).
REGISTERS = 65536
PER_SM = {
    "sm_80": (164 << 10, 2048, 32),
    "sm_89": (100 << 10, 1536, 24),
    "sm_90": (228 << 10, 2048, 32),
    "sm_100": (228 << 10, 2048, 32),
}


@dataclass(frozen=True)
class Built:
    """One kernel, compiled.

    blocks: its block sizes, as BLOCK_M: 64 · registers, local_bytes: of one thread, the latter its stack and spills ·
    tensor_memory: columns, on sm_100 · products: products of matrices in its source · matmul_instructions: what they
    became, by instruction.
    """

    name: str
    target: str
    blocks: dict[str, int]
    warps: int
    stages: int
    shared_bytes: int
    registers: int
    local_bytes: int
    tensor_memory: int
    products: int
    matmul_instructions: dict[str, int]

    @property
    def blocks_per_sm(self) -> int | None:
        """How many blocks fit on one multiprocessor by registers, shared memory and threads: a prediction; NVIDIA."""
        if self.target not in PER_SM:
            return None
        shared, most_threads, most_blocks = PER_SM[self.target]
        threads = 32 * self.warps
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = shared // (self.shared_bytes + 1024)  # 1 KB of each block is the system's
        return min(by_registers, by_shared, most_threads // threads, most_blocks)


class _Driver:
    """What Triton asks of the driver before a kernel is launched."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._target]

    def get_current_device(self) -> int:
        """A number that no GPU has: functions keep what they compiled by it."""
        return -1 - list(TARGETS).index(self._target)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling_for(target: str) -> Iterator[list[Built]]:
    """Launches inside compile for ``target`` instead of running; the list fills with what they built.

    RuntimeError in the interpreter, ValueError for an unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted here and cannot be compiled")
    built: list[Built] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        built.append(_describe(compiled, target))
        return compiled

    JITFunction.run = compile_only
    driver.set_active(_Driver(target))
    try:
        yield built
    finally:
        JITFunction.run = run
        driver._active = active


def _describe(compiled: Any, target: str) -> Built:
    metadata, source = compiled.metadata, compiled.src
    if "cubin" in compiled.asm:
        registers, local = _resources(compiled.asm["cubin"])
        code, instructions = compiled.asm["ptx"], ["wgmma.mma_async", "tcgen05.mma", "mma.sync"]
    else:
        # The metadata at the end of the assembly, in YAML: LLVM's AMDGPU guide, code object metadata.
        code, instructions = compiled.asm["amdgcn"], ["v_mfma"]
        registers, local = (
            int(re.findall(rf"\.{key}: +(\d+)", code)[-1]) for key in ("vgpr_count", "private_segment_fixed_size")
        )
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
    return Built(
        name=metadata.name,
        target=target,
        blocks={name: value for name, value in constants.items() if name.startswith("BLOCK_")},
        warps=metadata.num_warps,
        stages=metadata.num_stages,
        shared_bytes=metadata.shared,
        registers=registers,
        local_bytes=local,
        tensor_memory=getattr(metadata, "tmem_size", None) or 0,
        products=compiled.asm["ttir"].count("tt.dot "),
        matmul_instructions={name: len(re.findall(rf"\b{name}", code)) for name in instructions},
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, as cuobjdump (it comes with triton) reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump: no resource usage in {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)
