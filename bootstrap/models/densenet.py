"""DenseNets without bottlenecks and compression, which torchvision does not have."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from bootstrap.models.initialisation import he_normal


class DenseLayer(nn.Module):
    """BN-ReLU-conv, whose `growth` channels are put behind the input's."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in)
        self.conv = nn.Conv2d(n_in, growth, 3, 1, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch n_in h w"]) -> Float[Tensor, "batch n_out h w"]:
        """n_out = n_in + growth."""
        return torch.cat([x, self.conv(relu(self.norm(x)))], dim=1)


def build_densenet(n_channels: int, n_classes: int, depth: int, growth: int) -> nn.Module:
    """Three blocks of (depth - 4) / 3 layers with halving transitions between (Huang et al. 2017).

    The stem has 2 `growth` channels, as in the paper's code; Huang et al. have 16.
    """
    n = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(n_channels, n, 3, 1, 1, bias=False)]
    for block in range(3):
        if block > 0:
            layers += [nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
        for _ in range((depth - 4) // 3):
            layers.append(DenseLayer(n, growth))
            n += growth
    layers += [nn.BatchNorm2d(n), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return he_normal(nn.Sequential(*layers, nn.Linear(n, n_classes)))
