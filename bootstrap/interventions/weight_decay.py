"""Decoupled weight decay: the weights shrink at every update, whatever the optimiser does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bootstrap.interventions.choice import Choice, StepContext, UpdateFn, WorldClass
from bootstrap.interventions.penalty import weight_tensors


@dataclass(frozen=True, kw_only=True)
class WeightDecay(Choice):
    """w <- (1 - lr * strength) w before each update (Loshchilov and Hutter 2019).

    Of the weights of layers, not of biases and norms.
    """

    strength: float = 5e-4
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def wrap_update(self, update: UpdateFn, context: StepContext) -> UpdateFn:
        """See `Choice`."""

        def decayed() -> None:
            for weight in weight_tensors(context.model):
                weight.data.mul_(1 - context.lr * self.strength)
            update()

        return decayed
