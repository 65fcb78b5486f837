"""Counter-based random integers: every draw is a pure function of a key and a counter.

The mixer is the finaliser of splitmix64 (Steele, Lea and Flood 2014) in int64, whose products wrap around modulo 2^64
on every device. Only integer operations are used, so that CPU and GPU agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: counters times this visit every word once
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits as ``word``."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


_STEP = _signed(_GOLDEN)
_FIRST, _SECOND = (_signed(m) for m in _MULTIPLIERS)


def bits(word: Tensor, start: int, count: int) -> Tensor:
    """Bits ``start … start + count − 1`` of each int64 as a non-negative int64.

    ``>>`` of a negative int64 fills with ones; the mask takes them away.
    """
    out = word >> start
    out &= (1 << count) - 1  # in place, here and below: half of the time goes to and from memory
    return out


def draw(key: Tensor | int, counter: Tensor | int) -> Tensor:
    """64 random bits per element for ``key`` at ``counter``, broadcast together (one is a tensor), as an int64.

    The result may serve as a key again: draws of its counters are independent bits for another purpose.
    """
    step = _signed(counter * _STEP) if isinstance(counter, int) else counter * _STEP
    word = torch.as_tensor(key + step)
    word ^= bits(word, 30, 34)
    word *= _FIRST
    word ^= bits(word, 27, 37)
    word *= _SECOND
    word ^= bits(word, 31, 33)
    return word


def below(word: Tensor, n: Tensor | int) -> Tensor:
    """Uniform integers in [0, n) from the upper 31 bits of each word; n ≤ 2^31, bias at most n / 2^31."""
    out = bits(word, 33, 31) * n
    out >>= 31
    return out


def below_small(word: Tensor, start: int, n: Tensor | int) -> Tensor:
    """Uniform integers in [0, n) from the 16 bits at ``start``; for n far below 2^16, bias at most n / 2^16."""
    out = bits(word, start, 16) * n
    out >>= 16
    return out


def python_draw(key: int, counter: int) -> int:
    """``draw`` for Python integers: the same bits, as an unsigned word."""
    word = (counter * _GOLDEN + key) % _WORD
    word = (word ^ (word >> 30)) * _MULTIPLIERS[0] % _WORD
    word = (word ^ (word >> 27)) * _MULTIPLIERS[1] % _WORD
    return word ^ (word >> 31)


def make_key(seed: int, purpose: int) -> int:
    """An int64 key for one purpose of one seed."""
    return _signed(python_draw(python_draw(0, seed), purpose))
