"""Cutout, mixup, cutmix: images with holes, and images of two samples.

Draws are those of a step and a slot in the batch of all ranks, so a sample that is used again is
changed anew. Holes are zero after normalisation: the data set's mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.choice import Choice, Inputs, StepContext, WorldClass

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Cutout(Choice):
    """A square hole of `size_px` around a random pixel (DeVries and Taylor 2017).

    At the border a part of it lies outside, so it is smaller there.
    """

    size_px: int = 16
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        if self.size_px < 0:
            raise ConfigurationError(f"cutout: size_px={self.size_px} must be at least 0")

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """See `Choice`."""
        n, _, *shape = inputs.x.shape
        centres = context.uniforms(n, 2) * shape
        size = np.full(n, float(self.size_px))
        hole = boxes(centres.astype(np.int64), size, size, (shape[0], shape[1]))
        return replace(inputs, x=inputs.x.masked_fill(on_device(hole[:, None], inputs.x), 0.0))


@dataclass(frozen=True, kw_only=True)
class Mixup(Choice):
    """Convex pairs, lam x + (1 - lam) x' with lam ~ Beta(alpha, alpha) (Zhang et al. 2018).

    Each sample is mixed with probability `probability`, its targets as its pixels.
    """

    alpha: float = 1.0
    probability: float = 1.0
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        check_mixing("mixup", self.alpha, self.probability)

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """See `Choice`."""
        own, partner = shares_and_partners(len(inputs.ids), self.alpha, self.probability, context)
        share = on_device(own.astype(np.float32), inputs.x)
        other = on_device(partner, inputs.x)
        pixels, classes = share[:, None, None, None], share[:, None]
        return replace(
            inputs,
            x=pixels * inputs.x + (1 - pixels) * inputs.x[other],
            targets=classes * inputs.targets + (1 - classes) * inputs.targets[other],
        )


@dataclass(frozen=True, kw_only=True)
class Cutmix(Choice):
    """A box of another image, of a share 1 - lam of the area (Yun et al. 2019).

    lam ~ Beta(alpha, alpha); the targets are mixed by the area that is pasted, after the box has
    been cut at the border. Each sample is mixed with probability `probability`.
    """

    alpha: float = 1.0
    probability: float = 0.5
    world_class: ClassVar[WorldClass] = WorldClass.STRICT

    def __post_init__(self) -> None:
        check_mixing("cutmix", self.alpha, self.probability)

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """See `Choice`."""
        n, _, height, width = inputs.x.shape
        own, partner = shares_and_partners(n, self.alpha, self.probability, context)
        side = np.sqrt(1 - own)
        centres = (context.uniforms(n, 2, kind=3) * (height, width)).astype(np.int64)
        box = boxes(centres, side * height, side * width, (height, width))
        share = on_device((1 - box.mean(axis=(1, 2))).astype(np.float32), inputs.x)[:, None]
        other = on_device(partner, inputs.x)
        return replace(
            inputs,
            x=inputs.x.where(~on_device(box[:, None], inputs.x), inputs.x[other]),
            targets=share * inputs.targets + (1 - share) * inputs.targets[other],
        )


def check_mixing(name: str, alpha: float, probability: float) -> None:
    """ConfigurationError for a distribution that there is not."""
    if alpha <= 0:
        raise ConfigurationError(f"{name}: alpha={alpha} must be positive")
    if not 0 <= probability <= 1:
        raise ConfigurationError(f"{name}: probability={probability} must be in [0, 1]")


def shares_and_partners(
    n: int, alpha: float, probability: float, context: StepContext
) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """Of each slot the share of its own sample, and the slot of the other one."""
    from scipy.special import betaincinv

    draws = context.uniforms(n, 2, kind=1)
    share = betaincinv(alpha, alpha, draws[:, 0])
    partner = np.argsort(context.uniforms(n, kind=2), kind="stable")
    return np.where(draws[:, 1] < probability, share, 1.0), partner


def boxes(
    centres: np.ndarray, heights: np.ndarray, widths: np.ndarray, shape: tuple[int, int]
) -> Bool[np.ndarray, "n height width"]:
    """Masks of boxes around pixels (row, column), cut at the border; sides are rounded down."""
    inside = []
    for axis, sides in enumerate((heights, widths)):
        n_px = sides.astype(np.int64)
        first = centres[:, axis] - n_px // 2
        at = np.arange(shape[axis])
        inside.append((at >= first[:, None]) & (at < (first + n_px)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """The same as a tensor where `like` is."""
    import torch

    return torch.from_numpy(values).to(like.device)
