"""Initial weights that torch's layers do not have by themselves."""

from __future__ import annotations

from torch import nn


def he_normal(module: nn.Module) -> nn.Module:
    """The same module; convolutions normal with variance 2 / fan-out, bias 0 (He et al. 2015).

    All other layers keep torch's own initial weights.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
