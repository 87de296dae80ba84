"""Class weights: rare classes count for more in the loss."""

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
class ClassWeights(Choice):
    """The loss of class y is multiplied by a weight in proportion to share(y)^-power.

    Power 1 makes every class count alike, 1/2 is the usual compromise. The shares are the
    population's under `long_tail(rho)`, the same in both worlds; weights have mean 1 over it, and
    the batch's loss is divided by its size, so that a batch is not weighted by what is in it.
    """

    power: float = 1.0
    rho: float = 100.0
    world_class: ClassVar[WorldClass] = WorldClass.ANNOTATED

    def __post_init__(self) -> None:
        if self.rho < 1:
            raise ConfigurationError(f"class_weights: rho={self.rho} must be at least 1")

    def check_with(self, others: Sequence[Choice]) -> None:
        """See `Choice`: the class shares must be those of the data."""
        for other in others:
            if isinstance(other, LongTail) and other.rho != self.rho:
                raise ConfigurationError(
                    f"class weights: rho={self.rho} is not that of long_tail, {other.rho};"
                    " give both the same"
                )

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """The weight of each class."""
        import torch

        shares = torch.from_numpy(class_shares(setting.n_classes, self.rho))
        weights = shares**-self.power
        weights = weights / (shares * weights).sum()
        return {"weights": weights.float().to(setting.device)}

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """See `Choice`; of mixed labels the weights are mixed."""

        def weighted(forward: Forward, inputs: Inputs) -> Tensor:
            return losses(forward, inputs) * (inputs.targets @ context.state["weights"])

        return weighted
