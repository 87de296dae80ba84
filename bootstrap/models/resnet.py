"""Pre-activation ResNets with a CIFAR stem: 3x3, stride 1, no pooling."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut starts after the first activation where shapes change."""

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


def build_preact_resnet18(n_channels: int, n_classes: int, width: int) -> nn.Module:
    """Four stages of two blocks, widths 1, 2, 4, 8 times `width`."""
    stages: list[nn.Module] = []
    n_in = width
    for n_out, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        stages += [PreActBlock(n_in, n_out, stride), PreActBlock(n_out, n_out, 1)]
        n_in = n_out
    return nn.Sequential(
        nn.Conv2d(n_channels, width, 3, 1, 1, bias=False),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(n_in, n_classes),
    )
