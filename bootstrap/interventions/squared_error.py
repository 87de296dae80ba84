"""Squared error on one-hot labels, instead of the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.errors import ConfigurationError
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


@dataclass(frozen=True, kw_only=True)
class MSE(Choice):
    """sum_k (f_k - y_k)^2 of the logits f and one-hot (or mixed) targets y, not rescaled.

    With a `share` below 1 the rest is the loss without it. Logits are no log-probabilities then:
    compare errors, for soft-errors and losses stay those of a softmax.
    """

    share: float = 1.0
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigurationError(f"mse: share={self.share} must be in [0, 1]")

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""

        def squared(forward: Forward, inputs: Inputs) -> Tensor:
            passes: list[Tensor] = []

            def noted(x: Tensor) -> Tensor:
                passes.append(forward(x))
                return passes[-1]

            others = losses(noted, inputs)
            errors = (passes[-1] - inputs.targets).square().sum(dim=1)
            return (1 - self.share) * others + self.share * errors

        return squared
