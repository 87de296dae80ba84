"""What a model can be pre-trained to do: tell classes, quarter turns, hidden patches, next pixels.

A method is a frozen value. It builds an `Objective`, the model with whatever the task needs on top
of it, which gives the loss of a batch; draws are a function of (seed, step, slot in the batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bootstrap.errors import ConfigurationError
from bootstrap.models import Model, PixelTransformer
from bootstrap.models.pixels import Palette
from bootstrap.randomness import Stream, integers, uniforms
from bootstrap.timm_weights import TimmWeights

Images = Float[Tensor, "n channel height width"]
Shape = tuple[int, int, int]
N_TURNS = 4


class Objective(nn.Module):
    """A model, and what its task needs on top, which is thrown away when the task is done."""

    def __init__(self, model: nn.Module, top: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.top = top or nn.Identity()

    def forward(self, x: Images, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch, and its error, which is NaN where nothing is right or wrong."""
        logits = self.top(self.model(x)).float()
        return cross_entropy(logits, target), (logits.argmax(dim=1) != target).float().mean()


class Method(Protocol):
    """A value that turns labelled images into a task."""

    def build(self, model: Model, image_shape: Shape, n_classes: int) -> Objective:
        """Fresh weights; ConfigurationError for a model that cannot do it."""
        ...

    def batch(self, x: Images, labels: Tensor, seed: int, step: int) -> tuple[Images, Tensor]:
        """What the objective is given of a batch of normalised images, and what it should find."""
        ...


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """The classes of another data set, or of some of its classes."""

    def build(self, model: Model, image_shape: Shape, n_classes: int) -> Objective:
        """See `Method`."""
        return Objective(model.build(image_shape, n_classes))

    def batch(self, x: Images, labels: Tensor, seed: int, step: int) -> tuple[Images, Tensor]:
        """See `Method`."""
        return x, labels


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """By how many quarter turns was the image rotated? (Gidaris et al. 2018)."""

    def build(self, model: Model, image_shape: Shape, n_classes: int) -> Objective:
        """See `Method`."""
        if image_shape[0] != image_shape[1]:
            size = f"{image_shape[0]}x{image_shape[1]}"
            raise ConfigurationError(f"rotation needs square images, not {size}")
        return Objective(model.build(image_shape, N_TURNS))

    def batch(self, x: Images, labels: Tensor, seed: int, step: int) -> tuple[Images, Tensor]:
        """See `Method`."""
        draws = integers(N_TURNS, seed, Stream.PRETRAIN, step, n=len(x))
        turns, turned = torch.from_numpy(draws).to(x.device), x.clone()
        for k in range(1, N_TURNS):
            turned[turns == k] = torch.rot90(x[turns == k], k, (2, 3))
        return turned, turns


@dataclass(frozen=True, kw_only=True)
class MaskedPatches:
    """What is behind hidden patches? For vision transformers.

    A `fraction` of an image's patches is set to the mean colour; the loss is the mean squared error
    of their normalised pixels, from a linear layer on the tokens (Xie et al. 2022; He et al. 2022).
    """

    fraction: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ConfigurationError(f"fraction={self.fraction} must be between 0 and 1")

    def build(self, model: Model, image_shape: Shape, n_classes: int) -> Objective:
        """See `Method`."""
        built = model.build(image_shape, n_classes)
        if not (hasattr(built, "patch_embed") and hasattr(built, "num_prefix_tokens")):
            raise ConfigurationError(
                "masked_patches is for vision transformers (vit); use rotation for other models"
            )
        return HiddenPatches(built, image_shape, self.fraction)

    def batch(self, x: Images, labels: Tensor, seed: int, step: int) -> tuple[Images, Tensor]:
        """See `Method`: the target is a draw for every pixel, of which that of a patch's corner
        counts."""
        n, _, height, width = x.shape
        draws = uniforms(seed, Stream.PRETRAIN, step, n=n * height * width)
        return x, torch.from_numpy(draws).float().reshape(n, height, width).to(x.device)


class HiddenPatches(Objective):
    """A vision transformer that paints the patches that it is not shown."""

    def __init__(self, model: nn.Module, image_shape: Shape, fraction: float) -> None:
        self.patch = int(model.patch_embed.patch_size[0])  # type: ignore[union-attr, index]
        top = nn.Linear(int(model.embed_dim), self.patch**2 * image_shape[2])  # type: ignore[arg-type]
        super().__init__(model, top)
        n_patches = image_shape[0] * image_shape[1] // self.patch**2
        self.n_hidden = min(max(round(fraction * n_patches), 1), n_patches)

    def forward(self, x: Images, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`; `target` holds draws that decide what is hidden."""
        is_hidden = self.hidden(target)
        rows = is_hidden.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        shown = x.masked_fill(rows[:, None], 0.0)  # 0 is the data set's mean colour
        tokens = self.model.forward_features(shown)  # type: ignore[operator]
        painted = self.top(tokens[:, self.model.num_prefix_tokens :]).float()
        error = ((painted - self.patches(x)) ** 2).mean(dim=2)
        loss = (error * is_hidden.flatten(1)).sum() / is_hidden.sum()
        return loss, torch.full_like(loss, torch.nan)

    def hidden(self, draws: Float[Tensor, "n h w"]) -> Bool[Tensor, "n rows columns"]:
        """The patches with the lowest draws, equally many in every image."""
        corners = draws[:, :: self.patch, :: self.patch]
        order = corners.flatten(1).argsort(dim=1, stable=True)
        is_hidden = torch.zeros_like(order, dtype=torch.bool)
        is_hidden.scatter_(1, order[:, : self.n_hidden], True)
        return is_hidden.reshape(corners.shape)

    def patches(self, x: Images) -> Float[Tensor, "n patch pixels"]:
        """The pixels of every patch, patches row by row."""
        n, channels, height, width = x.shape
        p = self.patch
        cut = x.reshape(n, channels, height // p, p, width // p, p)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // p**2, -1)


@dataclass(frozen=True, kw_only=True)
class NextPixel:
    """Which colour has the next pixel? For the pixel transformer (Chen et al. 2020)."""

    def build(self, model: Model, image_shape: Shape, n_classes: int) -> Objective:
        """See `Method`."""
        if not isinstance(model, PixelTransformer):
            raise ConfigurationError(
                "next_pixel is for pixel_transformer; use rotation for other models"
            )
        return NextColour(model.build(image_shape, n_classes), model.width)

    def batch(self, x: Images, labels: Tensor, seed: int, step: int) -> tuple[Images, Tensor]:
        """See `Method`."""
        return x, labels


class NextColour(Objective):
    """The pixel transformer with a prediction of each colour from those before it."""

    def __init__(self, model: nn.Module, width: int) -> None:
        assert isinstance(model, nn.Sequential)
        palette = model[0]
        assert isinstance(palette, Palette)
        super().__init__(model, nn.Linear(width, palette.n_colours, bias=False))

    def forward(self, x: Images, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`; labels do not count. The loss is in nats a pixel."""
        assert isinstance(self.model, nn.Sequential)
        colours: Int[Tensor, "n pixel"] = self.model[0](x)
        features = self.model[1:-2](colours)  # up to the mean over pixels
        logits = self.top(features).float().flatten(0, 1)
        error = (logits.argmax(dim=1) != colours.flatten()).float().mean()
        return cross_entropy(logits, colours.flatten()), error


METHODS: dict[str, type] = {
    "supervised": Supervised,
    "rotation": Rotation,
    "masked_patches": MaskedPatches,
    "next_pixel": NextPixel,
    "timm": TimmWeights,
}
