"""A stream from which choices keep some samples only: which, and the order in which a seed reads.

The real world's N samples are the first N that are kept, and the ideal world has all of them. No
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from bootstrap.interventions import Choice, is_wrapped
from bootstrap.pool import Pool
from bootstrap.worlds import BLOCK, STREAM_START, SeedOrder

CHUNK = 16 * BLOCK  # samples read at once


def has_filter(choices: Sequence[Choice]) -> bool:
    """Whether some samples of the stream may be left out."""
    return any(is_wrapped(choice, "keeps") for choice in choices)


@lru_cache(maxsize=8)
def kept_samples(
    data: Path, choices: tuple[Choice, ...], n: int, seed: int | None = None
) -> Bool[np.ndarray, " n"]:
    """Which of the first `n` samples of a stream stay; a choice sees what those before made.

    With a seed those of that seed, where a choice depends on it.
    """
    with closing(Pool(data)) as pool:
        return kept_of(pool, choices, n, seed)


def kept_of(
    pool: Pool, choices: Sequence[Choice], n: int, seed: int | None = None
) -> Bool[np.ndarray, " n"]:
    """Which of the first `n` samples of a split stay; images are read if a choice asks for them."""
    seams, parts = ("keeps", "wrap_columns"), []
    acting = [choice for choice in choices if any(is_wrapped(choice, seam) for seam in seams)]
    with_images = any(choice.looks_at_images for choice in acting)
    for columns in pool.chunks(CHUNK, with_images=with_images):
        is_kept = np.ones(len(columns), dtype=bool)
        for choice in acting:
            is_kept &= choice.keeps_for(seed, columns, pool.manifest.n_classes)
            columns = choice.wrap_columns(columns, pool.split, pool.manifest.n_classes)
        parts.append(is_kept)
        if len(parts) * CHUNK >= n:
            break
    return np.concatenate(parts)[:n]


def count_kept(choices: tuple[Choice, ...], data: Path, n: int) -> int | None:
    """How many of the first `n` samples stay, for every seed; None if no choice leaves any out."""
    if not has_filter(choices):
        return None
    seeds: set[int | None] = {seed for choice in choices for seed in choice.own_seeds}
    return min(int(kept_samples(data, choices, n, seed).sum()) for seed in seeds or {None})


@dataclass(frozen=True, kw_only=True)
class KeptOrder(SeedOrder):
    """The order in which a seed reads what is kept: `SeedOrder` without the rest."""

    data: Path
    choices: tuple[Choice, ...]
    first: int = 0  # so many kept samples come before this order

    @cached_property
    def places(self) -> Int[np.ndarray, " n_kept"]:
        """Of each kept sample its place in the order of all."""
        ids = SeedOrder.ids(self, np.arange(self.pool_n_samples))
        seed = self.seed if any(choice.n_own for choice in self.choices) else None
        is_kept = kept_samples(self.data, self.choices, self.pool_n_samples, seed)
        return np.flatnonzero(is_kept[ids - STREAM_START])[self.first :]

    def ids(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Global ids of these positions among what is kept."""
        return SeedOrder.ids(self, self.places[positions])

    def n_drawn(self, n_samples: int) -> int:
        """See `SeedOrder`: those that are left out count too."""
        return int(self.places[n_samples - 1]) + 1
