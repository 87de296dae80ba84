"""Penalties on weights: L1, L2, WEISSI.

The penalty's gradient is added to that of the loss, after whatever is done to the loss: flooding
floods the data's loss only, and `batch_loss` in the records stays the data's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Gradient,
    GradientFn,
    Inputs,
    StepContext,
    WorldClass,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_NORM = 1e-8  # log ||W|| has no lower bound


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Their sum."""
    import torch

    return torch.stack(list(terms)).sum()


def weight_tensors(model: nn.Module) -> list[nn.Parameter]:
    """The weights of layers: what has rows and columns; no biases, no parameters of norms."""
    return [p for p in model.parameters() if p.requires_grad and p.dim() > 1]


@dataclass(frozen=True, kw_only=True)
class Penalty(Choice):
    """A choice that adds a function of the weights to the objective."""

    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def penalty(self, weights: list[nn.Parameter]) -> Tensor:
        """The function, a scalar."""
        raise NotImplementedError

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`."""
        import torch

        def penalised(inputs: Inputs) -> Gradient:
            found, weights = gradient(inputs), weight_tensors(context.model)
            slopes = torch.autograd.grad(self.penalty(weights), weights, allow_unused=True)
            for weight, slope in zip(weights, slopes, strict=True):
                if weight.grad is not None and slope is not None:
                    weight.grad += slope
            return found

        return penalised


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    """`strength` times the sum of the weights' absolute values."""

    strength: float = 1e-5

    def penalty(self, weights: list[nn.Parameter]) -> Tensor:
        """See `Penalty`."""
        return self.strength * sum_of(w.abs().sum() for w in weights)


@dataclass(frozen=True, kw_only=True)
class L2(Penalty):
    """strength/2 times the sum of the weights' squares, so that SGD shrinks w by lr * strength * w.

    This is torch's `weight_decay` of SGD, but for biases and norms; through Adam it is not the
    same as `weight_decay` (Loshchilov and Hutter 2019).
    """

    strength: float = 5e-4

    def penalty(self, weights: list[nn.Parameter]) -> Tensor:
        """See `Penalty`."""
        return self.strength / 2 * sum_of(w.square().sum() for w in weights)


@dataclass(frozen=True, kw_only=True)
class WEISSI(Penalty):
    """Weight decay that does not change when layers trade scale (Liu et al. 2020, 2008.02965).

    log_norm * sum log ||W|| + direction * sum ||W / ||W|| ||_1, with Frobenius norms. The first
    term is the logarithm of the product of the norms, the second the L1 norm of the directions.
    """

    log_norm: float = 5e-4
    direction: float = 1e-6

    def penalty(self, weights: list[nn.Parameter]) -> Tensor:
        """See `Penalty`."""
        norms = [w.norm().clamp_min(SMALLEST_NORM) for w in weights]
        sparse = sum_of((w / norm).abs().sum() for w, norm in zip(weights, norms, strict=True))
        return self.log_norm * sum_of(norm.log() for norm in norms) + self.direction * sparse
