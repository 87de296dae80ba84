"""How far a set of generated images is from a set of real ones, on features of a classifier.

Every number is a mean over disjoint subsets of one size, which makes its interval honest; values
for subsets of different sizes do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

Features = Float[Tensor, "n dim"]
N_NEIGHBOURS = 5


@dataclass(frozen=True)
class Estimate:
    """A mean over `n_subsets` disjoint subsets, with a Student-t 95 % interval."""

    mean: float
    low: float | None  # None below three subsets
    high: float | None
    subset_n: int
    n_subsets: int

    @classmethod
    def of(cls, values: list[float], subset_n: int) -> Estimate:
        """From one value per subset."""
        n, mean = len(values), float(np.mean(values))
        if n < 3:
            return cls(mean, None, None, subset_n, n)
        half = student_t.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / np.sqrt(n)
        return cls(mean, mean - half, mean + half, subset_n, n)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def compare_features(real: Features, generated: Features, subset_n: int) -> dict[str, Estimate]:
    """KID, precision, recall, density and coverage, each over subsets of `subset_n` of both."""
    n = min(len(real), len(generated)) // subset_n
    if n < 1:
        raise ValueError(
            f"{len(real)} real and {len(generated)} generated features: need {subset_n} of each"
        )
    pairs = list(zip(real.split(subset_n)[:n], generated.split(subset_n)[:n], strict=True))
    rows = [{"kid": kernel_distance(*pair), **neighbourhoods(*pair)} for pair in pairs]
    return {name: Estimate.of([row[name] for row in rows], subset_n) for name in rows[0]}


def kernel_distance(real: Features, generated: Features) -> float:
    """The unbiased squared MMD with the kernel (x.y / dim + 1)^3 (KID, Binkowski et al. 2018)."""

    def kernel(a: Features, b: Features) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    within = mean_off_diagonal(kernel(real, real)) + mean_off_diagonal(kernel(generated, generated))
    return float(within - 2 * kernel(real, generated).mean())


def neighbourhoods(real: Features, generated: Features, k: int = N_NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A sample's ball reaches to its k-th neighbour in its own set.
    """
    between = torch.cdist(real, generated)  # (n real, n generated)
    real_radius, generated_radius = _radius(real, k), _radius(generated, k)
    in_real_ball = between < real_radius[:, None]
    in_generated_ball = between < generated_radius
    return {
        "precision": float(in_real_ball.any(dim=0).double().mean()),
        "recall": float(in_generated_ball.any(dim=1).double().mean()),
        "density": float(in_real_ball.sum(dim=0).double().mean() / k),
        "coverage": float((between.amin(dim=1) < real_radius).double().mean()),
    }


def _radius(features: Features, k: int) -> Float[Tensor, " n"]:
    distances = torch.cdist(features, features)
    return distances.kthvalue(k + 1, dim=1).values  # the nearest of all is the sample itself


def in_batches(
    function: Callable[[np.ndarray], Tensor], images: np.ndarray, batch_size: int = 256
) -> Tensor:
    """`function` over all images, batch by batch, on the CPU."""
    starts = range(0, len(images), batch_size)
    return torch.cat([function(images[start : start + batch_size]).cpu() for start in starts])
