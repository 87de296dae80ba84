"""Grouped, dilated convolutions on a CPU, whose gradient in bf16 is wrong.

In bf16 and channels-last torch 2.15 leaves the gradient of their weights unwritten on images of
some size: it is what was in memory before. The forward pass and the gradient to images are right.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags


class GroupedConv2d(nn.Conv2d):
    """A convolution that on a CPU is taken in float32 where it is grouped and dilated."""

    def forward(self, x: Float[Tensor, "batch n h w"]) -> Float[Tensor, "batch m h w"]:
        """See `nn.Conv2d`."""
        if not is_affected(self) or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def is_affected(layer: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind."""
    return layer.groups > 1 and max(layer.dilation) > 1


def check_convolutions(model: nn.Module, flags: Flags) -> None:
    """ConfigurationError for a model, of one's own or of timm, that would learn from garbage."""
    if flags.precision == "fp32" or flags.torch_device.type != "cpu":
        return
    for name, layer in model.named_modules():
        is_plain = isinstance(layer, nn.Conv2d) and not isinstance(layer, GroupedConv2d)
        if is_plain and is_affected(layer):
            raise ConfigurationError(
                f"{name} is a grouped, dilated convolution, whose gradient in bf16 is wrong on a"
                " CPU; use --precision fp32, or bootstrap.models.grouped.GroupedConv2d"
            )
