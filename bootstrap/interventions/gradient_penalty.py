"""Input-gradient penalty (double backpropagation)."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class GradientPenalty(Choice):
    """Adds strength/2 ||grad_x loss||^2 of each sample, x in [0, 1] pixel units.

    Drucker and Le Cun 1992. Batch norm couples the samples of a batch: the gradient is then that
    of all their losses to one's pixels.
    """

    strength: float = 0.1
    world_class: ClassVar[WorldClass] = WorldClass.STRICT
    differentiates_twice: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        """See `Choice`: forward, backward to the images, and backward through both."""
        return 2.0

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""
        import torch

        def penalised(forward: Forward, inputs: Inputs) -> Tensor:
            x = inputs.x  # an attack around this has its own gradient to it
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            found = losses(forward, replace(inputs, x=x))
            (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
            squares = (slope / context.deviation).square().flatten(1).sum(dim=1)
            return found + self.strength / 2 * squares

        return penalised
