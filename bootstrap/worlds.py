"""Worlds: which sample the optimiser sees at which step.

A world is the only difference between the two runs of a pair. It is a pure function of the step,
so any step of any run can be replayed alone. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from bootstrap.randomness import Stream, permutation

BLOCK = 1_024  # consecutive stream ids; the unit in which the stream is ordered and read
STREAM_START = 1_000_000_000  # the first id of the split `stream`


@dataclass(frozen=True, kw_only=True)
class World:
    """An endless stream of positions in the seed's order that starts to repeat after `n_samples`.

    real:  n_samples = N, reshuffled on every pass after the first.
    ideal: n_samples = the whole pool, which the run is too short to exhaust.
    """

    n_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ValueError(f"n_samples={self.n_samples} must be at least 1")

    def positions(self, step: int, batch_size: int) -> Int[np.ndarray, " batch"]:
        """Positions at `step`; the first pass counts up, hence is shared by both worlds."""
        draw = step * batch_size + np.arange(batch_size)
        passes, slot = np.divmod(draw, self.n_samples)
        positions = slot.copy()
        for p in np.unique(passes[passes > 0]):
            order = pass_order(self.seed, int(p), self.n_samples)
            positions[passes == p] = order[slot[passes == p]]
        return positions

    def first_reuse_step(self, batch_size: int) -> int:
        """The step before which every batch is fresh, hence the same in both worlds: N // batch."""
        return self.n_samples // batch_size


@lru_cache(maxsize=4)
def pass_order(seed: int, p: int, n_samples: int) -> Int[np.ndarray, " n_samples"]:
    """The order in which pass `p` >= 1 visits the first `n_samples` positions."""
    return permutation(seed, Stream.ORDER, p, n=n_samples)


@dataclass(frozen=True, kw_only=True)
class SeedOrder:
    """The order in which a seed reads the pool: its blocks shuffled, each read in sequence."""

    pool_n_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.pool_n_samples < BLOCK or self.pool_n_samples % BLOCK:
            raise ValueError(
                f"pool_n_samples={self.pool_n_samples} must be a positive multiple of {BLOCK:,}:"
                " only whole blocks are used"
            )

    def n_drawn(self, n_samples: int) -> int:
        """How many samples of the stream the first `n_samples` of this order are taken from."""
        return n_samples

    def ids(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Global ids of these positions."""
        block, offset = np.divmod(positions, BLOCK)
        return (
            STREAM_START
            + block_order(self.seed, self.pool_n_samples // BLOCK)[block] * BLOCK
            + offset
        )


@lru_cache(maxsize=4)
def block_order(seed: int, n_blocks: int) -> Int[np.ndarray, " n_blocks"]:
    """Pass 0: the blocks of the pool, shuffled by the seed."""
    return permutation(seed, Stream.ORDER, 0, n=n_blocks)
