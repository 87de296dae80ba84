"""Toy images from a closed-form distribution: p(label | image) is known, so the Bayes error is too.

Each class is a mixture of `n_modes` smooth prototypes; an image is a prototype plus Gaussian pixel
noise. `noise` is the difficulty dial. Rounding to uint8 and clipping are ignored in
p(label | image): prototypes stay several deviations of the noise away from 0 and 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import logsumexp, softmax

from bootstrap.errors import ConfigurationError
from bootstrap.randomness import Stream, normals, uniforms
from generators.label import class_of_ids

CONTRAST = (
    0.32  # deviation of a prototype's pixels, times the side: difficulty does not depend on it
)
N_WAVES = 6  # plane waves in a prototype
PIECE = 256  # images whose posterior is taken at a time: they are float64 then


@dataclass(frozen=True, kw_only=True)
class ToySource:
    """Labelled images of `side` pixels; `noise` is the deviation of each pixel, in [0, 1] units."""

    has_classes: ClassVar = True
    side: int = 8
    n_channels: int = 3
    n_classes: int = 10
    n_modes: int = 2
    noise: float = 0.12
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("side", 1),
            ("n_classes", 2),
            ("n_modes", 1),
            ("noise", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.n_channels not in (1, 3):
            raise ConfigurationError(f"n_channels={self.n_channels} must be 1 (grey) or 3 (colour)")

    @property
    def name(self) -> str:
        """The data set's name."""
        return f"toy-{self.side}px"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channel."""
        return (self.side, self.side, self.n_channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        return tuple(f"class {k}" for k in range(self.n_classes))

    def provenance(self) -> dict[str, Any]:
        """What decides every byte."""
        return {"source": "toy", **asdict(self)}

    @cached_property
    def prototypes(self) -> Float[np.ndarray, "n_classes n_modes height width channel"]:
        """The noiseless images: sums of a few plane waves, around 1/2."""
        shape = (self.n_classes, self.n_modes, self.n_channels, N_WAVES, 4)
        u = uniforms(self.seed, Stream.TOY, 0, n=int(np.prod(shape))).reshape(shape)
        y, x = np.meshgrid(*[np.arange(self.side) / self.side] * 2, indexing="ij")
        frequency = np.round((u[..., :2] - 0.5) * 5)  # cycles across the image, at most 2.5
        phase = (
            frequency[..., 0, None, None] * y
            + frequency[..., 1, None, None] * x
            + u[..., 2, None, None]
        )
        waves = (
            np.sqrt(-2 * np.log1p(-u[..., 3]))[..., None, None] * np.cos(2 * np.pi * phase)
        ).sum(axis=3)
        return 0.5 + CONTRAST / (self.side * np.sqrt(N_WAVES)) * np.moveaxis(waves, 2, -1)

    def sample(
        self,
        ids: Int[np.ndarray, " n"],
        labels: Int[np.ndarray, " n"],
        attempts: Int[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, "n height width channel"]:
        """The image of each (id, label, attempt); the same whatever else is asked for."""
        images = np.empty((len(ids), *self.image_shape))
        n_pixels = int(np.prod(self.image_shape))
        for row, (i, label, attempt) in enumerate(zip(ids, labels, attempts, strict=True)):
            mode = int(
                uniforms(self.seed, Stream.TOY, 1, int(i), int(attempt), n=1)[0] * self.n_modes
            )
            noise = normals(self.seed, Stream.SAMPLE_NOISE, int(i), int(attempt), n=n_pixels)
            images[row] = self.prototypes[label, mode] + self.noise * noise.reshape(
                self.image_shape
            )
        return np.rint(255 * images.clip(0, 1)).astype(np.uint8)

    def posterior(
        self, images: UInt8[np.ndarray, "n height width channel"]
    ) -> Float[np.ndarray, "n n_classes"]:
        """p(label | image), exact up to rounding and clipping."""
        x = images.reshape(len(images), -1) / 255
        means = self.prototypes.reshape(self.n_classes * self.n_modes, -1)
        squared = (x**2).sum(1)[:, None] - 2 * x @ means.T + (means**2).sum(1)
        log_density = (-squared / (2 * self.noise**2)).reshape(len(x), self.n_classes, self.n_modes)
        return softmax(logsumexp(log_density, axis=2), axis=1)

    def bayes_error(self, n: int = 4_096) -> float:
        """The error of the best classifier: mean of 1 - max p(label | image) over `n` images."""
        best = []
        for start in range(0, n, PIECE):
            ids = np.arange(start, min(start + PIECE, n))
            classes = class_of_ids(ids, self.n_classes, self.seed)
            images = self.sample(ids, classes, np.zeros(len(ids), dtype=np.int64))
            best.append(self.posterior(images).max(axis=1))
        return float(1 - np.concatenate(best).mean())
