"""Residual networks with a CIFAR stem: 3x3, stride 1, no pooling."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from bootstrap.models.initialisation import he_normal

N_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut starts after the first activation where shapes change."""

    expansion = 1

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        changes = stride != 1 or n_in != n_out
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "batch n_in h w"]) -> Float[Tensor, "batch n_out h2 w2"]:
        """One residual block."""
        active = relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        return residual + self.conv2(relu(self.norm2(self.conv1(active))))


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv three times, 1x1, 3x3, 1x1; `n_out` is four times the inner width."""

    expansion = 4

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        n = n_out // self.expansion
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n)
        self.conv2 = nn.Conv2d(n, n, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(n)
        self.conv3 = nn.Conv2d(n, n_out, 1, bias=False)
        changes = stride != 1 or n_in != n_out
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "batch n_in h w"]) -> Float[Tensor, "batch n_out h2 w2"]:
        """One residual block."""
        active = relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        inner = relu(self.norm2(self.conv1(active)))
        return residual + self.conv3(relu(self.norm3(self.conv2(inner))))


def build_preact_resnet(n_channels: int, n_classes: int, width: int, depth: int) -> nn.Module:
    """Four stages, widths 1, 2, 4, 8 times `width`; no norm after the last block, as in the paper.

    `depth` is 18, 34 or 50.
    """
    block: type[PreActBlock | PreActBottleneck] = PreActBottleneck if depth == 50 else PreActBlock
    stages: list[nn.Module] = []
    n_in = width
    for n, stride in _plan(width, depth):
        stages.append(block(n_in, n * block.expansion, stride))
        n_in = n * block.expansion
    return nn.Sequential(
        nn.Conv2d(n_channels, width, 3, 1, 1, bias=False),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(n_in, n_classes),
    )


def build_postact_resnet(n_channels: int, n_classes: int, width: int, depth: int) -> nn.Module:
    """torchvision's blocks (He et al. 2016a) at any width; `depth` is 18, 34 or 50."""
    from torchvision.models.resnet import BasicBlock, Bottleneck  # slow, and only needed here
    from torchvision.ops import Conv2dNormActivation

    block: type[BasicBlock | Bottleneck] = Bottleneck if depth == 50 else BasicBlock
    stages: list[nn.Module] = []
    n_in = width
    for n, stride in _plan(width, depth):
        n_out = n * block.expansion
        shortcut = (
            Conv2dNormActivation(n_in, n_out, 1, stride, activation_layer=None)
            if stride != 1 or n_in != n_out
            else None
        )
        stages.append(block(n_in, n, stride, shortcut))
        n_in = n_out
    return he_normal(
        nn.Sequential(
            Conv2dNormActivation(n_channels, width),
            *stages,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(n_in, n_classes),
        )
    )


def build_wide_resnet(n_channels: int, n_classes: int, depth: int, widen: int) -> nn.Module:
    """Three stages of (depth - 4) / 6 blocks, widths 1, 2, 4 times 16 `widen`; BN-ReLU at the end.

    Zagoruyko and Komodakis 2016, table 1; without dropout.
    """
    stages: list[nn.Module] = []
    n_in = 16
    for factor in (1, 2, 4):
        for index in range((depth - 4) // 6):
            stride = 2 if factor > 1 and index == 0 else 1
            stages.append(PreActBlock(n_in, 16 * widen * factor, stride))
            n_in = 16 * widen * factor
    return he_normal(
        nn.Sequential(
            nn.Conv2d(n_channels, 16, 3, 1, 1, bias=False),
            *stages,
            nn.BatchNorm2d(n_in),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(n_in, n_classes),
        )
    )


def _plan(width: int, depth: int) -> Iterator[tuple[int, int]]:
    """Inner width and stride of every block."""
    for stage, n_blocks in enumerate(N_BLOCKS[depth]):
        for index in range(n_blocks):
            yield width * 2**stage, 2 if stage > 0 and index == 0 else 1
