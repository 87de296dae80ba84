"""Ids to images: noise keyed by (id, attempt), a few steps of a diffusers solver, uint8 out.

Batches always have the same shape, so an image does not depend on what it is sampled with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from bootstrap.environment import hardware
from bootstrap.errors import ConfigurationError, DataError, NumericError
from bootstrap.execution import Flags
from bootstrap.files import file_sha256
from bootstrap.randomness import Stream, normals
from generators.denoiser import Denoiser, read_card, read_config, read_denoiser
from generators.weights_file import refusing

SOLVERS = ("euler", "heun", "dpm++", "unipc")  # euler on this flow is DDIM without noise
SAMPLE_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How images are drawn from a denoiser; guidance 1 asks it once a step, any other twice."""

    solver: str = "dpm++"
    n_steps: int = 8
    guidance: float = 1.0
    shift: float = 1.0  # above 1: more of the steps at high noise (Esser et al. 2024, equation 23)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigurationError(f"solver {self.solver!r}: use one of {', '.join(SOLVERS)}")
        if self.n_steps < 1:
            raise ConfigurationError(f"n_steps={self.n_steps} must be at least 1")

    @property
    def nfe(self) -> int:
        """Function evaluations of the denoiser for one image."""
        steps = 2 * self.n_steps - 1 if self.solver == "heun" else self.n_steps
        return steps * (1 if self.guidance == 1 else 2)


def distilled_sampler(n_steps: int) -> SamplerConfig:
    """The one way to draw from weights that were distilled to `n_steps` steps."""
    return SamplerConfig(solver="euler", n_steps=n_steps)


def build_scheduler(config: SamplerConfig) -> Any:
    """The diffusers scheduler, its time steps set."""
    scheduler: Any
    if config.solver in ("euler", "heun"):
        # their own times spend the last step between sigma = 0.001 and 0
        even = np.linspace(1, 1 / config.n_steps, config.n_steps)
        if config.solver == "euler":
            scheduler = FlowMatchEulerDiscreteScheduler(shift=config.shift)
            scheduler.set_timesteps(sigmas=even.tolist())
            return scheduler
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(config.n_steps)
        sigmas = torch.tensor(config.shift * even / (1 + (config.shift - 1) * even)).float()
        twice = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
        scheduler.sigmas, scheduler.timesteps = torch.cat([twice, torch.zeros(1)]), 1_000 * twice
        return scheduler
    is_dpm = config.solver == "dpm++"
    scheduler = (DPMSolverMultistepScheduler if is_dpm else UniPCMultistepScheduler)(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=config.shift,
        solver_order=2,
    )
    scheduler.set_timesteps(config.n_steps)
    return scheduler


@torch.no_grad()
def solve(
    denoiser: Denoiser,
    noise: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    config: SamplerConfig,
    flags: Flags,
) -> Float[Tensor, "batch channel height width"]:
    """Integrate the flow from noise to images in [-1, 1].

    Classifier-free guidance (Ho and Salimans 2022) unless `config.guidance` is 1.
    """
    scheduler = build_scheduler(config)
    x = noise * scheduler.sigmas[0].item()
    null = torch.full_like(labels, denoiser.null_label)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        time = torch.full((len(x),), float(sigma), device=x.device)  # t may be cut to an integer
        with flags.autocast():
            velocity = denoiser(x, time, labels).float()
            if config.guidance != 1:
                unconditional = denoiser(x, time, null).float()
                velocity = unconditional + config.guidance * (velocity - unconditional)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


