"""Robust error: the test error at the worst images nearby, as a metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.adversarial import PGD
from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Inputs,
    Scored,
    StepContext,
    WorldClass,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RobustError(Choice):
    """The error of the first `n` images of a set after an attack by PGD, in eval mode.

    Of test images in every world, and of its training images in a real one; with `pgd` it shows
    robust overfitting (Rice et al. 2020) as a gap. In [0, 1] pixel units, see `pgd`.
    """

    epsilon: float = 8 / 255
    move_size: float = 2 / 255
    n_moves: int = 10
    n: int = 256
    world_class: ClassVar[WorldClass] = WorldClass.DIAGNOSTIC

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Of the test images."""
        return {"test_robust_error": self.error(test.first(self.n), context)}

    def measure_probe(self, probe: Scored, context: StepContext) -> dict[str, float]:
        """Of a world's training images."""
        return {"robust_error": self.error(probe.first(self.n), context)}

    def error(self, scored: Scored, context: StepContext) -> float:
        """The share of these images that some image nearby makes wrong."""
        from torch.nn.functional import cross_entropy

        passes: list[Tensor] = []

        def losses(forward: Forward, inputs: Inputs) -> Tensor:
            passes.append(forward(inputs.x).float())
            return cross_entropy(passes[-1], inputs.labels, reduction="none")

        alone = replace(context, ranks=replace(context.ranks, rank=0, n=1))  # each scores them all
        x = context.normalise(scored.images.float() / 255)
        labels, ids = scored.labels, scored.ids
        inputs = Inputs(x=x, targets=labels, labels=labels, ids=ids, index=ids)
        attack = PGD(epsilon=self.epsilon, move_size=self.move_size, n_moves=self.n_moves)
        was_training = context.model.training
        context.model.eval()
        attack.wrap_sample_loss(losses, alone)(context.model, inputs)
        context.model.train(was_training)
        return (passes[-1].argmax(dim=1) != labels).double().mean().item()
