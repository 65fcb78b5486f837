"""What a device is called, for what is measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cpu_model() -> str:
    """As the system names it; empty where it does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def device_name(device: torch.device) -> str:
    """Of the chip, as the system names it, else the kind of device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return (cpu_model() if device.type == "cpu" else "") or device.type
