"""Is a generated image a copy? Nearest training images, and duplicates.

The yardstick is the real test set: how near its images are to the training images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Images = UInt8[np.ndarray, "n height width channel"]
CLOSE_FRACTION = 0.01  # of the real test images count as close to a training image
NEARLY_EQUAL = 1.5 / 255  # RMS difference of a pixel: every one off by the least bit, and rounding


@dataclass(frozen=True)
class Nearest:
    """Of each query its nearest reference: Euclidean distance and index."""

    distance: Float[Tensor, " n"]
    index: Int[Tensor, " n"]

    def closest(self, n: int) -> Int[Tensor, " n"]:
        """The `n` queries that are nearest to a reference, nearest first."""
        return self.distance.argsort()[:n]


def nearest(
    queries: Float[Tensor, "n dim"], references: Float[Tensor, "m dim"], chunk: int = 1_024
) -> Nearest:
    """The nearest of `references` for each of `queries`; memory is chunk * m numbers."""
    found = [torch.cdist(part, references).min(dim=1) for part in queries.split(chunk)]
    return Nearest(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def pixels(images: Images) -> Float[Tensor, "n dim"]:
    """Images as rows in [0, 1], scaled so that a distance is the RMS difference of a pixel."""
    rows = torch.from_numpy(images.reshape(len(images), -1)).float()
    return rows / (255 * rows.shape[1] ** 0.5)


def nearest_or_mirrored(
    rows: Callable[[Images], Float[Tensor, "n dim"]], queries: Images, references: Images
) -> Nearest:
    """`nearest` in the space of `rows`, each query as it is or mirrored, whichever is nearer."""
    known = rows(references)
    plain = nearest(rows(queries), known)
    mirrored = nearest(rows(np.ascontiguousarray(queries[:, :, ::-1])), known)
    is_nearer = mirrored.distance < plain.distance
    return Nearest(
        torch.where(is_nearer, mirrored.distance, plain.distance),
        torch.where(is_nearer, mirrored.index, plain.index),
    )


def compare_distances(generated: Nearest, real_test: Nearest) -> dict[str, float]:
    """How near generated images come to training images, by the yardstick of real test images.

    `fraction_close` is 0.01 if generated images come as near as real test images do.
    """
    close = real_test.distance.quantile(CLOSE_FRACTION)
    return {
        "generated_median": float(generated.distance.median()),
        "real_test_median": float(real_test.distance.median()),
        "close": float(close),
        "fraction_close": float((generated.distance < close).double().mean()),
    }


def n_exact_duplicates(images: Images) -> int:
    """Images that equal an earlier one byte for byte."""
    return len(images) - len({image.tobytes() for image in images})


def n_exact_in(images: Images, others: Images) -> int:
    """Images that equal one of `others` byte for byte."""
    known = {image.tobytes() for image in others}
    return sum(image.tobytes() in known for image in images)


def n_near_duplicates(images: Images) -> int:
    """Images that differ from an earlier one by no more than the least bit of every pixel."""
    rows = pixels(images)
    n = 0
    for start in range(0, len(rows), 1_024):
        part = rows[start : start + 1_024]
        distances = torch.cdist(part, rows[: start + len(part)])
        earlier = torch.ones_like(distances, dtype=torch.bool).tril(start - 1)
        n += int(((distances <= NEARLY_EQUAL) & earlier).any(dim=1).sum())
    return n


def pairs_for_a_picture(
    queries: Images, references: Images, found: Nearest, n: int
) -> UInt8[np.ndarray, "n2 height width channel"]:
    """The `n` closest pairs: a row of queries, below it their nearest references."""
    rows = found.closest(n).numpy()
    return np.concatenate([queries[rows], references[found.index.numpy()[rows]]])
