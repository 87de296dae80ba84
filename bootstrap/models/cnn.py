"""The paper's small CNN."""

from __future__ import annotations

from torch import nn


def build_small_cnn(image_shape: tuple[int, int, int], n_classes: int, width: int) -> nn.Module:
    """Convolutions of 1, 2, 4, 8 times `width`; global max pooling; linear.

    Sides are halved after every convolution but the first.
    """
    layers: list[nn.Module] = []
    n_in = image_shape[2]
    for factor in (1, 2, 4, 8):
        layers += [
            nn.Conv2d(n_in, factor * width, 3, 1, 1),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(),
        ]
        if factor > 1:
            layers.append(nn.MaxPool2d(2))
        n_in = factor * width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
