"""What a figure of the paper is here: its pairs at three scales, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bootstrap.linear_toys import LinearToy

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "laptop", "paper")
Words = dict[str, Any]  # of `compare`; see bootstrap/grid.py


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Weights to start from, of a point's model, made from the split `pretrain` before any pair.

    `words` are those of its recipe that differ from the point's.
    """

    method: str  # of `deep-bootstrap pretrain`
    n_images: int
    words: Words


@dataclass(frozen=True, kw_only=True)
class Point:
    """One N of one pair as the figure names it; equal labels have one colour.

    Of the rates in `pick_lr` it is trained with the best on the `reference` split.
    """

    label: str
    words: Words
    init: Pretraining | None = None
    pick_lr: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Pairs and how to draw them: curves over steps, a panel for each metric, or a scatter of the
    real against the ideal soft-error at convergence. Or linear toys, which are no pairs.
    """

    about: str
    points: tuple[Point, ...] = ()
    kind: Literal["curves", "scatter"] = "curves"
    metrics: tuple[str, ...] = ("soft_error",)
    toys: tuple[LinearToy, ...] = ()
    data: Path | None = None  # where images are expected that cannot be drawn here,
    how: str = ""  # and the command that puts them there

    @property
    def n_pretrain(self) -> int:
        """How many images of the split `pretrain` it needs."""
        return max((point.init.n_images for point in self.points if point.init), default=0)


PRESET_OF = {"smoke": "smoke", "laptop": "reference", "paper": "paper"}  # whose data a scale uses

# The laptop's runs are short so that all figures together take it two to three hours: a long kind
# with N = 2,000, and a short one with N = 500 where there are many pairs.
LONG: dict[Scale, Words] = {
    "smoke": {"n_steps": 16, "n_test_curve": 64, "n_samples": 64, "seeds": [0]},
    "laptop": {"n_steps": 512, "n_test_curve": 512, "n_samples": 2_000, "seeds": [0, 1, 2]},
    "paper": {},
}
SHORT: dict[Scale, Words] = {
    "smoke": LONG["smoke"],
    "laptop": {"n_steps": 256, "n_test_curve": 512, "n_samples": 500, "seeds": [0, 1, 2]},
    "paper": {},
}


def points(
    scale: Scale, kind: dict[Scale, Words], own: list[tuple[str, Words]]
) -> tuple[Point, ...]:
    """Points with the words of a scale and kind under their own."""
    base = {"preset": PRESET_OF[scale], "every_step": False, **kind[scale]}
    return tuple(Point(label=label, words={**base, **words}) for label, words in own)
