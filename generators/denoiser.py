"""The denoiser: a class-conditional diffusers UNet2DModel that predicts the velocity of a flow.

Flow matching (Lipman et al. 2022; Liu et al. 2022): x_t = (1 - t) x + t eps for t in [0, 1], and
the network learns E[eps - x | x_t, class]. On a CPU most time goes into the highest resolution, so
the network works on 2x2 pixels folded into channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
import tyro
from diffusers import UNet2DModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from bootstrap.errors import ConfigurationError
from bootstrap.files import replace
from bootstrap.randomness import Stream, torch_seed
from generators import weights_file
from generators.sources import CIFAR10_CLASSES
from generators.weights_file import read_metadata, refusing

T = TypeVar("T")
FromImages = Annotated[T, tyro.conf.Suppress, tyro.conf.Fixed]  # the images decide, no option does


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The shape of a denoiser; `fold_px` pixels a side become channels before all else."""

    image_shape: FromImages[tuple[int, int, int]] = (32, 32, 3)  # height, width, channel
    class_names: FromImages[tuple[str, ...]] = CIFAR10_CLASSES
    fold_px: int = 2
    widths: tuple[int, ...] = (48, 96, 192)  # channels of each level; a level halves the side
    n_layers: int = 1
    norm_groups: int = 16
    prediction: Literal["velocity", "edm"] = "velocity"  # what the network is asked for

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def __post_init__(self) -> None:
        if self.prediction not in ("velocity", "edm"):
            raise ValueError(f"prediction={self.prediction!r} must be velocity or edm")
        if not self.widths or min(*self.widths, self.fold_px, self.n_layers, self.norm_groups) < 1:
            raise ConfigurationError(
                f"widths={self.widths}, fold_px={self.fold_px}, n_layers={self.n_layers},"
                f" norm_groups={self.norm_groups}: all must be at least 1"
            )
        if any(width % self.norm_groups for width in self.widths):
            raise ConfigurationError(
                f"widths={self.widths} must be multiples of norm_groups={self.norm_groups}"
            )
        if not self._divides(self.fold_px, len(self.widths)):
            raise ConfigurationError(self._sides_that_work())

    def _divides(self, fold_px: int, n_levels: int) -> bool:
        return not any(side % (fold_px * 2 ** (n_levels - 1)) for side in self.image_shape[:2])

    def _sides_that_work(self) -> str:
        height, width = self.image_shape[:2]
        n_levels = len(self.widths)
        unit = self.fold_px * 2 ** (n_levels - 1)
        below = (height if height % unit else width) // unit * unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        fold_px, n = next(
            (fold_px, n)
            for fold_px in (self.fold_px, 1)
            for n in range(n_levels, 0, -1)
            if self._divides(fold_px, n)
        )
        remedy = "--widths " + " ".join(map(str, self.widths[:n]))
        if fold_px != self.fold_px:
            remedy = f"--fold-px {fold_px} {remedy}"
        return (
            f"images of {height}x{width}: sides must be multiples of {unit} (fold_px="
            f"{self.fold_px}, {n_levels} levels), such as {near}; or train with `{remedy}`"
        )


DATA_STD = 0.5  # of images in [-1, 1]
SIZES = {  # small trains on a CPU, base wants a GPU
    "small": DenoiserConfig(),
    "base": DenoiserConfig(widths=(128, 256, 256), n_layers=2, norm_groups=32),
}


class Denoiser(nn.Module):
    """velocity(x_t, t, label); label `n_classes` means "no class" (for guidance)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        height, width, channels = config.image_shape
        folded = channels * config.fold_px**2
        n_levels = len(config.widths)
        self.unet: Any = UNet2DModel(
            sample_size=(height // config.fold_px, width // config.fold_px),
            in_channels=folded,
            out_channels=folded,
            block_out_channels=config.widths,
            layers_per_block=config.n_layers,
            down_block_types=("DownBlock2D",) * n_levels,
            up_block_types=("UpBlock2D",) * n_levels,
            norm_num_groups=config.norm_groups,
            num_class_embeds=config.n_classes + 1,
            add_attention=False,
        )

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.config.n_classes

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        t: Float[Tensor, " batch"],
        label: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """The velocity dx/dt at `x`, time `t` in [0, 1]; images are in [-1, 1]."""
        if self.config.prediction == "velocity":
            return self._network(x, t, label)
        scale = edm_scale(t)[:, None, None, None]
        t = t[:, None, None, None]
        skip, out = DATA_STD**2 * (1 - t) / scale**2, DATA_STD * t / scale
        clean = skip * x + out * self._network(x / scale, t.flatten(), label).float()
        return (x - clean) / t

    def _network(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        folded = pixel_unshuffle(x, self.config.fold_px).contiguous(
            memory_format=torch.channels_last
        )
        output = self.unet(folded, t * 1_000, class_labels=label).sample
        return pixel_shuffle(output, self.config.fold_px)


def edm_scale(t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The standard deviation of x_t: what EDM's preconditioning divides by (Karras et al. 2022).

    Its table 1 in the coordinates of a straight path, sigma = t / (1 - t).
    """
    return (t.square() + DATA_STD**2 * (1 - t).square()).sqrt()


