"""Kunlun's ops on packed sequences, usable without the rest of the project.

Every op takes ``values, offsets, max_length``: sequence b is ``values[offsets[b]:offsets[b + 1]]``.
``backend`` is an argument; ``None`` chooses by the device of the input (:mod:`kernels.backends`).
"""

from kernels.gdpa import gdpa
from kernels.gdpa_block import gdpa_block
from kernels.rote import Rotation, rote
from kernels.seed_attention import seed_attention
from kernels.segment_matmul import segment_matmul
from kernels.window_attention import window_attention

__all__ = ["Rotation", "gdpa", "gdpa_block", "rote", "seed_attention", "segment_matmul", "window_attention"]
