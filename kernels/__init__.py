"""Kunlun's ops on packed sequences, usable without the rest of the project.

Every op takes ``values, offsets, max_length``: sequence b is ``values[offsets[b]:offsets[b + 1]]``.
``backend`` is an argument; ``None`` chooses by the device of the input.
"""

from kernels.gdpa import gdpa
from kernels.packed import segment_matmul
from kernels.rote import Rotation, rote
from kernels.seed_attention import seed_attention
from kernels.window_attention import window_attention

__all__ = ["Rotation", "gdpa", "rote", "seed_attention", "segment_matmul", "window_attention"]
