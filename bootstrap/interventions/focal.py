"""Focal loss: less weight for what is already right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Inputs,
    SampleLossFn,
    StepContext,
    WorldClass,
)

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-12  # a power's slope at 0 is infinite


@dataclass(frozen=True, kw_only=True)
class Focal(Choice):
    """-(1 - p)^gamma log p of the softmax, p the label's (Lin et al. 2017).

    Of mixed targets p is exp(-cross-entropy).
    """

    gamma: float = 2.0
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""

        def focal(forward: Forward, inputs: Inputs) -> Tensor:
            found = losses(forward, inputs)
            return (-(-found).expm1()).clamp_min(SMALLEST).pow(self.gamma) * found

        return focal
