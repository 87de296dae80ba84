"""What a training run says about itself: one `Record` per evaluation, one `StepRecord` per step.

No torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int

SCHEMA = 1
NO_IDS = hashlib.sha256().hexdigest()  # the hash of none
TRAIN = "train_"  # what begins so is of a world's own training images: no world shares it
APPROXIMATE = "approximate"  # under `extra`: the ideal world has re-used samples by then


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over a fixed set: error and soft-error as fractions, loss in nats.

    The soft-error is 1 - probability of the true class.
    """

    error: float
    soft_error: float
    loss: float

    @classmethod
    def of(
        cls, probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
    ) -> Scores:
        """The scores of predicted probabilities; a probability of 0 counts as 1e-38 in the loss."""
        true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        return cls(
            error=float((probabilities.argmax(axis=1) != labels).mean()),
            soft_error=float(1 - true.mean()),
            loss=float(-np.log(np.maximum(true, 1e-38)).mean()),
        )


def hash_ids(before: str, ids: Int[np.ndarray, " n"]) -> str:
    """The running hash of the ids fetched, after a batch of `ids`."""
    return hashlib.sha256(bytes.fromhex(before) + ids.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """By image of a fixed set: the probability of its label, and whether no class has more."""

    probability: Float16[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation, after `step` updates. `train` is None in the ideal world."""

    step: int
    samples_seen: int
    unique_samples_seen: int
    ids_hash: str
    lr: float
    test: Scores
    train: Scores | None
    wall_s: float
    probes: dict[str, Scores] = field(default_factory=dict)  # by world, while worlds share a prefix
    extra: dict[str, float] = field(default_factory=dict)
    probe_extra: dict[str, dict[str, float]] = field(default_factory=dict)  # by world, as `probes`
    test_images: ImageScores | None = field(default=None, compare=False, repr=False)

    def for_world(self, name: str, *, is_approximate: bool = False) -> Record:
        """The record as that world's file holds it: `train` is its own probe, if it has one."""
        extra = self.extra | self.probe_extra.get(name, {})
        extra |= {APPROXIMATE: 1.0} if is_approximate else {}
        return replace(self, train=self.probes.get(name), probes={}, extra=extra, probe_extra={})

    def to_json(self) -> dict[str, Any]:
        """The row as it is stored, keys in the order of results/FORMAT.md."""
        row: dict[str, Any] = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "unique_samples_seen": self.unique_samples_seen,
            "ids_hash": self.ids_hash,
            "lr": self.lr,
        }
        for name, scores in (("test", self.test), ("train", self.train)):
            if scores is not None:
                row |= {f"{name}_error": scores.error, f"{name}_soft_error": scores.soft_error}
                row |= {f"{name}_loss": scores.loss}
        row["wall_s"] = round(self.wall_s, 3)
        if self.extra:
            row["extra"] = self.extra
        return row


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One SGD step: scores on 64 test images before the update, and of the training batch.

    The batch is scored as it is trained on: augmented, in train mode.
    """

    step: int
    test: Scores
    batch_loss: float
    batch_error: float

    def to_json(self) -> dict[str, Any]:
        """The row as it is stored."""
        return {
            "step": self.step,
            "loss": self.test.loss,
            "error": self.test.error,
            "soft_error": self.test.soft_error,
            "batch_loss": self.batch_loss,
            "batch_error": self.batch_error,
        }