def build_denoiser(config: DenoiserConfig, seed: int) -> Denoiser:
    """A denoiser with fresh weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.INIT))
        return Denoiser(config).to(memory_format=torch.channels_last)


class Target(Protocol):
    """What a denoiser learns: at which times, and which velocity there."""

    def times(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """Times in (0, 1] to learn at."""
        ...

    def weight(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """How much the squared error of the velocity counts at each time."""
        ...

    def velocity(self, x_t: Tensor, t: Tensor, label: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """The velocity to learn at x_t = (1 - t) x + t eps."""
        ...


class FromData:
    """The straight path from x to eps, at logit-normal times (Esser et al. 2024, section 3.1)."""

    def times(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """Most of them in the middle, where the velocity is hardest to guess."""
        return torch.randn(n, generator=generator, device=generator.device).sigmoid()

    def weight(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The same everywhere."""
        return torch.ones_like(t)

    def velocity(self, x_t: Tensor, t: Tensor, label: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Whatever the class."""
        return eps - x


class FromDataAsEDM(FromData):
    """The times and weights of EDM (Karras et al. 2022): ln sigma is normal, errors count alike."""

    def times(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """sigma = t / (1 - t) with P_mean = -1.2 and P_std = 1.2."""
        normal = torch.randn(n, generator=generator, device=generator.device)
        return (1.2 * normal - 1.2).sigmoid()

    def weight(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """So that an error of the network's own output has weight 1."""
        return (edm_scale(t) / DATA_STD).square()


@dataclass(frozen=True)
class FromGuide:
    """Distillation: the way that a frozen denoiser goes under guidance, in `n_steps` equal steps.

    A step of the student replaces `n_midpoint` midpoint steps of the guide (Salimans and Ho 2022),
    each four evaluations with classifier-free guidance (folded in as by Meng et al. 2023).
    """

    guide: Denoiser
    guidance: float
    n_steps: int
    n_midpoint: int = 1

    def times(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """The starts of the steps, with equal probability."""
        steps = torch.randint(
            1, self.n_steps + 1, (n,), generator=generator, device=generator.device
        )
        return steps / self.n_steps

    def weight(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The same everywhere."""
        return torch.ones_like(t)

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, label: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """The guide's mean velocity over the step that starts at t."""
        half = 0.5 / (self.n_steps * self.n_midpoint)
        velocities = []
        for k in range(self.n_midpoint):
            now = t - 2 * half * k
            middle = x_t - half * self._guided(x_t, now, label)
            velocities.append(self._guided(middle, now - half, label))
            x_t = x_t - 2 * half * velocities[-1]
        return torch.stack(velocities).mean(dim=0)

    def _guided(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        null = torch.full_like(label, self.guide.null_label)
        unconditional = self.guide(x_t, t, null).float()
        conditional = self.guide(x_t, t, label).float()
        return unconditional + self.guidance * (conditional - unconditional)


@dataclass(frozen=True)
class Noise:
    """Times in (0, 1] and standard normal noise of a batch."""

    t: Float[Tensor, " batch"]
    eps: Float[Tensor, "batch channel height width"]

    def __getitem__(self, rows: slice) -> Noise:
        return Noise(self.t[rows], self.eps[rows])


def draw_noise(
    target: Target, n: int, image_shape: tuple[int, ...], generator: torch.Generator
) -> Noise:
    """Times of `target` and noise of (channel, height, width), on the generator's device."""
    t = target.times(n, generator)
    eps = torch.randn((n, *image_shape), generator=generator, device=generator.device)
    return Noise(t, eps)


def velocity_loss(
    denoiser: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    target: Target,
    noise: Noise,
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity at the noise's times, weighted as the target says."""
    t, eps = noise.t, noise.eps
    blend = t[:, None, None, None]
    x_t = (1 - blend) * images + blend * eps
    velocity = denoiser(x_t, t, labels)
    error = velocity.float() - target.velocity(x_t, t, labels, images, eps)
    return (error.square().mean(dim=(1, 2, 3)) * target.weight(t)).mean()


def write_denoiser(path: Path, denoiser: Denoiser, card: dict[str, Any]) -> None:
    """Save weights as float16 safetensors, the configuration and `card` in the metadata.

    Equal weights and cards are equal bytes: safetensors shuffles several entries, so there is one.
    """
    weights = {
        name: tensor.half().cpu().contiguous() for name, tensor in denoiser.state_dict().items()
    }
    text = json.dumps({**card, "config": asdict(denoiser.config)})
    replace(path, save(weights, metadata={"card": text}))


def read_denoiser(path: Path) -> Denoiser:
    """A denoiser in float32 from a file of `write_denoiser`; DataError if it is not one."""
    config = read_config(path)
    with refusing(path, "denoiser"):
        denoiser = build_denoiser(config, seed=0)
        denoiser.load_state_dict({name: t.float() for name, t in load_file(path).items()})
    return denoiser


def read_config(path: Path) -> DenoiserConfig:
    """The shape of the denoiser in a file; DataError if the file holds none."""
    card = read_card(path)
    with refusing(path, "denoiser"):
        # weights from before the card held the configuration have an entry of that name
        config = card["config"] if "config" in card else json.loads(read_metadata(path)["config"])
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return DenoiserConfig(**values)


def read_card(path: Path) -> dict[str, Any]:
    """What `write_denoiser` was told about the weights: images seen, time, hardware, recipe."""
    return weights_file.read_card(path, "denoiser")


def read_images_seen(path: Path) -> int:
    """How many images the weights were trained on; DataError if their card does not say."""
    card = read_card(path)
    with refusing(path, "denoiser"):
        return int(card["images_seen"])
