"""Virtual adversarial training: predictions that no small change of the image changes."""

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
from bootstrap.interventions.statistics import statistics_kept

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class VAT(Choice):
    """Adds `weight` KL(p(x) || p(x + r)), p(x) held fixed (Miyato et al. 2018, arXiv 1704.03976).

    r has length `epsilon` in [0, 1] pixel units, in the direction that `n_moves` power iterations
    with steps of `xi` find. The paper's xi of 1e-6 is lost in float32.
    Batch norm's running statistics follow the first pass only.
    """

    epsilon: float = 1.0
    weight: float = 1.0
    xi: float = 1e-2
    n_moves: int = 1
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        if self.n_moves < 1 or self.xi <= 0:
            raise ConfigurationError("vat: give n_moves of at least 1 and a positive xi")

    @property
    def cost(self) -> float:
        """See `Choice`: a move is a forward and a backward pass, the divergence a whole step."""
        return 2 + 2 * self.n_moves / 3

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""
        import torch

        deviation = context.deviation

        def smoothed(forward: Forward, inputs: Inputs) -> Tensor:
            passes: list[Tensor] = []

            def noted(x: Tensor) -> Tensor:
                passes.append(forward(x))
                return passes[-1]

            found, x = losses(noted, inputs), inputs.x.detach()
            log_p = passes[-1].detach().log_softmax(dim=1)
            n, *shape = x.shape
            draws = torch.randn(
                n * context.ranks.n, *shape, generator=context.generator(), device=context.device
            )
            direction = unit(draws[context.ranks.rows])
            for _ in range(self.n_moves):
                direction.requires_grad_()
                with statistics_kept(context.model):
                    divergence = divergences(
                        log_p, forward(x + self.xi * direction / deviation)
                    ).sum()
                    (slope,) = torch.autograd.grad(divergence, direction)
                direction = unit(slope)
            shift = self.epsilon * direction / deviation
            with statistics_kept(context.model):
                smoothness = divergences(log_p, forward(inputs.x + shift))
            return found + self.weight * smoothness

        return smoothed


def divergences(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax of logits) of each row, nats."""
    return (log_p.exp() * (log_p - logits.log_softmax(dim=1))).sum(dim=1)


def unit(x: Tensor) -> Tensor:
    """Each row at length 1."""
    return x / x.flatten(1).norm(dim=1).clamp_min(SMALLEST_NORM)[:, None, None, None]