@dataclass(frozen=True, kw_only=True)
class DiffusionSpec:
    """A diffusion source as text; `diffusion()` draws from the shipped weights in their own way."""

    weights: str = "small-v2.safetensors"  # a path, or a name among the shipped weights
    solver: str = "euler"
    n_steps: int = 4
    guidance: float = 1.0
    shift: float = 1.0
    seed: int = 0

    def build(self, shipped: Path, flags: Flags) -> DiffusionSource:
        """The source; DataError if there are no such weights or it is not a file of weights.

        ConfigurationError if they were distilled for another sampler.
        """
        path = Path(self.weights) if Path(self.weights).exists() else shipped / self.weights
        if not path.exists():
            raise DataError(
                f"{path}: no such weights; train some with `deep-bootstrap train-generator`"
            )
        config = SamplerConfig(
            solver=self.solver, n_steps=self.n_steps, guidance=self.guidance, shift=self.shift
        )
        read_config(path)  # refuses what is no denoiser before a folder is made for its images
        distilled = read_card(path).get("sampler")
        if distilled and distilled != vars(config):
            with refusing(path, "denoiser"):
                own = f"solver={distilled['solver']!r}, n_steps={distilled['n_steps']}"
            raise ConfigurationError(
                f"{path.name} was distilled for one sampler: use {own}, and neither guidance"
                " nor shift"
            )
        return DiffusionSource(path=path.absolute(), config=config, flags=flags, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class DiffusionSource:
    """Images of a denoiser with fixed weights."""

    has_classes: ClassVar = True
    path: Path
    config: SamplerConfig
    flags: Flags
    seed: int = 0

    @property
    def name(self) -> str:
        """A data set is named after the weights that made it."""
        return self.path.stem

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser, in eval mode on the device."""
        denoiser = read_denoiser(self.path).to(self.flags.torch_device)
        denoiser.eval().requires_grad_(False)
        if self.flags.compiled:
            denoiser.compile(dynamic=False)
        return denoiser

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channel."""
        return self.denoiser.config.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, from the weights' card."""
        return self.denoiser.config.class_names

    def provenance(self) -> dict[str, Any]:
        """What decides every byte, on hardware of one kind."""
        return {
            "source": "diffusion",
            "weights": self.path.name,
            "weights_sha256": file_sha256(self.path),
            "sampler": vars(self.config),
            "seed": self.seed,
            "execution": self.flags.to_json(),
            "hardware": hardware(self.flags.device),
            "torch": torch.__version__,
        }

    def sample(
        self,
        ids: Int[np.ndarray, " n"],
        labels: Int[np.ndarray, " n"],
        attempts: Int[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, "n height width channel"]:
        """The image of each (id, label, attempt)."""

        def draw(noise: Tensor, label: Tensor, flags: Flags) -> Tensor:
            return solve(self.denoiser, noise, label, self.config, flags)

        return draw_images(draw, ids, labels, attempts, self.image_shape, self.seed, self.flags)


Draw = Callable[[Tensor, Tensor, Flags], Tensor]  # (noise, labels, flags) -> images in [-1, 1]


def draw_images(
    draw: Draw,
    ids: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    attempts: Int[np.ndarray, " n"],
    image_shape: tuple[int, int, int],
    seed: int,
    flags: Flags,
) -> UInt8[np.ndarray, "n height width channel"]:
    """The image of each (id, label, attempt), in batches of one fixed shape.

    What is not finite or of a single colour is drawn once more in full precision: bf16 may have
    overflowed. NumericError if it still is not finite; whoever writes refuses single colours.
    """
    images = np.empty((len(ids), *image_shape), dtype=np.uint8)
    exact = replace(flags, precision="fp32")
    for start in range(0, len(ids), SAMPLE_BATCH):
        rows = slice(start, min(start + SAMPLE_BATCH, len(ids)))
        n = rows.stop - start
        padded = [
            np.concatenate([a[rows], np.repeat(a[start : start + 1], SAMPLE_BATCH - n)])
            for a in (ids, labels, attempts)
        ]
        noise = torch.from_numpy(noise_of_ids(padded[0], padded[2], image_shape, seed))
        noise, label = noise.to(flags.torch_device), torch.from_numpy(padded[1])
        label = label.to(flags.torch_device)
        x = draw(noise, label, flags)[:n]
        is_sound = is_finite(x) & ~is_single_colour(x)
        if not is_sound.all():
            x = torch.where(is_sound[:, None, None, None], x, draw(noise, label, exact)[:n])
        is_bad = ~is_finite(x)
        if is_bad.any():
            bad = ids[rows][is_bad.cpu().numpy()].tolist()
            raise NumericError(f"ids {bad}: the sampler returned NaN or infinity")
        images[rows] = to_uint8(x)
    return images


def is_finite(x: Float[Tensor, "n channel height width"]) -> Bool[Tensor, " n"]:
    """Which images hold neither NaN nor infinity."""
    return torch.isfinite(x).flatten(1).all(dim=1)


def is_single_colour(x: Float[Tensor, "n channel height width"]) -> Bool[Tensor, " n"]:
    """Which images have one value in all pixels of each channel once they are rounded."""
    pixels = to_pixels(x).flatten(2)
    return (pixels.amax(dim=2) == pixels.amin(dim=2)).all(dim=1)


def noise_of_ids(
    ids: Int[np.ndarray, " n"],
    attempts: Int[np.ndarray, " n"],
    image_shape: tuple[int, int, int],
    seed: int,
) -> Float[np.ndarray, "n channel height width"]:
    """Standard normal noise of each (id, attempt), made on the CPU: the same everywhere."""
    height, width, channels = image_shape
    size = height * width * channels
    rows = [
        normals(seed, Stream.SAMPLE_NOISE, int(i), int(a), n=size)
        for i, a in zip(ids, attempts, strict=True)
    ]
    return np.stack(rows).reshape(len(ids), channels, height, width)


def to_uint8(
    x: Float[Tensor, "n channel height width"],
) -> UInt8[np.ndarray, "n height width channel"]:
    """[-1, 1] -> uint8 NHWC, clamped and rounded; must be finite (NaN would become black)."""
    return to_pixels(x).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_pixels(
    x: Float[Tensor, "n channel height width"],
) -> Float[Tensor, "n channel height width"]:
    """[-1, 1] -> whole numbers in 0..255."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round()
