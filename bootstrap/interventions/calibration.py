"""Calibration: how far confidence is from accuracy, and scores that do not depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int

from bootstrap.interventions.choice import Choice, Scored, StepContext, WorldClass

if TYPE_CHECKING:
    from torch import Tensor

N_BINS = 15
COLDEST, HOTTEST = 1e-2, 1e2  # temperatures that are considered
N_HALVINGS = 48  # of log(HOTTEST / COLDEST): leaves 3e-14


@dataclass(frozen=True, kw_only=True)
class Calibration(Choice):
    """The calibration error of the test images, and their soft-error and loss once it is mended.

    Many choices change confidence by design. Dividing the logits by the temperature that minimises
    the loss undoes what of that is common to all images and changes no prediction (Guo et al. 2017,
    arXiv 1706.04599). An image's temperature is fitted on the images it is not among: those at
    even places have that of the odd ones, and the other way round.
    """

    world_class: ClassVar[WorldClass] = WorldClass.DIAGNOSTIC

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Of the test images; of a single one there is no other half, so no temperature."""
        logits = test.logits.double()
        found = {"test_ece": calibration_error(logits, test.labels)}
        if len(test.ids) < 2:
            return found
        scaled, temperature = cross_fitted(logits, test.labels)
        log_p = scaled.log_softmax(dim=1).gather(1, test.labels[:, None])
        return {
            **found,
            "test_temperature": temperature,
            "test_scaled_soft_error": -log_p.expm1().mean().item(),
            "test_scaled_loss": -log_p.mean().item(),
        }


def calibration_error(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """|confidence - accuracy| in bins of the confidence, each with the share of its images."""
    from torch.nn.functional import one_hot

    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    bins = (confidence * N_BINS).ceil().long().clamp(1, N_BINS) - 1  # ((k - 1) / 15, k / 15]
    excess = (confidence - (predicted == labels).double()) @ one_hot(bins, N_BINS).double()
    return excess.abs().sum().item() / len(labels)


def cross_fitted(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n classes"], float]:
    """The logits over the other half's temperature, and the geometric mean of the two."""
    even, odd = (best_temperature(logits[k::2], labels[k::2]) for k in range(2))
    scaled = logits.clone()
    scaled[::2] /= odd
    scaled[1::2] /= even
    return scaled, sqrt(even * odd)


def best_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The T in [0.01, 100] by which logits are divided at the least cross-entropy.

    That is convex in b = 1 / T, with the slope E[z] - z_label, E over softmax(b z), which is
    bisected in log b. 0.01 where sharper is always better; 1 where no logit differs from another.
    """
    margins = logits - logits.gather(1, labels[:, None])
    margins = margins.clamp(min=-1e30)  # of a class masked by -inf: 0 * inf is no number
    if not margins.any():
        return 1.0
    low, high = log(1 / HOTTEST), log(1 / COLDEST)
    for _ in range(N_HALVINGS):
        middle = (low + high) / 2
        slope = ((exp(middle) * margins).softmax(dim=1) * margins).sum(dim=1).mean().item()
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return exp(-(low + high) / 2)
