"""Spectral norms of weights: penalised, or divided out.

A layer's weights are taken as a matrix with a row per output. Of a convolution that is not the norm
of what it does to images, which is at most kernel size times as large (Sedghi et al. 2019). Where
batch norm follows, a layer's scale is divided out anyway: then both change the learning rate only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Gradient,
    GradientFn,
    Inputs,
    Scored,
    Setting,
    StepContext,
    WorldClass,
)
from bootstrap.interventions.penalty import weight_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

N_AT_FIRST = 15  # power iterations before the first step; then one a step
SMALLEST = 1e-12


def top_singular(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A power iteration from the left vector `u`: (left vector, right vector, singular value)."""
    matrix = weight.detach().flatten(1)
    v = matrix.T @ u
    v = v / v.norm().clamp_min(SMALLEST)
    left = matrix @ v
    sigma = left.norm().clamp_min(SMALLEST)
    return left / sigma, v, sigma


@dataclass(frozen=True, kw_only=True)
class Spectral(Choice):
    """What follows the largest singular value of every layer by a power iteration a step."""

    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """A left singular vector of each layer, drawn alike whatever the seed, then iterated."""
        import torch

        generator, state = torch.Generator().manual_seed(0), {}
        for k, weight in enumerate(weight_tensors(model)):
            u = torch.randn(weight.shape[0], generator=generator).to(weight)
            for _ in range(N_AT_FIRST):
                u, _, _ = top_singular(weight, u / u.norm())
            state[f"u{k}"] = u
        return state

    def iterate(self, context: StepContext) -> None:
        """One power iteration for every layer."""
        for k, weight in enumerate(weight_tensors(context.model)):
            u = context.state[f"u{k}"]
            u.copy_(top_singular(weight, u)[0])

    def vectors(self, context: StepContext) -> list[tuple[nn.Parameter, Tensor, Tensor, Tensor]]:
        """Of each layer the weights, both vectors and the value, by the vectors that are known."""
        weights = weight_tensors(context.model)
        return [(w, *top_singular(w, context.state[f"u{k}"])) for k, w in enumerate(weights)]

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """The logarithm of the product of the layers' spectral norms, as matrices."""
        logs = [sigma.log().item() for _, _, _, sigma in self.vectors(context)]
        return {"log_spectral_norms": sum(logs)}


@dataclass(frozen=True, kw_only=True)
class SpectralPenalty(Spectral):
    """Adds strength/2 times the sum of the layers' squared spectral norms to the objective.

    Yoshida and Miyato 2017 (arXiv 1705.10941); as `l2`, but only of the largest singular value.
    """

    strength: float = 0.01

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`; of several gradients in a step the first one moves the vectors on."""
        moved: list[bool] = []

        def penalised(inputs: Inputs) -> Gradient:
            found = gradient(inputs)
            if not moved:
                self.iterate(context)
                moved.append(True)
            for weight, u, v, sigma in self.vectors(context):
                if weight.grad is not None:
                    slope = self.strength * sigma * u[:, None] * v
                    weight.grad += slope.view_as(weight)
            return found

        return penalised


@dataclass(frozen=True, kw_only=True)
class SpectralNormalisation(Spectral):
    """The model is that of weights W / sigma(W)^strength, its gradient that to W.

    Miyato et al. 2018 (arXiv 1802.05957) at strength 1, where every layer has spectral norm 1 as a
    matrix. What is saved are the W themselves.
    """

    strength: float = 1.0
    not_with: ClassVar[tuple[tuple[str, str], ...]] = (
        ("robust_error", "it attacks the weights as they are saved"),
    )

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`; of several gradients in a step the first one moves the vectors on."""
        moved: list[bool] = []

        def normalised(inputs: Inputs) -> Gradient:
            if not moved:
                self.iterate(context)
                moved.append(True)
            layers = self.vectors(context)
            with self.divided(layers):
                found = gradient(inputs)
            for weight, u, v, sigma in layers:
                if weight.grad is not None:
                    along = (weight.grad * weight.detach()).sum()
                    turn = (self.strength * along / sigma) * u[:, None] * v
                    weight.grad -= turn.view_as(weight)
                    weight.grad /= sigma**self.strength
            return found

        return normalised

    def wrap_prediction(self, forward: Forward, split: str, context: StepContext) -> Forward:
        """See `Choice`."""

        def normalised(x: Tensor) -> Tensor:
            with self.divided(self.vectors(context)):
                return forward(x)

        return normalised

    @contextmanager
    def divided(self, layers: list[tuple[nn.Parameter, Tensor, Tensor, Tensor]]) -> Iterator[None]:
        """In here the model has the normalised weights; after it the bits that it had before."""
        before = [weight.detach().clone() for weight, *_ in layers]
        for weight, _, _, sigma in layers:
            weight.data.div_(sigma**self.strength)
        try:
            yield
        finally:
            for (weight, *_), value in zip(layers, before, strict=True):
                weight.data.copy_(value)
