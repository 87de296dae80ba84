"""Sharpness-aware minimisation: the gradient at the worst weights nearby."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Gradient,
    GradientFn,
    Inputs,
    StepContext,
    WorldClass,
)
from bootstrap.interventions.statistics import statistics_kept

SMALLEST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class SAM(Choice):
    """The gradient at w + rho g / ||g||, with g that at w (Foret et al. 2021, arXiv 2010.01412).

    Batch norm's running statistics follow the first pass only. What is reported of the batch is
    what the first pass says.
    """

    rho: float = 0.05
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    @property
    def cost(self) -> float:
        """See `Choice`: every step has two gradients."""
        return 2.0

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`."""
        import torch

        def sharpness_aware(inputs: Inputs) -> Gradient:
            found = gradient(inputs)
            moved = [p for p in context.model.parameters() if p.grad is not None]
            gradients = [p.grad for p in moved if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).clamp_min(SMALLEST_NORM)
            before = [p.detach().clone() for p in moved]
            for p, slope in zip(moved, gradients, strict=True):
                p.data.add_(slope * (self.rho / norm))
                p.grad = None
            with statistics_kept(context.model):
                gradient(inputs)
            for p, value in zip(moved, before, strict=True):
                p.data.copy_(value)
            return found

        return sharpness_aware
