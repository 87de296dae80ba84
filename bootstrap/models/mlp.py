"""Multi-layer perceptrons on flattened images."""

from __future__ import annotations

from math import prod

from torch import nn


def build_mlp(
    image_shape: tuple[int, int, int], n_classes: int, width: int, depth: int, batch_norm: bool
) -> nn.Module:
    """`depth` times linear - (batch norm) - ReLU, then a linear head."""
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = prod(image_shape)
    for _ in range(depth):
        layers += [
            nn.Linear(n_in, width),
            *([nn.BatchNorm1d(width)] if batch_norm else []),
            nn.ReLU(),
        ]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_classes))
