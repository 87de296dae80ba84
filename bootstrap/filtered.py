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


@lru_cache(maxsize=2)
def kept_samples(data: Path, choices: tuple[Choice, ...], n: int) -> Bool[np.ndarray, " n"]:
    """Which of the first `n` samples of a stream stay; a choice sees what those before made."""
    parts = []
    with closing(Pool(data)) as pool:
        for columns in pool.chunks(CHUNK):
            is_kept = np.ones(len(columns), dtype=bool)
            for choice in choices:
                is_kept &= choice.keeps(columns, pool.manifest.n_classes)
                columns = choice.wrap_columns(columns, "stream", pool.manifest.n_classes)
            parts.append(is_kept)
            if len(parts) * CHUNK >= n:
                break
    return np.concatenate(parts)[:n]


def count_kept(choices: tuple[Choice, ...], data: Path, n: int) -> int | None:
    """How many of the first `n` samples stay; None if no choice leaves any out."""
    return int(kept_samples(data, choices, n).sum()) if has_filter(choices) else None


@dataclass(frozen=True, kw_only=True)
class KeptOrder(SeedOrder):
    """The order in which a seed reads what is kept: `SeedOrder` without the rest."""

    data: Path
    choices: tuple[Choice, ...]

    @cached_property
    def places(self) -> Int[np.ndarray, " n_kept"]:
        """Of each kept sample its place in the order of all."""
        ids = SeedOrder.ids(self, np.arange(self.pool_n_samples))
        is_kept = kept_samples(self.data, self.choices, self.pool_n_samples)
        return np.flatnonzero(is_kept[ids - STREAM_START])

    def ids(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Global ids of these positions among what is kept."""
        return SeedOrder.ids(self, self.places[positions])

    def n_drawn(self, n_samples: int) -> int:
        """See `SeedOrder`: those that are left out count too."""
        return int(self.places[n_samples - 1]) + 1
