"""Long-tailed classes: a filtered stream, kept by a hash of the sample's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.by_id import uniforms_by_id
from bootstrap.interventions.choice import Choice, WorldClass
from bootstrap.randomness import Stream

if TYPE_CHECKING:
    from bootstrap.shards import Columns


@dataclass(frozen=True, kw_only=True)
class LongTail(Choice):
    """Class k of K is kept with probability rho^(-k / (K - 1)); the test split stays balanced.

    N and the ideal world's samples are counted after that.
    """

    rho: float = 100.0
    world_class: ClassVar[WorldClass] = WorldClass.SOURCE
    looks_at_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rho < 1:
            raise ConfigurationError(f"long_tail: rho={self.rho} must be at least 1")

    def keeps(self, columns: Columns, n_classes: int) -> Bool[np.ndarray, " n"]:
        """See `Choice`."""
        draws = uniforms_by_id(Stream.CONDITION, columns.ids)[:, 0]
        return draws < acceptance(n_classes, self.rho)[columns.labels]


def acceptance(n_classes: int, rho: float) -> Float[np.ndarray, " classes"]:
    """The probability with which a sample of each class is kept."""
    return rho ** (-np.arange(n_classes) / max(n_classes - 1, 1))


def class_shares(n_classes: int, rho: float) -> Float[np.ndarray, " classes"]:
    """The share of each class among what is kept, where classes are drawn alike."""
    kept = acceptance(n_classes, rho)
    return kept / kept.sum()
