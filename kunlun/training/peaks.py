"""Peak FLOP/s of a device in the precision used: the denominator of model FLOPs utilisation.

A table for chips, a measured matmul for CPUs. Lightning's own table (`get_available_flops`) cannot be used: it has the
H200 with sparsity, the H100 NVL as a pair, half of bfloat16 on GeForce cards, and no Blackwell and no AMD chip.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

# Dense TFLOP/s of matrix products with float32 accumulation, as the makers' data sheets state them without sparsity, in
# float32, TF32, bfloat16 and float16; None: the chip has no such mode. The first name that is found wins.
_CHIPS: list[tuple[str, str, tuple[float | None, float | None, float | None, float | None]]] = [
    (r"GB200", "NVIDIA GB200", (80, 1250, 2500, 2500)),
    (r"B200", "NVIDIA B200", (75, 1125, 2250, 2250)),
    (r"B300", "NVIDIA B300", (75, 1125, 2250, 2250)),
    (r"GH200", "NVIDIA GH200", (67, 494.7, 989.4, 989.4)),
    (r"H200 NVL", "NVIDIA H200 NVL", (60, 417.5, 835.5, 835.5)),
    (r"H200", "NVIDIA H200", (67, 494.7, 989.4, 989.4)),
    (r"H100 NVL", "NVIDIA H100 NVL", (60, 417.5, 835.5, 835.5)),
    (r"H100 PCIe", "NVIDIA H100 PCIe", (51.2, 378, 756, 756)),
    (r"H100", "NVIDIA H100", (67, 494.7, 989.4, 989.4)),
    (r"H20", "NVIDIA H20", (44, 74, 148, 148)),
    (r"A100", "NVIDIA A100", (19.5, 156, 312, 312)),
    (r"A40", "NVIDIA A40", (37.4, 74.8, 149.7, 149.7)),
    (r"A30", "NVIDIA A30", (10.3, 82, 165, 165)),
    (r"A10", "NVIDIA A10", (31.2, 62.5, 125, 125)),
    (r"L40S", "NVIDIA L40S", (91.6, 183, 362, 362)),
    (r"L40", "NVIDIA L40", (90.5, 90.5, 181, 181)),
    (r"L4", "NVIDIA L4", (30.3, 60, 121, 121)),
    (r"RTX 4090", "NVIDIA RTX 4090", (82.6, 82.6, 165.2, 165.2)),
    (r"RTX 3090", "NVIDIA RTX 3090", (35.6, 35.6, 71, 71)),
    (r"T4", "NVIDIA T4", (8.1, None, None, 65)),
    (r"V100[- ]SXM\w*", "NVIDIA V100 SXM", (15.7, None, None, 125)),
    (r"V100[- ]PCIe?", "NVIDIA V100 PCIe", (14, None, None, 112)),
    (r"MI300X", "AMD MI300X", (163.4, 653.7, 1307.4, 1307.4)),
    (r"MI325X", "AMD MI325X", (163.4, 653.7, 1307.4, 1307.4)),
]
# With one of these words the name is that of a slice of the chip, or of another one.
_OTHER_CHIPS = {"MIG", "Laptop", "Max-Q", "Ti", "D"}
_COLUMNS = ("fp32", "tf32", "bf16", "fp16")
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Many threads need large matrices to keep busy; small products are over before other work on the machine interrupts.
_MATMUL_SIZES = (256, 1024)
_MATMUL_SECONDS = 0.3


@dataclass(frozen=True)
class Peak:
    """``flops`` per second, None if unknown; ``source`` says where it is from, or why it is not known."""

    flops: float | None
    source: str


def peak_of(device: torch.device, precision: str, given: float | None = None) -> Peak:
    """The peak of ``device`` for matrix products in a precision of Lightning's, such as ``bf16-mixed``.

    On a CPU it is the best of the matmuls that fit into 0.3 s, with the threads in use. ``given`` overrides all else.
    """
    if given is not None:
        return Peak(given, "given")
    number = number_format(device, precision)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        source = f"measured matmul, {threads} thread{'s' * (threads > 1)}, {number}"
        return Peak(_measured_matmul(_DTYPES[number]), source)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for pattern, chip, speeds in _CHIPS:
        if re.search(rf"\b{pattern}\b", name, re.IGNORECASE) and not _OTHER_CHIPS & set(name.split()):
            speed = dict(zip(_COLUMNS, speeds, strict=True)).get(number)
            if speed is not None:
                return Peak(speed * 1e12, f"table: {chip}, {number}")
            break
    return Peak(None, f"unknown for {name} in {number}: no MFU, unless peak_flops is given")


def number_format(device: torch.device, precision: str) -> str:
    """fp64, fp32, tf32, bf16 or fp16: what matrix products are computed in."""
    for prefix, number in (("64", "fp64"), ("bf16", "bf16"), ("16", "fp16")):
        if str(precision).startswith(prefix):
            return number
    is_tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if is_tf32 else "fp32"


def _measured_matmul(dtype: torch.dtype) -> float:
    return max(_matmul_speed(size, dtype, _MATMUL_SECONDS / len(_MATMUL_SIZES)) for size in _MATMUL_SIZES)


def _matmul_speed(size: int, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the fastest product of two square matrices among those that ``seconds`` allow, at least one."""
    a, b = torch.ones(2, size, size, dtype=dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        torch.mm(a, b)
        while True:
            started = time.perf_counter()
            torch.mm(a, b)
            ended = time.perf_counter()
            best = min(best, ended - started)
            if ended > until:
                return 2 * size**3 / best
