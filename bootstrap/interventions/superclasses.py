"""Superclasses: several classes of a data set under one label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.choice import Choice, WorldClass

if TYPE_CHECKING:
    from bootstrap.shards import Columns


@dataclass(frozen=True, kw_only=True)
class Superclasses(Choice):
    """The classes of group g get the label g, in training and in the test; none is left out.

    The head keeps an output for each class of the data set; no label is among those beyond the
    groups.
    """

    groups: tuple[tuple[int, ...], ...] = ()
    world_class: ClassVar[WorldClass] = WorldClass.SOURCE
    looks_at_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        classes = [k for group in self.groups for k in group]
        if sorted(classes) != [*range(len(classes))]:
            raise ConfigurationError(
                f"superclasses: groups={self.groups} must hold each class from 0 on once"
            )

    def wrap_columns(self, columns: Columns, split: str, n_classes: int) -> Columns:
        """See `Choice`."""
        label_of = np.arange(n_classes)
        if (n_given := sum(map(len, self.groups))) not in (0, n_classes):
            raise ConfigurationError(
                f"superclasses: the groups hold {n_given} classes, the data set has {n_classes}"
            )
        for label, group in enumerate(self.groups):
            label_of[list(group)] = label
        return replace(columns, labels=label_of[columns.labels])
