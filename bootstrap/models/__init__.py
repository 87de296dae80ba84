"""Models as frozen values under the paper's names; building one imports torch.

Stems are CIFAR's: no stride or pooling before the first block. No model has dropout, because
nothing in a run may depend on a global generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from bootstrap.errors import ConfigurationError
from bootstrap.models.genotype import (
    CELLS,
    WIDTHS,
    draw_genotype,
    draw_size,
    format_genotype,
    parse_genotype,
)

if TYPE_CHECKING:
    from torch import nn


class Model(Protocol):
    """A value that builds a classifier for images of (height, width, channel)."""

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """The module: normalised images (batch, channel, height, width) -> (batch, n_classes).

        ConfigurationError (a ValueError) for an image shape that the architecture cannot take.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _OfWidth:
    width: int = 64

    def __post_init__(self) -> None:
        _check_sizes(width=self.width)


@dataclass(frozen=True, kw_only=True)
class PreActResNet18(_OfWidth):
    """Pre-activation ResNet-18 (He et al. 2016b) with a CIFAR stem; 64 is the full width."""

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.resnet import build_preact_resnet

        return build_preact_resnet(image_shape[2], n_classes, self.width, depth=18)


@dataclass(frozen=True, kw_only=True)
class _ResNetK(_OfWidth):
    pre_activation: bool = True
    depth: ClassVar[int]

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.resnet import build_postact_resnet, build_preact_resnet

        build = build_preact_resnet if self.pre_activation else build_postact_resnet
        return build(image_shape[2], n_classes, self.width, self.depth)


class ResNet18K(_ResNetK):
    """ResNet-18 of any width; 64 is the full one, `pre_activation` as in the paper's CIFAR-5m runs.

    Without it, the blocks of He et al. 2016a, as in the paper's ImageNet runs.
    """

    depth = 18


class ResNet34K(_ResNetK):
    """ResNet-34 of any width; see `ResNet18K`."""

    depth = 34


class ResNet50K(_ResNetK):
    """ResNet-50 of any width, with bottlenecks; see `ResNet18K`."""

    depth = 50


@dataclass(frozen=True, kw_only=True)
class WideResNet:
    """Wide ResNet of `depth` 6n + 4, `widen` times 16 channels (Zagoruyko and Komodakis 2016)."""

    depth: int = 28
    widen: int = 10

    def __post_init__(self) -> None:
        _check_sizes(widen=self.widen)
        if self.depth < 10 or self.depth % 6 != 4:
            raise ConfigurationError(f"depth={self.depth} must be 6n + 4, such as 16, 28 or 40")

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.resnet import build_wide_resnet

        return build_wide_resnet(image_shape[2], n_classes, self.depth, self.widen)


@dataclass(frozen=True, kw_only=True)
class WRN28x10(WideResNet):
    """WRN-28-10; `WideResNet` has other sizes."""

    depth: int = field(default=28, init=False)
    widen: int = field(default=10, init=False)


