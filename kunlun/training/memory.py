"""The most memory in use: what torch allocated on a GPU, the resident size of the process on a CPU."""

from __future__ import annotations

import resource
import sys

import torch

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_bytes(device: torch.device) -> int:
    """Since the process began, or since torch was told to forget."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


class PeakMemory:
    """The most memory in use since this was made.

    On a GPU all that torch allocated; on a CPU only the growth of the process's peak, which leaves out the parameters
    and whatever fits into memory that was used before and returned.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        if device.type == "cuda":
            self.source = "CUDA max_memory_allocated while training"
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self.source = "growth of the peak RSS while training"
            self._before = peak_bytes(device)

    def bytes(self) -> int:
        return peak_bytes(self.device) - self._before
