"""Models as frozen values under the paper's names; building one imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bootstrap.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn


class Model(Protocol):
    """A value that builds a classifier for images of (height, width, channel)."""

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """The module: normalised images (batch, channel, height, width) -> (batch, n_classes)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PreActResNet18:
    """Pre-activation ResNet-18 (He et al. 2016b) with a CIFAR stem; 64 is the full width."""

    width: int = 64

    def __post_init__(self) -> None:
        _check_sizes(width=self.width)

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.resnet import build_preact_resnet18

        return build_preact_resnet18(image_shape[2], n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class MLP:
    """`depth` hidden layers of `width` units, each with batch norm unless switched off."""

    width: int = 2_048
    depth: int = 3
    batch_norm: bool = True

    def __post_init__(self) -> None:
        _check_sizes(width=self.width, depth=self.depth)

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.mlp import build_mlp

        return build_mlp(image_shape, n_classes, self.width, self.depth, self.batch_norm)


@dataclass(frozen=True, kw_only=True)
class SmallCNN:
    """The paper's five-layer CNN ("mCNN"): four convolutions, one linear layer.

    Nakkiran et al. 2019, appendix.
    """

    width: int = 64

    def __post_init__(self) -> None:
        _check_sizes(width=self.width)

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.cnn import build_small_cnn

        return build_small_cnn(image_shape, n_classes, self.width)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1")


MODELS: dict[str, type] = {"preresnet18": PreActResNet18, "mlp": MLP, "mcnn": SmallCNN}
