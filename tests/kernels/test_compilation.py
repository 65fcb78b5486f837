"""The kernels compile for every chip they have block sizes for, fit it, and on sm_90 do not spill.

Each entry of the tables of block sizes is compiled for its target at the widest head it serves, in bfloat16 and in
float32; `python -m benchmarks.kernel_resources` compiles all head widths, dtypes and variants. Compiling wants Triton
without its interpreter, which the other tests use, so it happens in processes of its own. One class for each target,
which pytest-xdist hands to its workers apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernel_resources import OPS, problems
from kernels.compilation import TARGETS, compiling_for
from kernels.gdpa import blocks as gdpa
from kernels.window_attention import triton as window_attention

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def table(module: Any, target: str, dtype: str) -> dict[int, Any]:
    return module._FLOAT32 if dtype == "float32" else module._HALF.get(target, module._HALF["other"])


def entries(target: str, dtype: str) -> Iterator[tuple[Any, ...]]:
    """The tables as they show in a report: op, kernel, head width, query and key rows, warps, stages."""
    kernels = {"forward": "_forward", "stream": "_forward", "q": "_backward_q"}
    for width, kinds in table(gdpa, target, dtype).items():
        for kind, b in kinds.items():
            plain, _, variant = kind.partition(", ")
            op = "gdpa_block" if variant == "norm" else "gdpa"
            yield op, kernels.get(plain, "_backward_kv"), width, b.m, b.n, b.warps, b.stages
    for width, chosen in table(window_attention, target, dtype).items():
        for kernel in ("forward", "queries", "keys"):
            b = getattr(chosen, kernel)
            name = "_forward" if kernel == "forward" else f"_backward_{kernel}"
            yield "window_attention", name, width, b.m, b.n, b.warps, b.stages


class Compiled:
    target: str
    dtypes: tuple[str, ...] = ("bfloat16", "float32")

    @pytest.mark.slow
    def test_every_block_size_fits(self, tmp_path: Path) -> None:
        out = tmp_path / "report.json"
        options = ("--brief", "--target", self.target, "--dtype", *self.dtypes, "--out", str(out))
        done = run("-m", "benchmarks.kernel_resources", *options)
        wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
        assert done.returncode == 0, "\n".join([*wrong, done.stderr])
        records = json.loads(out.read_text())["results"]
        assert not [record for record in records if problems(record)]
        for dtype in self.dtypes:
            of_dtype = [record for record in records if record["dtype"] == dtype]
            assert {record["op"] for record in of_dtype} == set(OPS)
            reached = {
                (r["op"], r["name"], r["width"], b.get("BLOCK_M"), b.get("BLOCK_N"), r["warps"], r["stages"])
                for r in of_dtype
                for b in (r["blocks"],)
            }
            assert not [entry for entry in entries(self.target, dtype) if entry not in reached]


# The longest first, so that two workers share them evenly.
class TestSm100(Compiled):
    target = "sm_100"


class TestSm90(Compiled):
    target = "sm_90"


class TestSm80(Compiled):
    target = "sm_80"


class TestGfx942(Compiled):
    target = "gfx942"


class TestSm89(Compiled):
    """Stands for the chips without a table of their own; in float32 it is as sm_80, within the 64 KB of gfx942."""

    target = "sm_89"
    dtypes = ("bfloat16",)


def test_no_target_is_left_out() -> None:
    assert {c.target for c in Compiled.__subclasses__()} == set(TARGETS)
    assert {*gdpa._HALF, *window_attention._HALF} <= {*TARGETS, "other"}


TOO_LARGE = """
from benchmarks.kernel_resources import Chosen, gdpa_case
from kernels.compilation import compiling_for
from kernels.gdpa import triton as gdpa
gdpa.configuration = lambda *_: gdpa.Blocks(128, 256, 4, 2)
case, _ = gdpa_case(Chosen("sm_90", "bfloat16"), 128, 256)
with compiling_for("sm_90") as built:
    case.launch(*case.arguments)
(kernel,) = built
assert kernel.blocks == {"BLOCK_D": 128, "BLOCK_M": 128, "BLOCK_N": 256} and kernel.products == 2, kernel
print(kernel.registers, kernel.local_bytes)
"""


def test_spills_of_a_block_that_is_too_large_are_seen() -> None:
    done = run("-c", TOO_LARGE)
    assert done.returncode == 0, done.stderr
    registers, local = map(int, done.stdout.split())
    assert registers == 255
    assert local > 100


GOOD = {
    "target": "sm_90",
    "dtype": "bfloat16",
    "shared_bytes": 227 << 10,
    "tensor_memory": 0,
    "local_bytes": 0,
    "products": 2,
    "matmul_instructions": {"wgmma.mma_async": 4, "tcgen05.mma": 0, "mma.sync": 0},
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"shared_bytes": (227 << 10) + 1}, "shared memory"),
        ({"tensor_memory": 513}, "tensor memory"),
        ({"local_bytes": 8}, "spill"),
        ({"local_bytes": 8, "target": "sm_80", "shared_bytes": 0, "products": 0}, None),
        ({"matmul_instructions": {"wgmma.mma_async": 0, "mma.sync": 4}}, "no wgmma"),
        ({"matmul_instructions": {"wgmma.mma_async": 0}, "products": 0}, None),
        ({"dtype": "float32"}, "not exact"),
        ({"dtype": "float32", "matmul_instructions": {"wgmma.mma_async": 0}}, None),
        ({"target": "sm_80", "shared_bytes": 163 << 10}, "no mma.sync"),
        ({"target": "gfx942", "shared_bytes": 64 << 10, "matmul_instructions": {"v_mfma": 0}}, "no v_mfma"),
    ],
    ids=str,
)
def test_problems_are_found(change: dict[str, Any], problem: str | None) -> None:
    found = problems(GOOD | change)
    assert not found if problem is None else problem in ", ".join(found)


def test_the_interpreter_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), compiling_for("sm_90"):
        pass


def test_afterwards_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    before = driver._active, JITFunction.run
    inside = []

    def fail() -> None:
        with compiling_for("sm_90"):
            inside.append((driver.active.get_current_target().arch, JITFunction.run is before[1]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [(90, False)]
    assert (driver._active, JITFunction.run) == before
    with pytest.raises(ValueError, match=r"unknown target 'sm_91'.*sm_90"), compiling_for("sm_91"):
        pass
    assert (driver._active, JITFunction.run) == before
