"""Nets of "Towards learning convolutions from scratch" (Neyshabur 2020, figure 1).

Every layer but the last is followed by batch norm and ReLU, and has no bias. The dropout of the
released code's hidden layer is left out.
"""

from __future__ import annotations

from math import ceil, prod

from torch import nn

Blocks = tuple[tuple[int, int], ...]  # (channels over base channels, stride) of each convolution
DEEP: Blocks = ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2))
SHALLOW: Blocks = ((1, 2),)


def build_dconv(image_shape: tuple[int, int, int], n_classes: int, base: int) -> nn.Module:
    """D-CONV: eight 3x3 convolutions, a hidden layer of 64 `base` units."""
    convolutions, n_out = _convolutions(image_shape, DEEP, base, kernel=3)
    return nn.Sequential(*convolutions, nn.Flatten(), *_head(n_out, 64 * base, n_classes))


def build_sconv(image_shape: tuple[int, int, int], n_classes: int, base: int) -> nn.Module:
    """S-CONV: one 9x9 convolution, a hidden layer of 24 `base` units."""
    convolutions, n_out = _convolutions(image_shape, SHALLOW, base, kernel=9)
    return nn.Sequential(*convolutions, nn.Flatten(), *_head(n_out, 24 * base, n_classes))


def build_dfc(image_shape: tuple[int, int, int], n_classes: int, base: int) -> nn.Module:
    """D-FC: every convolution of D-CONV as a dense layer from all its inputs to all its outputs."""
    height, width, _ = image_shape
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = prod(image_shape)
    for factor, stride in DEEP:
        height, width = ceil(height / stride), ceil(width / stride)
        n_out = factor * base * height * width
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ReLU()]
        n_in = n_out
    return nn.Sequential(*layers, *_head(n_in, 64 * base, n_classes))


def _convolutions(
    image_shape: tuple[int, int, int], blocks: Blocks, base: int, kernel: int
) -> tuple[list[nn.Module], int]:
    """Convolution, norm, ReLU for each block, and how many numbers come out."""
    height, width, n_in = image_shape
    layers: list[nn.Module] = []
    for factor, stride in blocks:
        n_out = factor * base
        layers += [
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        ]
        height, width, n_in = ceil(height / stride), ceil(width / stride), n_out
    return layers, height * width * n_in


def _head(n_in: int, n_hidden: int, n_classes: int) -> list[nn.Module]:
    return [
        nn.Linear(n_in, n_hidden, bias=False),
        nn.BatchNorm1d(n_hidden),
        nn.ReLU(),
        nn.Linear(n_hidden, n_classes),
    ]
