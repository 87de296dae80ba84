"""Logit adjustment for long-tailed classes: in the loss, or after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Inputs,
    SampleLossFn,
    Setting,
    StepContext,
    WorldClass,
)
from bootstrap.interventions.long_tail import LongTail, class_shares

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(Choice):
    """The loss of f + tau log pi, the prediction of f (Menon et al. 2021, arXiv 2007.07314).

    pi are the population's class shares under `long_tail(rho)`, the same in both worlds. Training
    images are scored as the optimiser sees them, with the shift.
    """

    tau: float = 1.0
    rho: float = 100.0
    world_class: ClassVar[WorldClass] = WorldClass.ANNOTATED

    def check_with(self, others: Sequence[Choice]) -> None:
        """See `Choice`: the class shares must be those of the data."""
        for other in others:
            if isinstance(other, LongTail) and other.rho != self.rho:
                raise ConfigurationError(
                    f"logit adjustment: rho={self.rho} is not that of long_tail, {other.rho};"
                    " give both the same"
                )

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """The logarithm of the class shares."""
        import torch

        shares = torch.from_numpy(class_shares(setting.n_classes, self.rho))
        return {"log_shares": shares.log().float().to(setting.device)}

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""

        def adjusted(forward: Forward, inputs: Inputs) -> Tensor:
            return losses(self.shifted(forward, self.tau, context), inputs)

        return adjusted

    def wrap_prediction(self, forward: Forward, split: str, context: StepContext) -> Forward:
        """See `Choice`."""
        return self.shifted(forward, self.tau, context) if split == "train" else forward

    def shifted(self, forward: Forward, tau: float, context: StepContext) -> Forward:
        """Logits plus tau log pi."""
        shift = tau * context.state["log_shares"]
        return lambda x: forward(x) + shift


@dataclass(frozen=True, kw_only=True)
class LogitAdjustmentPostHoc(LogitAdjustment):
    """Plain training, and tests by f - tau log pi."""

    world_class: ClassVar[WorldClass] = WorldClass.DIAGNOSTIC

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`."""
        return losses

    def wrap_prediction(self, forward: Forward, split: str, context: StepContext) -> Forward:
        """See `Choice`."""
        return self.shifted(forward, -self.tau, context) if split == "test" else forward
