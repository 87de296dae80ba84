"""What a generated data set is worth: a network trained on it alone, tested on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bootstrap.augment import CropFlip
from bootstrap.batch import Batch, Normalisation
from bootstrap.evaluate import evaluate
from bootstrap.execution import Flags
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD, Cosine
from bootstrap.pair import run_real
from bootstrap.pool import Pool
from bootstrap.recipe import Recipe
from bootstrap.runlog import load_run, real_name
from bootstrap.shards import read_manifest
from bootstrap.worlds import BLOCK

BATCH = 128


def generated_to_real(
    data: Path, real: Path, n_train: int, n_passes: float, width: int, flags: Flags
) -> dict[str, Any]:
    """Train on `n_train` generated samples, test on the real test split; JSON values."""
    manifest = read_manifest(data)
    n = min(n_train, manifest.n_stream) // BLOCK * BLOCK
    recipe = Recipe(
        model=PreActResNet18(width=width),
        optimizer=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=Cosine(warmup_fraction=0.15),
        augmentation=CropFlip(),
        n_steps=int(n_passes * n / BATCH),
        batch_size=BATCH,
        n_test_curve=512,
    )
    folder = run_real(recipe, data, data / "quality", n_samples=n, flags=flags, preset="generated")
    last = load_run(folder).rows(0, real_name(n))[-1]
    model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    model.load_state_dict(load_file(folder / "seed-0" / f"{real_name(n)}.safetensors"))
    model = model.to(flags.torch_device).to(memory_format=torch.channels_last)

    pool = Pool(real, "test")
    test = Batch.from_columns(pool.first(pool.n), flags.torch_device)
    pool.close()
    normalise = Normalisation.of(manifest.mean, manifest.deviation, flags.torch_device)
    error = evaluate(model, test, normalise, flags).mean().error
    protocol = (
        f"ResNet-18 of width {width}, {n:,} samples, {n_passes:g} passes of crop and flip,"
        f" {len(test):,} real test images, one seed, {flags.describe()}"
    )
    return {
        "schema": 1,
        "protocol": protocol,
        "n_train": n,
        "n_test": len(test),
        "cross_test_error": {
            "generated_to_real": error,
            "generated_to_generated": last["test_error"],
        },
    }
