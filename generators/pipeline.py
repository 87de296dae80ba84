"""Images of a local diffusers pipeline without classes (DDPM, DDIM): the way CIFAR-5m was made.

Such images have no class, so their labels come from a teacher.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bootstrap.environment import hardware
from bootstrap.errors import DataError
from bootstrap.execution import Flags
from bootstrap.files import file_sha256
from generators.sample import draw_images
from generators.sources import CIFAR10_CLASSES

UNET = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A pipeline's folder as text; `class_names` are those of the teacher that labels."""

    folder: str
    n_steps: int = 50  # of deterministic DDIM (Song et al. 2021), whatever the folder's scheduler
    class_names: tuple[str, ...] = CIFAR10_CLASSES
    seed: int = 0

    def build(self, flags: Flags) -> PipelineSource:
        """The source; DataError if the folder is not such a pipeline. Nothing is downloaded."""
        folder = Path(self.folder)
        for name in (UNET, SCHEDULER):
            if not (folder / name).exists():
                raise DataError(
                    f"{folder}: no {name}; save the pipeline there with"
                    " pipeline.save_pretrained(folder, safe_serialization=True)"
                )
        return PipelineSource(
            folder=folder.absolute(),
            n_steps=self.n_steps,
            class_names=tuple(self.class_names),
            seed=self.seed,
            flags=flags,
        )


@dataclass(frozen=True, kw_only=True)
class PipelineSource:
    """Images of an unconditional network, by DDIM steps from the noise of their ids."""

    has_classes: ClassVar = False
    folder: Path
    n_steps: int
    class_names: tuple[str, ...]
    seed: int
    flags: Flags

    @property
    def name(self) -> str:
        """A data set is named after what made it."""
        return self.folder.name

    @cached_property
    def unet(self) -> Any:
        """The network, in eval mode on the device."""
        unet = UNet2DModel.from_pretrained(
            self.folder / "unet",
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # needs accelerate
        )
        unet = unet.to(self.flags.torch_device).to(memory_format=torch.channels_last)
        unet.eval().requires_grad_(False)
        if self.flags.compiled:
            unet.compile(dynamic=False)
        return unet

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channel."""
        config = json.loads((self.folder / "unet/config.json").read_bytes())
        side = config["sample_size"]
        height, width = side if isinstance(side, list) else (side, side)
        return height, width, config["out_channels"]

    def provenance(self) -> dict[str, Any]:
        """What decides every byte, on hardware of one kind."""
        return {
            "source": "pipeline",
            "weights": self.folder.name,
            "weights_sha256": file_sha256(self.folder / UNET),
            "sampler": {"solver": "ddim", "n_steps": self.n_steps, "schedule": self._schedule()},
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
        """The image of each (id, attempt); the labels change nothing."""
        return draw_images(
            self._draw, ids, labels, attempts, self.image_shape, self.seed, self.flags
        )

    @torch.no_grad()
    def _draw(
        self, noise: Float[Tensor, "batch channel height width"], _: Tensor, flags: Flags
    ) -> Float[Tensor, "batch channel height width"]:
        scheduler: Any = DDIMScheduler(**self._schedule(), clip_sample=True)
        scheduler.set_timesteps(self.n_steps)
        x = noise
        for t in scheduler.timesteps:
            with flags.autocast():
                predicted = self.unet(x, t.to(x.device)).sample
            x = scheduler.step(predicted.float(), t, x, eta=0.0, return_dict=False)[0]
        return x

    def _schedule(self) -> dict[str, Any]:
        """The noise that the network was trained with."""
        config = json.loads((self.folder / SCHEDULER).read_bytes())
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        return {key: config[key] for key in keys if key in config}
