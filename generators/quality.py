"""What a generated data set is worth: four parts, each a plain function that returns JSON values.

cross_test      train on real or generated samples, test on real or generated ones
image_distance  KID, precision, recall, density, coverage on the features of the own teacher
label_agreement does the teacher see the class that was asked for?
memorisation    nearest training images, duplicates
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import nn

from bootstrap.augment import CropFlip
from bootstrap.batch import Batch, Normalisation
from bootstrap.evaluate import evaluate
from bootstrap.execution import Flags
from bootstrap.forks import Control
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD, Cosine
from bootstrap.pair import run_real
from bootstrap.pool import Pool
from bootstrap.recipe import Recipe
from bootstrap.runlog import real_name
from bootstrap.shards import Columns, read_manifest
from bootstrap.worlds import BLOCK
from generators.label import Teacher
from generators.memorisation import (
    compare_distances,
    n_exact_duplicates,
    n_exact_in,
    n_near_duplicates,
    nearest_or_mirrored,
    pairs_for_a_picture,
    pixels,
)
from generators.metrics import compare_features, in_batches

N_COMPARED = 10_000  # images of each set, at most
SUBSET_N = 1_000  # of them in each of the disjoint subsets


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the networks of the cross-test table are trained; the same for all of its cells."""

    n_train: int = 50_000
    n_passes: float = 6.0
    width: int = 16
    batch_size: int = 128
    lr: float = 0.2

    def recipe(self, n_samples: int, side_px: int) -> Recipe:
        """The recipe for `n_samples` training samples; crops shift by an eighth of the side."""
        return Recipe(
            model=PreActResNet18(width=self.width),
            optimizer=SGD(lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedule=Cosine(warmup_fraction=0.15),
            augmentation=CropFlip(padding_px=side_px // 8),
            n_steps=int(self.n_passes * n_samples / self.batch_size),
            batch_size=self.batch_size,
            n_test_curve=512,
        )

    def describe(self, flags: Flags) -> str:
        """One line for a card."""
        return (
            f"ResNet-18 of width {self.width}, {self.n_passes:g} passes of crop and flip,"
            f" batch {self.batch_size}, one seed, {flags.describe()}"
        )


# ---------------------------------------------------------------- trained on one, tested on another


def cross_test(
    train_on: Path, test_on: dict[str, Path], protocol: Protocol, flags: Flags, control: Control
) -> dict[str, Any]:
    """Train on one data set's stream; the error on the test split of each of `test_on`.

    The run stays in <train_on>/quality: asked for again, it is not trained again.
    """
    manifest = read_manifest(train_on)
    n = min(protocol.n_train, manifest.n_stream)
    n -= n % BLOCK
    recipe = protocol.recipe(n, manifest.image_shape[0])
    folder = run_real(
        recipe,
        train_on,
        train_on / "quality",
        n_samples=n,
        flags=flags,
        preset="cross-test",
        control=control,
    )
    model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    model.load_state_dict(load_file(folder / "seed-0" / f"{real_name(n)}.safetensors"))
    normalise = Normalisation.of(manifest.mean, manifest.deviation, flags.torch_device)
    errors = {name: error_on(model, path, normalise, flags) for name, path in test_on.items()}
    return {"n_train": n, "errors": errors}


def error_on(model: nn.Module, data: Path, normalise: Normalisation, flags: Flags) -> float:
    """The error of `model` on the test split of `data`."""
    test = Batch.from_columns(read_first(data, "test"), flags.torch_device)
    model = model.to(flags.torch_device).to(memory_format=torch.channels_last)
    return evaluate(model, test, normalise, flags).mean().error


# ---------------------------------------------------------------- through the eyes of a teacher


def image_distance(data: Path, real: Path, teacher: Teacher) -> dict[str, Any]:
    """Generated test images against real test images; real stream against the same for scale."""
    real_features = in_batches(teacher.features, read_first(real, "test").images)
    sets = {
        "generated": in_batches(teacher.features, read_first(data, "test").images),
        "real": in_batches(teacher.features, read_first(real, "stream").images),
    }
    subset_n = min(SUBSET_N, *(len(features) for features in (real_features, *sets.values())))
    return {
        name: {
            metric: estimate.to_json()
            for metric, estimate in compare_features(real_features, features, subset_n).items()
        }
        for name, features in sets.items()
    }


def label_agreement(data: Path, teacher: Teacher) -> dict[str, Any]:
    """How often the teacher's class is the label, over generated test images, and how sure it is.

    The label of mode `teacher` is the teacher's own class, so there the agreement says nothing.
    """
    columns = read_first(data, "test")
    starts = range(0, len(columns), 256)
    p = np.concatenate([teacher.probabilities(columns.images[s : s + 256]) for s in starts])
    counts = np.bincount(columns.labels, minlength=p.shape[1])
    return {
        "n": len(columns),
        "agreement": float((p.argmax(axis=1) == columns.labels).mean()),
        "confidence": float(p.max(axis=1).mean()),
        "probability_of_label": float(p[np.arange(len(p)), columns.labels].mean()),
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
    }


# ---------------------------------------------------------------- copies


def memorisation(
    data: Path, real: Path, teacher: Teacher
) -> tuple[dict[str, Any], UInt8[np.ndarray, "n height width channel"]]:
    """How near generated test images come to real training images; and the closest pairs.

    The pictures are four rows of ten: the images closest in pixels above their training images,
    then the same in features.
    """
    images = read_first(data, "test").images
    test = read_first(real, "test").images
    train = read_first(real, "stream", None).images
    n = min(len(images), len(test))
    spaces = {"pixels": pixels, "features": lambda i: in_batches(teacher.features, i)}
    report: dict[str, Any] = {}
    pictures = []
    for name, rows in spaces.items():
        found = nearest_or_mirrored(rows, images[:n], train)
        report[name] = compare_distances(found, nearest_or_mirrored(rows, test[:n], train))
        pictures.append(pairs_for_a_picture(images, train, found, n=10))
    duplicates = {
        "exact": n_exact_duplicates(images),
        "near": n_near_duplicates(images),
        "exact_in_real_train": n_exact_in(images, train),
        "exact_in_real_test": n_exact_in(images, test),
    }
    report = {"n": n, "n_train": len(train), **report, "duplicates": duplicates}
    return report, np.concatenate(pictures)


def read_first(data: Path, split: str, n: int | None = N_COMPARED) -> Columns:
    """The first `n` samples of a split, or all."""
    pool = Pool(data, split)
    try:
        return pool.first(pool.n if n is None else n)
    finally:
        pool.close()
