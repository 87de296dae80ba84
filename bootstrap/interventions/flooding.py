"""Flooding: hold the training loss near a level instead of driving it to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Inputs,
    LossFn,
    Scored,
    Setting,
    StepContext,
    WorldClass,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Flooding(Choice):
    """Ascend where the batch's mean loss is below `level` nats: |loss - level| + level.

    Ishida et al. 2020 (arXiv 2002.08709). The mean is that of the whole batch, on any number of
    ranks; it depends on the batch size how often it is below a level.
    """

    level: float = 0.05
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """How many batches were below the level."""
        import torch

        return {"n_flooded": torch.zeros((), dtype=torch.int64, device=setting.device)}

    def wrap_loss(self, loss: LossFn, context: StepContext) -> LossFn:
        """See `Choice`; of several losses in a step the first one counts."""
        counted: list[bool] = []

        def flooded(forward: Forward, inputs: Inputs) -> Tensor:
            mean = loss(forward, inputs)
            if not counted:
                context.state["n_flooded"] += mean.detach() < self.level
                counted.append(True)
            return (mean - self.level).abs() + self.level

        return flooded

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """The share of batches so far that were below the level."""
        return {"flooded_fraction": context.state["n_flooded"].item() / max(context.step, 1)}
