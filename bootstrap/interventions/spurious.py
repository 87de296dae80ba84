"""A spurious attribute: a painted corner that tells the class, in training but not in the test."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.by_id import uniforms_by_id
from bootstrap.interventions.choice import Choice, Scored, StepContext, WorldClass
from bootstrap.randomness import Stream

if TYPE_CHECKING:
    from bootstrap.shards import Columns

Images = UInt8[np.ndarray, "n height width channel"]
COLUMNS = ("attribute", "environment", "group")


@dataclass(frozen=True, kw_only=True)
class Spurious(Choice):
    """The upper left corner is painted in the colour of an attribute a, one colour for each class.

    P(a = y) is `agreement` of the sample's environment in training (environments are drawn alike)
    and `agreement_test` in the test, which is the environment after them; else a is another class.
    Groups are y * K + a. All are functions of the id, so the worlds agree on every sample.
    """

    agreement: tuple[float, ...] = (0.9, 0.8)
    agreement_test: float = 0.1
    size_px: int = 4
    training_environments: bool = False  # also score the test images as in each of these
    world_class: ClassVar[WorldClass] = WorldClass.SOURCE
    looks_at_images: ClassVar[bool] = False  # it paints over what is there
    needs: ClassVar[tuple[str, ...]] = COLUMNS
    provides: ClassVar[tuple[str, ...]] = COLUMNS

    def __post_init__(self) -> None:
        if self.size_px < 0 or not self.agreement:
            raise ConfigurationError(
                "spurious: give size_px of at least 0 and an agreement or more"
            )

    def wrap_columns(self, columns: Columns, split: str, n_classes: int) -> Columns:
        """See `Choice`."""
        draws = uniforms_by_id(Stream.CONDITION, columns.ids, n_each=3, kind=1)
        n_train = len(self.agreement)
        environment = (draws[:, 0] * n_train).astype(np.int64)
        if split == "test":
            environment = np.full(len(columns), n_train, dtype=np.int64)
        if split in (known := [f"test/{name}" for name in self.evaluation_sets()]):
            environment = np.full(len(columns), known.index(split), dtype=np.int64)
        agreement = np.array([*self.agreement, self.agreement_test])[environment]
        others = columns.labels + 1 + (draws[:, 1] * (n_classes - 1)).astype(np.int64)
        attribute = np.where(draws[:, 2] < agreement, columns.labels, others % n_classes)
        group = columns.labels * n_classes + attribute
        found = dict(zip(COLUMNS, (attribute, environment, group), strict=True))
        images = self.painted(columns.images, attribute, n_classes)
        return replace(columns, images=images, extra={**columns.extra, **found})

    def evaluation_sets(self) -> tuple[str, ...]:
        """See `Choice`: the test split has the gap out of distribution, these that in it."""
        n_sets = len(self.agreement) if self.training_environments else 0
        return tuple(f"environment_{k}" for k in range(n_sets))

    def painted(self, images: Images, attribute: Int[np.ndarray, " n"], n_classes: int) -> Images:
        """The images with a corner in the colour of their attribute."""
        images = images.copy()
        colours = palette(n_classes, images.shape[3])[attribute]
        images[:, : self.size_px, : self.size_px] = colours[:, None, None]
        return images

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Test errors of the images that agree, of the others, and of the worst group."""
        is_wrong = (test.predicted != test.labels).double()
        agrees = test.columns["attribute"] == test.labels
        groups = test.columns["group"]
        by_group = [is_wrong[groups == g].mean().item() for g in groups.unique()]
        named = {"agreeing": agrees, "conflicting": ~agrees}
        return {
            **{f"test_error_{k}": is_wrong[v].mean().item() for k, v in named.items() if v.any()},
            "test_error_worst_group": max(by_group),
        }


def palette(n_classes: int, n_channels: int) -> UInt8[np.ndarray, "classes channels"]:
    """A colour for each class: hues at equal distance, or greys."""
    if n_channels != 3:
        greys = np.linspace(0, 255, n_classes).astype(np.uint8)
        return np.repeat(greys[:, None], n_channels, axis=1)
    hues = [colorsys.hsv_to_rgb(k / n_classes, 1.0, 1.0) for k in range(n_classes)]
    return (np.array(hues) * 255).astype(np.uint8)
