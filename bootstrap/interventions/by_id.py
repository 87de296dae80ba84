"""Draws that belong to a sample: functions of its id alone, alike in every world and seed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from bootstrap.randomness import Stream, uniforms

BLOCK = 1_024  # consecutive ids whose draws are made at once


def uniforms_by_id(
    stream: Stream, ids: Int[np.ndarray, " n"], n_each: int = 1, kind: int = 0
) -> Float[np.ndarray, "n n_each"]:
    """`n_each` draws from [0, 1) for each id; each `kind` has draws of its own."""
    blocks, offsets = np.divmod(ids, BLOCK)
    found = np.empty((len(ids), n_each))
    for block in np.unique(blocks):
        at = blocks == block
        draws = uniforms(0, stream, int(block), kind, n=BLOCK * n_each).reshape(BLOCK, n_each)
        found[at] = draws[offsets[at]]
    return found
