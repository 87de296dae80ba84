"""Adversarial training: the loss at the worst images nearby (FGM, FGSM, PGD).

Strengths are in [0, 1] pixel units, and no pixel leaves that range. The attack runs in train mode,
as the step does, and leaves no trace in batch norm. Clean error stays what the records hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
class Attack(Choice):
    """A choice that trains on images moved along the gradient of their own loss."""

    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    @property
    def n_gradients(self) -> int:
        """Gradients to the images in a step."""
        return 1

    @property
    def cost(self) -> float:
        """See `Choice`: each gradient to the images is a forward and a backward pass, of three."""
        return 1 + 2 * self.n_gradients / 3

    def start(self, like: Tensor, context: StepContext) -> Tensor:
        """Where the attack starts, as a difference to the clean images in pixel units."""
        import torch

        return torch.zeros_like(like)

    def move(self, shift: Tensor, slope: Tensor) -> Tensor:
        """The difference after a move along `slope`, the loss's gradient there; (n, c, h, w)."""
        raise NotImplementedError

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""
        import torch

        mean, deviation = context.normalise.mean[:, None, None], context.deviation
        low, high = -mean / deviation, (1 - mean) / deviation

        def attacked(forward: Forward, inputs: Inputs) -> Tensor:
            clean = inputs.x.detach()
            shift = self.start(clean, context)
            for _ in range(self.n_gradients):
                x = (clean + shift / deviation).clamp(low, high).requires_grad_()
                with statistics_kept(context.model):
                    total = losses(forward, replace(inputs, x=x)).sum()
                    (slope,) = torch.autograd.grad(total, x)
                shift = self.move(shift, slope / deviation)
            return losses(
                forward, replace(inputs, x=(inputs.x + shift / deviation).clamp(low, high))
            )

        return attacked


@dataclass(frozen=True, kw_only=True)
class FGM(Attack):
    """epsilon g / ||g||_2 of each image (Miyato et al. 2017)."""

    epsilon: float = 0.5

    def move(self, shift: Tensor, slope: Tensor) -> Tensor:
        """See `Attack`."""
        norm = slope.flatten(1).norm(dim=1).clamp_min(SMALLEST_NORM)
        return shift + self.epsilon * slope / norm[:, None, None, None]


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """epsilon sign(g) (Goodfellow et al. 2015)."""

    epsilon: float = 8 / 255

    def move(self, shift: Tensor, slope: Tensor) -> Tensor:
        """See `Attack`."""
        return shift + self.epsilon * slope.sign()


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """`n_moves` moves by `move_size` sign(g) within epsilon of every pixel (Madry et al. 2018).

    It starts at a random point of that box, drawn for each pixel.
    """

    epsilon: float = 8 / 255
    move_size: float = 2 / 255
    n_moves: int = 10

    def __post_init__(self) -> None:
        if self.n_moves < 1:
            raise ConfigurationError(f"pgd: n_moves={self.n_moves} must be at least 1")

    @property
    def n_gradients(self) -> int:
        """See `Attack`."""
        return self.n_moves

    def start(self, like: Tensor, context: StepContext) -> Tensor:
        """See `Attack`."""
        import torch

        shape = (len(like) * context.ranks.n, *like.shape[1:])
        draws = torch.rand(shape, generator=context.generator(), device=context.device)
        return self.epsilon * (2 * draws[context.ranks.rows] - 1)

    def move(self, shift: Tensor, slope: Tensor) -> Tensor:
        """See `Attack`."""
        moved = shift + self.move_size * slope.sign()
        return moved.clamp(-self.epsilon, self.epsilon)
