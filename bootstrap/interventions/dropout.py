"""Dropout on what the last linear layer sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.choice import (
    Choice,
    Gradient,
    GradientFn,
    Inputs,
    Setting,
    StepContext,
    WorldClass,
)
from bootstrap.models.head import last_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

MASK = "dropout_mask"
NO_HEAD = "dropout: the model has no linear layer to drop inputs of"


@dataclass(frozen=True, kw_only=True)
class Dropout(Choice):
    """Each input of the last linear layer is zero with probability `p`, else divided by 1 - p.

    Srivastava et al. 2014. The mask is drawn per sample and feature outside the model, which holds
    it in a buffer that is no part of its weights.
    """

    p: float = 0.3
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ConfigurationError(f"dropout: p={self.p} must be at least 0 and less than 1")

    def wrap_model(self, model: nn.Module, setting: Setting) -> nn.Module:
        """See `Choice`; ConfigurationError for a model without a linear layer."""
        import torch

        _, head = last_linear(model, NO_HEAD)
        mask = torch.ones(setting.batch_size, head.in_features)
        head.register_buffer(MASK, mask, persistent=False)
        head.register_forward_pre_hook(drop)
        return model

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`."""
        import torch

        def dropped(inputs: Inputs) -> Gradient:
            mask = last_linear(context.model, NO_HEAD)[1].get_buffer(MASK)
            n, ranks = len(inputs.ids), context.ranks
            draws = torch.rand(
                n * ranks.n, mask.shape[1], generator=context.generator(), device=context.device
            )
            mask[:n] = (draws[ranks.rows] >= self.p) / (1 - self.p)
            return gradient(inputs)

        return dropped


def drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """Multiply the layer's input by its mask, in training."""
    if not layer.training:
        return None
    x = inputs[0]
    mask = layer.get_buffer(MASK)[: len(x)].to(x.dtype)
    return (x * mask.view(len(x), *[1] * (x.dim() - 2), -1),)
