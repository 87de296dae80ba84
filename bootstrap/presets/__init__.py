"""Presets: named jobs as plain functions.

A preset is data, a recipe, the N of its real worlds, and seeds.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from bootstrap.augment import CropFlip
from bootstrap.errors import ConfigurationError
from bootstrap.models import MLP, PreActResNet18
from bootstrap.optimizers import SGD, Cosine
from bootstrap.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set to generate: `source` is a spec such as `toy(side=8)`; sizes are in images."""

    name: str
    source: str
    labels: Literal["conditional", "teacher", "agree"]
    n_stream: int
    n_test: int
    n_reference: int

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split, the small ones first."""
        return {"test": self.n_test, "reference": self.n_reference, "stream": self.n_stream}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A whole job."""

    about: str
    data: DataSpec
    recipe: Recipe
    n_samples: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)


SMALL = "diffusion(weights='small-v2.safetensors', solver='euler', n_steps=4)"
LABELS: Literal["teacher"] = "teacher"


def laptop() -> Preset:
    """The default job: minutes on two cores, every image from the shipped denoiser."""
    return Preset(
        about="ResNet-18 (width 16), N = 500 and 2,000, 640 steps of 64 on images of the denoiser",
        data=DataSpec(
            name="small-v2-teacher",
            source=SMALL,
            labels=LABELS,
            n_stream=40_960,
            n_test=4_000,
            n_reference=2_048,
        ),
        recipe=Recipe(
            model=PreActResNet18(width=16),
            optimizer=SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedule=Cosine(warmup_fraction=0.05),
            n_steps=640,
            batch_size=64,
            n_test_curve=512,
            every_step=True,
        ),
        n_samples=(500, 2_000),
    )


def quick() -> Preset:
    """The default job cut down for a machine without fast bf16."""
    base = laptop()
    return Preset(
        about="the laptop job with a quarter of the images: N = 500, 320 steps of 32",
        data=DataSpec(
            name="small-v2-teacher-quick",
            source=SMALL,
            labels=LABELS,
            n_stream=10_240,
            n_test=2_000,
            n_reference=1_024,
        ),
        recipe=Recipe(
            model=PreActResNet18(width=16),
            optimizer=base.recipe.optimizer,
            schedule=base.recipe.schedule,
            n_steps=320,
            batch_size=32,
            n_test_curve=512,
            every_step=True,
        ),
        n_samples=(500,),
    )


def smoke() -> Preset:
    """Seconds: toy images, to see that all works. Its figure says nothing about real images."""
    return Preset(
        about="toy images of 8 px, an MLP, N = 200 and 1,000, 256 steps of 16",
        data=DataSpec(
            name="toy-8px",
            source="toy(side=8)",
            labels="conditional",
            n_stream=4_096,
            n_test=1_000,
            n_reference=512,
        ),
        recipe=Recipe(
            model=MLP(width=256, depth=2),
            optimizer=SGD(lr=0.05, momentum=0.9),
            n_steps=256,
            batch_size=16,
            n_test_curve=512,
            every_step=True,
        ),
        n_samples=(200, 1_000),
    )


def reference() -> Preset:
    """The run in the README: N = 5,000 converges, three seeds, 10,000 test images."""
    base = laptop()
    return Preset(
        about="ResNet-18 (width 16), N = 1,000 and 5,000, three seeds, 10,000 test images",
        data=DataSpec(
            name="small-v2-teacher-reference",
            source=SMALL,
            labels=LABELS,
            n_stream=98_304,
            n_test=10_000,
            n_reference=2_048,
        ),
        recipe=Recipe(
            model=base.recipe.model,
            optimizer=base.recipe.optimizer,
            schedule=base.recipe.schedule,
            n_steps=1_500,
            batch_size=64,
            n_test_curve=2_048,
            every_step=True,
        ),
        n_samples=(1_000, 5_000),
        seeds=(0, 1, 2),
    )


def paper() -> Preset:
    """The paper's protocol on CIFAR-5m: N = 50,000, 100 passes of 390 steps, ten trials."""
    return Preset(
        about="the paper's size: ResNet-18, N = 50,000, 39,000 steps of 128, ten seeds; for GPUs",
        data=DataSpec(
            name="small-v2-paper",
            source=SMALL,
            labels=LABELS,
            n_stream=4_992_000,
            n_test=10_000,
            n_reference=10_000,
        ),
        recipe=Recipe(
            model=PreActResNet18(),
            optimizer=SGD(lr=0.1, momentum=0.9),
            augmentation=CropFlip(),
            n_steps=39_000,
            batch_size=128,
        ),
        n_samples=(50_000,),
        seeds=tuple(range(10)),
    )


PRESETS = {
    "laptop": laptop,
    "quick": quick,
    "smoke": smoke,
    "reference": reference,
    "paper": paper,
}


def build_preset(name: str) -> Preset:
    """The preset of this name; ConfigurationError listing the names if there is none."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(f"unknown preset {name!r}{hint}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]()
