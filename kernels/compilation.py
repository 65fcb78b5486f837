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
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes a block of threads may use: CUDA C programming guide, technical specifications per compute capability (163 and
# 227 KB); AMD CDNA3 ISA (64 KB of LDS).
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# Per multiprocessor: 32-bit registers, threads, shared memory (same source).
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32
SHARED_PER_SM = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}


@dataclass(frozen=True)
class Built:
    """One kernel, compiled. ``registers`` and ``local_bytes`` (stack and spills) are per thread; None on AMD."""

    name: str
    target: str
    warps: int
    shared_bytes: int
    registers: int | None
    local_bytes: int | None
    matmul_instructions: dict[str, int]

    @property
    def blocks_per_sm(self) -> int | None:
        """How many blocks fit on one multiprocessor by registers, shared memory and threads: a prediction."""
        if self.registers is None:
            return None
        threads = 32 * self.warps
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = SHARED_PER_SM[self.target] // (self.shared_bytes + 1024)  # 1 KB of each block is the system's
        return min(by_registers, by_shared, THREADS // threads, BLOCKS)


class _Driver:
    """What Triton asks of the driver before a kernel is launched."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling_for(target: str) -> Iterator[list[Built]]:
    """Launches inside compile for ``target`` instead of running; the list fills with what they built.

    RuntimeError in the interpreter, and on a machine whose own GPU Triton has already been asked for.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted here and cannot be compiled")
    built: list[Built] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        self.device_caches.clear()  # they are by device number, and every target here is device 0
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        built.append(_describe(compiled, target))
        return compiled

    JITFunction.run = compile_only
    driver.set_active(_Driver(TARGETS[target]))
    try:
        yield built
    finally:
        JITFunction.run = run
        driver._active = active


def _describe(compiled: Any, target: str) -> Built:
    registers = local = None
    if "cubin" in compiled.asm:
        registers, local = _resources(compiled.asm["cubin"])
        code = compiled.asm["ptx"]
        counts = {
            name: len(re.findall(rf"\b{name}\b", code)) for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
        }
    else:
        counts = {"mfma": len(re.findall(r"\bv_mfma", compiled.asm["amdgcn"]))}
    metadata = compiled.metadata
    return Built(metadata.name, target, metadata.num_warps, metadata.shared, registers, local, counts)


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
