"""Augmentation of a whole batch in tensor operations, each sample with draws of its own.

The draws of a sample depend on (seed, step, its slot in the batch), so the same image is augmented
anew in every pass, and a world's batch is augmented alike in the other world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bootstrap.errors import ConfigurationError
from bootstrap.randomness import Stream, uniforms

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(Protocol):
    """A value that turns a batch of images in [0, 1] into another."""

    def apply(self, x: Tensor, mean: Tensor, seed: int, step: int) -> Tensor:
        """x: (n, height, width, channel) in [0, 1]; `mean` (channel,) fills the outside."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Images as they are."""

    def apply(self, x: Tensor, mean: Tensor, seed: int, step: int) -> Tensor:
        """See `Augmentation`."""
        return x


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """A random crop from the image padded by `padding_px`, mirrored with probability 1/2."""

    padding_px: int = 4

    def __post_init__(self) -> None:
        if self.padding_px < 0:
            raise ConfigurationError(f"padding_px={self.padding_px} must be at least 0")

    def apply(self, x: Tensor, mean: Tensor, seed: int, step: int) -> Tensor:
        """See `Augmentation`."""
        import torch

        n, height, width, channels = x.shape
        pad = self.padding_px
        dy, dx, mirrored = crop_flip_draws(n, pad, seed, step)
        padded = mean.expand(n, height + 2 * pad, width + 2 * pad, channels).clone()
        padded[:, pad : pad + height, pad : pad + width] = x
        rows = dy[:, None] + np.arange(height)
        columns = (
            np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + dx[:, None]
        )
        image, row, column = (
            torch.from_numpy(a).to(x.device) for a in (np.arange(n), rows, columns)
        )
        return padded[image[:, None, None], row[:, :, None], column[:, None, :]]


def crop_flip_draws(
    n: int, padding_px: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per slot: the crop's upper and left edge in the padded image, and whether it is mirrored."""
    draws = uniforms(seed, Stream.AUGMENT, step, n=3 * n).reshape(n, 3)
    edges = (draws[:, :2] * (2 * padding_px + 1)).astype(np.int64)
    return edges[:, 0], edges[:, 1], draws[:, 2] < 0.5


AUGMENTATIONS: dict[str, type] = {"none": NoAugmentation, "crop_flip": CropFlip}
