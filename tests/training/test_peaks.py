"""Peaks: the table by the names that drivers give, what is unknown, what is given, and a matmul on this CPU."""

from __future__ import annotations

import time

import pytest
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from kunlun.training.peaks import number_format, peak_of

GPU = torch.device("cuda")
CPU = torch.device("cpu")


def named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)


@pytest.mark.parametrize(
    ("name", "precision", "tera", "source"),
    [
        ("NVIDIA H200", "bf16-mixed", 989.4, "table: NVIDIA H200, bf16"),
        ("NVIDIA H200", "32-true", 67, "table: NVIDIA H200, fp32"),
        ("NVIDIA H200 NVL", "bf16-true", 835.5, "table: NVIDIA H200 NVL, bf16"),
        ("NVIDIA H100 80GB HBM3", "16-mixed", 989.4, "table: NVIDIA H100, fp16"),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756, "table: NVIDIA H100 PCIe, bf16"),
        ("NVIDIA B200", "bf16-mixed", 2250, "table: NVIDIA B200, bf16"),
        ("NVIDIA GB200", "bf16-mixed", 2500, "table: NVIDIA GB200, bf16"),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312, "table: NVIDIA A100, bf16"),
        ("NVIDIA L4", "bf16-mixed", 121, "table: NVIDIA L4, bf16"),
        ("NVIDIA L40S", "bf16-mixed", 362, "table: NVIDIA L40S, bf16"),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125, "table: NVIDIA V100 SXM, fp16"),
        ("AMD Instinct MI300X", "bf16-mixed", 1307.4, "table: AMD MI300X, bf16"),
    ],
)
def test_known_chips(name, precision, tera, source, monkeypatch):
    named(monkeypatch, name)
    peak = peak_of(GPU, precision)
    assert peak.flops == pytest.approx(tera * 1e12)
    assert peak.source == source


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA Z999", "bf16-mixed"),
        ("NVIDIA A10G", "bf16-mixed"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed"),  # a seventh of the chip
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16-mixed"),
        ("Tesla T4", "bf16-mixed"),  # it has no such mode
        ("NVIDIA H200", "64-true"),
    ],
)
def test_what_is_unknown_is_said_with_the_way_out(name, precision, monkeypatch):
    named(monkeypatch, name)
    peak = peak_of(GPU, precision)
    assert peak.flops is None
    assert name in peak.source
    assert "peak_flops" in peak.source
    assert peak_of(GPU, precision, 5e12).flops == 5e12
    assert peak_of(GPU, precision, 5e12).source == "given"


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"])
def test_where_lightnings_table_is_right_ours_agrees(name, monkeypatch):
    named(monkeypatch, name)
    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)):
        assert peak_of(GPU, precision).flops == pytest.approx(get_available_flops(GPU, dtype), rel=0.01)


def test_float32_products_are_tf32_where_that_is_switched_on(monkeypatch):
    named(monkeypatch, "NVIDIA H200")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_of(GPU, "32-true").source == "table: NVIDIA H200, tf32"
    assert number_format(CPU, "32-true") == "fp32"


def test_the_peak_of_a_cpu_is_above_any_matmul_and_not_far():
    """Other work on the machine only ever slows a matmul down, so a few tries decide."""
    for _ in range(8):
        started = time.perf_counter()
        peak = peak_of(CPU, "32-true")
        assert time.perf_counter() - started < 10
        a = torch.ones(320, 320)
        times = []
        for _ in range(50):
            started = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - started)
        ratio = 2 * 320**3 / min(times) / peak.flops
        if 0.5 < ratio < 1.3:
            break
    assert 0.5 < ratio < 1.3
    assert peak.source == f"measured matmul, {torch.get_num_threads()} thread, fp32"
