"""Files of scores, by which samples are pruned. No torch.

scores      float32 (rows, n)         of the stream's first n samples; a row, or one for each seed
reference   float32 (rows, n_sample)  of other samples of the population: thresholds are theirs
seeds       int64 (rows,) or (0,)     whose samples the scoring models were trained on
own_ids     int64 (rows, n_own)       those samples
card        text                      JSON: what the scores are, and of which images
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from bootstrap.errors import ConfigurationError, DataError

OWN = "own"
MEANINGS = ("shared", "oracle", OWN)
FIRST_ID = 1_000_000_000  # of the stream


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The content of a file."""

    scores: Float[np.ndarray, "rows n"]
    reference: Float[np.ndarray, "rows n_sample"]
    seeds: Int[np.ndarray, " n_seeds"] = field(default_factory=lambda: np.zeros(0, np.int64))
    own_ids: Int[np.ndarray, "rows n_own"] = field(default_factory=lambda: np.zeros((1, 0), int))
    card: dict[str, Any] = field(default_factory=dict)

    def row(self, seed: int | None) -> int:
        """The row of a seed; ConfigurationError if there is none."""
        if not len(self.seeds):
            return 0
        if seed not in self.seeds:
            raise ConfigurationError(
                f"seed {seed} has no own scores, there are those of {self.seeds.tolist()};"
                " score again with these --seeds"
            )
        return int(np.flatnonzero(self.seeds == seed)[0])

    def of_ids(self, ids: Int[np.ndarray, " n"], row: int) -> Float[np.ndarray, " n"]:
        """The scores of stream samples; NaN for those that were not scored."""
        index = ids - FIRST_ID
        is_there = (index >= 0) & (index < self.scores.shape[1])
        return np.where(is_there, self.scores[row][np.where(is_there, index, 0)], np.nan)

    def to_bytes(self) -> bytes:
        """The file; equal scores give equal bytes."""
        buffer = io.BytesIO()
        card = np.array(json.dumps(self.card, sort_keys=True))
        names = ("scores", "reference", "seeds", "own_ids")
        np.savez(buffer, card=card, **{name: getattr(self, name) for name in names})
        return buffer.getvalue()


def read_scores(path: Path) -> Scores:
    """The scores in a file; ConfigurationError if it is not there, DataError if it is no such."""
    try:
        told = path.stat()
    except OSError:
        raise ConfigurationError(
            f"{path}: no such file of scores; `deep-bootstrap score` makes one"
        ) from None
    return _read(path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, n_bytes: int) -> Scores:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in ("scores", "reference", "seeds", "own_ids")}
            card = json.loads(str(file["card"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path}: not a file of scores ({error}); `deep-bootstrap score` makes one"
        ) from None
    return Scores(**found, card=card)