@dataclass(frozen=True, kw_only=True)
class VGG11(_OfWidth):
    """VGG-11 with batch norm and one linear layer (Simonyan and Zisserman 2015, configuration A).

    64 is the full width. Pooling stops where an image is one pixel high or wide.
    """

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.vgg import build_vgg

        return build_vgg(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class AlexNet(_OfWidth):
    """AlexNet for CIFAR: five convolutions, one linear layer (Krizhevsky 2014); 64 is full width.

    Pooling stops where an image is one pixel high or wide.
    """

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.vgg import build_alexnet

        return build_alexnet(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class DenseNet:
    """DenseNet of `depth` 3n + 4 without bottlenecks or compression (Huang et al. 2017)."""

    depth: int = 40
    growth: int = 12

    def __post_init__(self) -> None:
        _check_sizes(growth=self.growth)
        if self.depth < 7 or self.depth % 3 != 1:
            raise ConfigurationError(f"depth={self.depth} must be 3n + 4, such as 22, 40 or 100")

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.densenet import build_densenet

        _check_side("densenet", image_shape)
        return build_densenet(image_shape[2], n_classes, self.depth, self.growth)


@dataclass(frozen=True, kw_only=True)
class DenseNet40x12(DenseNet):
    """DenseNet-40 of growth rate 12; `DenseNet` has other sizes."""

    depth: int = field(default=40, init=False)
    growth: int = field(default=12, init=False)


@dataclass(frozen=True, kw_only=True)
class DenseNet40x32(DenseNet):
    """DenseNet-40 of growth rate 32; `DenseNet` has other sizes."""

    depth: int = field(default=40, init=False)
    growth: int = field(default=32, init=False)


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
class SmallCNN(_OfWidth):
    """The paper's five-layer CNN ("mCNN"): four convolutions, one linear layer.

    Nakkiran et al. 2019, appendix.
    """

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.cnn import build_small_cnn

        _check_side("mcnn", image_shape)
        return build_small_cnn(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class DConv(_OfWidth):
    """D-CONV: eight convolutions and a hidden layer; `width` base channels (Neyshabur 2020)."""

    width: int = 32

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.scratch import build_dconv

        return build_dconv(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class DFC(_OfWidth):
    """D-FC: the fully connected net of D-CONV's layer sizes, which subsumes it (Neyshabur 2020).

    At the paper's width and 32 px it has 1.17e9 parameters, 4.7 GB in float32.
    """

    width: int = 32

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.scratch import build_dfc

        return build_dfc(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class SConv(_OfWidth):
    """S-CONV: one 9x9 convolution and a hidden layer; `width` channels (Neyshabur 2020)."""

    width: int = 48

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.scratch import build_sconv

        return build_sconv(image_shape, n_classes, self.width)


@dataclass(frozen=True, kw_only=True)
class Darts:
    """A random cell of four nodes with operations of the DARTS space (Liu et al. 2019).

    The cell is stacked as in NAS-Bench-201 (Dong and Yang 2020): `cells` in each of three stages of
    1, 2, 4 times `width` channels. What is not given is drawn by the seed, cells from {1, 5} and
    width from {16, 64}, so that the value and its text always show the whole architecture.
    """

    seed: int = 0
    genotype: str = ""
    cells: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        drawn = self.genotype or format_genotype(draw_genotype(self.seed))
        parse_genotype(drawn)
        object.__setattr__(self, "genotype", drawn)
        for name, choices in (("cells", CELLS), ("width", WIDTHS)):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, draw_size(self.seed, choices))
        _check_sizes(cells=self.cells, width=self.width)

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.darts import build_darts

        genotype = parse_genotype(self.genotype)
        return build_darts(image_shape[2], n_classes, genotype, self.cells, self.width)


@dataclass(frozen=True, kw_only=True)
class ViT:
    """Vision transformer (Dosovitskiy et al. 2021) of timm; the defaults are ViT-B with patch 4.

    Class token, learned positions, one linear layer as head. `width` is the embedding's.
    """

    patch: int = 4
    width: int = 768
    depth: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        _check_sizes(patch=self.patch, depth=self.depth)
        _check_heads(self.width, self.heads)

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.vit import build_vit

        return build_vit(image_shape, n_classes, self.patch, self.width, self.depth, self.heads)


@dataclass(frozen=True, kw_only=True)
class Timm:
    """Any model of timm by its name there, with fresh weights; most have an ImageNet stem."""

    name: str

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.vit import build_timm

        return build_timm(image_shape, n_classes, self.name)


@dataclass(frozen=True, kw_only=True)
class PixelTransformer:
    """A transformer over an image as a sequence of colours, after Image GPT (Chen et al. 2020).

    Colours are clustered by a fixed palette, not fitted to data: each channel of a normalised image
    is cut into `levels` equally likely parts of a standard normal, so 8 levels of 3 channels are
    512 colours, as many as Image GPT's. Its small size is width=512, depth=24, heads=8.
    """

    width: int = 128
    depth: int = 6
    heads: int = 4
    levels: int = 8

    def __post_init__(self) -> None:
        _check_sizes(depth=self.depth)
        _check_heads(self.width, self.heads)
        if self.levels < 2:
            raise ConfigurationError(f"levels={self.levels} must be at least 2")

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """See `Model`."""
        from bootstrap.models.pixels import build_pixel_transformer

        return build_pixel_transformer(
            image_shape, n_classes, self.width, self.depth, self.heads, self.levels
        )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1")


def _check_heads(width: int, heads: int) -> None:
    _check_sizes(width=width, heads=heads)
    if width % heads:
        raise ConfigurationError(f"width={width} must be a multiple of heads={heads}")


def _check_side(name: str, image_shape: tuple[int, int, int]) -> None:
    height, width, _ = image_shape
    if min(height, width) < 8:
        raise ConfigurationError(
            f"{name} takes images of 8 px and more, not {height}x{width}; use mlp or resnet18k"
        )


MODELS: dict[str, type] = {
    "preresnet18": PreActResNet18,
    "mlp": MLP,
    "mcnn": SmallCNN,
    "resnet18k": ResNet18K,
    "resnet34k": ResNet34K,
    "resnet50k": ResNet50K,
    "wrn": WideResNet,
    "wrn28_10": WRN28x10,
    "vgg11_bn": VGG11,
    "alexnet": AlexNet,
    "densenet": DenseNet,
    "densenet40_12": DenseNet40x12,
    "densenet40_32": DenseNet40x32,
    "dconv": DConv,
    "dfc": DFC,
    "sconv": SConv,
    "darts": Darts,
    "vit": ViT,
    "timm": Timm,
    "pixel_transformer": PixelTransformer,
}
