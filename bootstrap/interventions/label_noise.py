"""Label noise: wrong labels by a hash of the sample's id, the same in both worlds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.by_id import uniforms_by_id
from bootstrap.interventions.choice import Choice, Scored, StepContext, WorldClass
from bootstrap.randomness import Stream

if TYPE_CHECKING:
    from bootstrap.shards import Columns

TRUE_LABEL = "true_label"
ONCE = "labels can be made wrong once"


@dataclass(frozen=True, kw_only=True)
class LabelNoise(Choice):
    """With probability `rate` a training label is another class, all others alike.

    Test labels stay true; `label_noise_train_and_test` is the harder condition.
    """

    rate: float = 0.2
    world_class: ClassVar[WorldClass] = WorldClass.SOURCE
    looks_at_images: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = (TRUE_LABEL,)
    provides: ClassVar[tuple[str, ...]] = (TRUE_LABEL,)
    not_with: ClassVar[tuple[tuple[str, str], ...]] = (("label_noise_train_and_test", ONCE),)
    splits: ClassVar[tuple[str, ...]] = ("stream",)

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigurationError(f"label noise: rate={self.rate} must be in [0, 1]")

    def wrap_columns(self, columns: Columns, split: str, n_classes: int) -> Columns:
        """See `Choice`."""
        labels = columns.labels
        draws = uniforms_by_id(Stream.LABEL_NOISE, columns.ids, n_each=2)
        others = (labels + 1 + (draws[:, 1] * (n_classes - 1)).astype(np.int64)) % n_classes
        is_wrong = (draws[:, 0] < self.rate) & (split in self.splits)
        return replace(
            columns,
            labels=np.where(is_wrong, others, labels),
            extra={**columns.extra, TRUE_LABEL: labels},
        )

    def measure_probe(self, probe: Scored, context: StepContext) -> dict[str, float]:
        """The error by true labels of the training images."""
        return {"error_true_labels": error_by_true_labels(probe)}


@dataclass(frozen=True, kw_only=True)
class LabelNoiseTrainAndTest(LabelNoise):
    """With probability `rate` any label, of training and test images, is another class."""

    not_with: ClassVar[tuple[tuple[str, str], ...]] = (("label_noise", ONCE),)
    splits: ClassVar[tuple[str, ...]] = ("stream", "test")

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """The error by true labels of the test images."""
        return {"test_error_true_labels": error_by_true_labels(test)}


def error_by_true_labels(scored: Scored) -> float:
    """The share of images whose true class is not the one predicted."""
    return (scored.predicted != scored.columns[TRUE_LABEL]).double().mean().item()
