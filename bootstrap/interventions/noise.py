"""Noise on the images, and on the weights while a gradient is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Gradient,
    GradientFn,
    Inputs,
    StepContext,
    WorldClass,
)
from bootstrap.interventions.penalty import weight_tensors


@dataclass(frozen=True, kw_only=True)
class InputNoise(Choice):
    """Gaussian noise on each pixel, of deviation `sigma` in [0, 1] pixel units (Bishop 1995)."""

    sigma: float = 0.05
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """See `Choice`."""
        import torch

        shape, device = inputs.x.shape, context.device
        noise = torch.randn(shape, generator=context.generator(), device=device)
        return replace(inputs, x=inputs.x + self.sigma / context.deviation * noise)


@dataclass(frozen=True, kw_only=True)
class WeightNoise(Choice):
    """Gaussian noise on the weights of layers while the gradient is taken, then gone.

    Its deviation is `scale` times the root mean square of the layer's weights.
    """

    scale: float = 0.01
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`."""
        import torch

        def noisy(inputs: Inputs) -> Gradient:
            weights, generator = weight_tensors(context.model), context.generator()
            before = [weight.detach().clone() for weight in weights]
            for weight in weights:
                size = weight.detach().square().mean().sqrt()
                noise = torch.randn(weight.shape, generator=generator, device=context.device)
                weight.data.add_(self.scale * size * noise)
            found = gradient(inputs)
            for weight, value in zip(weights, before, strict=True):
                weight.data.copy_(value)
            return found

        return noisy
