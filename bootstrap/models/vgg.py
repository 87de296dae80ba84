"""VGG and AlexNet with one linear layer, as they are used on CIFAR."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs as CONFIGURATIONS  # noqa: N812
from torchvision.ops import Conv2dNormActivation

from bootstrap.models.initialisation import he_normal


def build_vgg(
    image_shape: tuple[int, int, int], n_classes: int, width: int, configuration: str = "A"
) -> nn.Module:
    """Conv-BN-ReLU and max pooling by torchvision's table; A is VGG-11, E is VGG-19."""
    side, n_in = min(image_shape[:2]), image_shape[2]
    layers: list[nn.Module] = []
    for entry in CONFIGURATIONS[configuration]:
        if isinstance(entry, str):
            side = _halve(side, layers)
        else:
            n_out = entry * width // 64
            layers.append(Conv2dNormActivation(n_in, n_out, bias=True))
            n_in = n_out
    head = nn.Linear(n_in, n_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return he_normal(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))


def build_alexnet(image_shape: tuple[int, int, int], n_classes: int, width: int) -> nn.Module:
    """Five convolutions of 1, 3, 6, 4, 4 times `width`, pooling after the first, second, last."""
    side, n_in = (min(image_shape[:2]) - 1) // 4 + 1, image_shape[2]
    layers: list[nn.Module] = []
    for factor, kernel, stride, padding, is_pooled in (
        (1, 11, 4, 5, True),
        (3, 5, 1, 2, True),
        (6, 3, 1, 1, False),
        (4, 3, 1, 1, False),
        (4, 3, 1, 1, True),
    ):
        layers += [nn.Conv2d(n_in, factor * width, kernel, stride, padding), nn.ReLU()]
        n_in = factor * width
        if is_pooled:
            side = _halve(side, layers)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


def _halve(side: int, layers: list[nn.Module]) -> int:
    """Append a pooling layer where there is something to pool; the side that is left."""
    if side == 1:
        return 1
    layers.append(nn.MaxPool2d(2))
    return side // 2
