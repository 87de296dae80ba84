"""The denoiser: a class-conditional diffusers UNet2DModel that predicts the velocity of a flow.

Flow matching (Lipman et al. 2022; Liu et al. 2022): x_t = (1 - t) x + t eps for t in [0, 1], and the
network learns E[eps - x | x_t, class]. On a CPU most time goes into the highest resolution, so the
network works on 2x2 pixels folded into channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from bootstrap.files import replace
from bootstrap.randomness import Stream, torch_seed
from generators.sources import CIFAR10_CLASSES


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The shape of a denoiser; `fold_px` pixels a side become channels before the first convolution."""

    image_shape: tuple[int, int, int] = (32, 32, 3)  # height, width, channel
    class_names: tuple[str, ...] = CIFAR10_CLASSES
    fold_px: int = 2
    widths: tuple[int, ...] = (48, 96, 192)
    n_layers: int = 1
    norm_groups: int = 16

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def __post_init__(self) -> None:
        unit = self.fold_px * 2 ** (len(self.widths) - 1)
        if any(side % unit for side in self.image_shape[:2]):
            raise ValueError(
                f"image sides {self.image_shape[:2]} must be multiples of {unit}"
                f" (fold_px={self.fold_px}, {len(self.widths)} levels)"
            )
        if any(width % self.norm_groups for width in self.widths):
            raise ValueError(
                f"widths={self.widths} must be multiples of norm_groups={self.norm_groups}"
            )


class Denoiser(nn.Module):
    """velocity(x_t, t, label); label `n_classes` means "no class" (for guidance)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        height, width, channels = config.image_shape
        folded = channels * config.fold_px**2
        n_levels = len(config.widths)
        self.unet = UNet2DModel(
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
        folded = pixel_unshuffle(x, self.config.fold_px).contiguous(
            memory_format=torch.channels_last
        )
        velocity = self.unet(folded, t * 1_000, class_labels=label).sample
        return pixel_shuffle(velocity, self.config.fold_px)


def build_denoiser(config: DenoiserConfig, seed: int) -> Denoiser:
    """A denoiser with fresh weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.INIT))
        return Denoiser(config).to(memory_format=torch.channels_last)


def flow_matching_loss(
    denoiser: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity at logit-normal times (Esser et al. 2024, section 3.1)."""
    t = torch.randn(len(images), generator=generator).sigmoid().to(images.device)
    eps = torch.randn(images.shape, generator=generator).to(images.device)
    blend = t[:, None, None, None]
    velocity = denoiser((1 - blend) * images + blend * eps, t, labels)
    return (velocity.float() - (eps - images)).square().mean()


def write_denoiser(path: Path, denoiser: Denoiser, card: dict[str, Any]) -> None:
    """Save weights as float16 safetensors; the configuration and `card` go into the file's metadata."""
    weights = {
        name: tensor.half().cpu().contiguous() for name, tensor in denoiser.state_dict().items()
    }
    metadata = {"config": json.dumps(asdict(denoiser.config)), "card": json.dumps(card)}
    replace(path, save(weights, metadata=metadata))


def read_denoiser(path: Path) -> Denoiser:
    """A denoiser in float32 from a file of `write_denoiser`."""
    with safe_open(str(path), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    config = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
    denoiser = build_denoiser(DenoiserConfig(**config), seed=0)
    denoiser.load_state_dict(weights)
    return denoiser
