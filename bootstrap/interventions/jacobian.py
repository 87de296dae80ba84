"""Jacobian penalty: logits that change little when the image does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

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
class JacobianPenalty(Choice):
    """Adds strength/2 ||d logits / d x||_F^2 of each sample, x in [0, 1] pixel units.

    Hoffman et al. 2019 (arXiv 1908.02729), by the squared gradient of logits summed with random
    signs, whose mean over signs it is; `n_projections` of them are averaged. Batch norm couples the
    samples of a batch: the gradient is then that of all their logits to one's pixels.
    """

    strength: float = 0.01
    n_projections: int = 1
    world_class: ClassVar[WorldClass] = WorldClass.STRICT
    differentiates_twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_projections < 1:
            raise ConfigurationError("jacobian_penalty: give n_projections of at least 1")

    @property
    def cost(self) -> float:
        """See `Choice`: each projection is a backward pass to the images, and one through both."""
        return 1.0 + self.n_projections

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""

        def penalised(forward: Forward, inputs: Inputs) -> Tensor:
            passes: list[Tensor] = []

            def noted(x: Tensor) -> Tensor:
                passes.append(forward(x))
                return passes[-1]

            x = inputs.x  # an attack around this has its own gradient to it
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            found = losses(noted, replace(inputs, x=x))
            for kind in range(self.n_projections):
                squares = projected_squares(passes[-1], x, self.signs(passes[-1], context, kind))
                squares = squares / self.n_projections
                found = found + self.strength / 2 * squares
            return found

        def projected_squares(logits: Tensor, x: Tensor, signs: Tensor) -> Tensor:
            import torch

            (slope,) = torch.autograd.grad((logits * signs).sum(), x, create_graph=True)
            return (slope / context.deviation).square().flatten(1).sum(dim=1)

        return penalised

    def signs(self, logits: Tensor, context: StepContext, kind: int) -> Tensor:
        """+1 or -1 for each logit of this rank's rows."""
        import torch

        n, n_classes = logits.shape
        draws = context.uniforms(n * context.ranks.n, n_classes, kind=kind)[context.ranks.rows]
        signs = np.where(draws < 0.5, -1.0, 1.0).astype(np.float32)
        return torch.from_numpy(signs).to(logits.device)
