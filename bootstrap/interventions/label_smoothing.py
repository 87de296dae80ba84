"""Label smoothing: a share of every target is spread over all classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from bootstrap.interventions.choice import Choice, Inputs, StepContext, WorldClass


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Choice):
    """Targets (1 - epsilon) y + epsilon / K (Szegedy et al. 2016).

    It puts a floor near epsilon under the soft-error: compare it with others by error.
    """

    epsilon: float = 0.1
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """See `Choice`."""
        n_classes = inputs.targets.shape[1]
        smooth = (1 - self.epsilon) * inputs.targets + self.epsilon / n_classes
        return replace(inputs, targets=smooth)
