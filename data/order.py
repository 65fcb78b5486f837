"""The order in which rows are read: a pure function of (seed, epoch), with no table of the permutation.

A permutation of n rows is a keyed Feistel network on the smallest even power of two ≥ n, walked until it lands
inside n (format-preserving encryption by cycle walking). Any part of it can be computed alone: starting costs
nothing whatever n is, and every worker and rank agrees without talking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

_ROUNDS = 6
_AT_ONCE = 65_536  # places permuted together: a call costs as much as thousands of places


def permute(index: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Places ``index`` (int64, each < n) of the order of ``n`` rows: a bijection on 0 … n − 1."""
    half = max(1, -(-max(n - 1, 1).bit_length() // 2))
    keys = np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch]).generate_state(
        _ROUNDS, np.uint64
    )
    out = index.astype(np.uint64)
    todo = np.arange(out.size)
    while todo.size:
        out[todo] = _feistel(out[todo], np.uint64(half), keys)
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return left << half | right


class BatchOrder(Sampler[np.ndarray]):
    """Batches of row numbers for one rank; its whole state is (epoch, position).

    Args:
        rows: rows of the split.
        batch_size: rows of one batch of one rank.
        shuffle: by (seed, epoch); otherwise in order.
        drop_last: leave out a last batch that is not full.
        rank, world: batch j of the epoch belongs to rank j mod world; every row is read exactly once
            (with ``drop_last`` all ranks get the same number of batches).
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be ≥ 1, got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0 … world − 1, got rank {rank} of {world}")
        self.rows, self.batch_size = rows, batch_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.world = rank, world
        self.epoch, self.position = 0, 0
        self._ready = True  # the next iteration starts where epoch and position say

    @property
    def sampler(self) -> BatchOrder:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` from its beginning, unless it is under way. Lightning calls it before every epoch."""
        if epoch != self.epoch:
            self.load_state_dict({"epoch": epoch, "position": 0})

    def __len__(self) -> int:
        if self.drop_last:
            return self.rows // self.batch_size // self.world
        batches = -(-self.rows // self.batch_size)
        return len(range(self.rank, batches, self.world))

    def __iter__(self) -> Iterator[np.ndarray]:
        # A new iteration is a new epoch from its beginning, however far the last one came, unless a state was restored.
        if not self._ready or self.position >= len(self) > 0:
            self.epoch, self.position = self.epoch + 1, 0
        self._ready = False
        step = max(_AT_ONCE // self.batch_size, 1)
        for first in range(self.position, len(self), step):
            positions = range(first, min(first + step, len(self)))
            for position, batch in zip(positions, self._batches(positions), strict=True):
                self.position = position + 1  # before it is handed out: a saved state names the next batch
                yield batch

    def _batches(self, positions: range) -> list[np.ndarray]:
        """The rows of the batches at ``positions`` of this rank's epoch."""
        starts = (np.array(positions) * self.world + self.rank) * self.batch_size
        index = (starts[:, None] + np.arange(self.batch_size)).ravel()
        index = index[index < self.rows]  # only the last batch of all is short
        if self.shuffle:
            index = permute(index, self.rows, self.seed, self.epoch)
        return np.split(index, np.arange(1, len(positions)) * self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self._ready = True
