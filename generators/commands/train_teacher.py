"""train-teacher: fit the labelling classifier, as an ordinary real-world run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from bootstrap.augment import CropFlip
from bootstrap.batch import Normalisation
from bootstrap.execution import Flags
from bootstrap.forks import Control
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD, Cosine
from bootstrap.options import Execution
from bootstrap.pair import run_real
from bootstrap.recipe import Recipe
from bootstrap.runlog import load_run, real_name
from bootstrap.shards import Manifest, read_manifest
from generators.label import (
    Teacher,
    fit_temperature,
    write_teacher,
)
from generators.metrics import in_batches
from generators.quality import (
    read_first,
)


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions:
    """Fit the labelling classifier to real images, as an ordinary real-world run."""

    data: Path
    """a data set of real images, made by `deep-bootstrap import`"""
    weights: Path = Path("build/teacher.safetensors")
    """where the teacher goes"""
    out: Path = Path("build/teacher-run")
    """where its run goes"""
    width: int = 32
    n_passes: float = 26.0
    batch_size: int = 128
    lr: float = 0.2
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    execution: Execution = field(default_factory=Execution)


def run_train_teacher(
    options: TrainTeacherOptions, flags: Flags, is_interrupted: Callable[[], bool]
) -> Iterator[str]:
    """Train on the whole stream of real images; the real test error ends up on the card."""
    manifest = read_manifest(options.data)
    recipe = Recipe(
        model=PreActResNet18(width=options.width),
        optimizer=SGD(lr=options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=Cosine(warmup_fraction=0.15),
        augmentation=CropFlip(padding_px=manifest.image_shape[0] // 8),
        n_steps=int(options.n_passes * manifest.n_stream / options.batch_size),
        batch_size=options.batch_size,
        n_test_curve=1_024,
    )
    yield from fit_classifier(
        recipe,
        options.data,
        options.out,
        options.weights,
        flags,
        is_interrupted,
        options.max_minutes,
    )


def fit_classifier(
    recipe: Recipe,
    data: Path,
    out: Path,
    weights: Path,
    flags: Flags,
    is_interrupted: Callable[[], bool],
    max_minutes: float | None = None,
) -> Iterator[str]:
    """Train one classifier on a data set's whole stream and save it with a card."""
    manifest = read_manifest(data)
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
    control = Control(is_interrupted=lambda: is_interrupted() or time.monotonic() > deadline)
    yield (
        f"{recipe.n_steps:,} steps of {recipe.batch_size} on {manifest.n_stream:,} images"
        f" ({flags.describe()})"
    )
    folder = run_real(recipe, data, out, n_samples=manifest.n_stream, flags=flags, control=control)
    run, name = load_run(folder), real_name(manifest.n_stream)
    last = run.rows(0, name)[-1]
    model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    model.load_state_dict(load_file(folder / "seed-0" / f"{name}.safetensors"))
    temperature = held_out_temperature(data, manifest, model, flags)
    card: dict[str, Any] = {
        "model": recipe.to_json()["model"],
        "recipe": recipe.to_json(),
        "image_shape": manifest.image_shape,
        "n_classes": manifest.n_classes,
        "mean": manifest.mean,
        "deviation": manifest.deviation,
        "data": manifest.name,
        "temperature": temperature,
        "n_calibration": manifest.n("reference"),
        "test_error": last["test_error"],
        "n_test": manifest.n("test"),
        "wall_s": round(last["wall_s"]),
        "hardware": run.config["environment"]["hardware"],
        "execution": flags.describe(),
    }
    write_teacher(weights, model, card)
    yield (
        f"{weights}: test error {last['test_error']:.4f} on {manifest.n('test'):,} images,"
        f" temperature {temperature:.2f}, {last['wall_s']:.0f} s"
    )


def held_out_temperature(data: Path, manifest: Manifest, model: nn.Module, flags: Flags) -> float:
    """The temperature that fits the reference split best; 1 if there is none."""
    if not manifest.n("reference"):
        return 1.0
    model = model.to(flags.torch_device).to(memory_format=torch.channels_last).eval()
    normalise = Normalisation.of(manifest.mean, manifest.deviation, flags.torch_device)
    held_out = read_first(data, "reference")
    logits = in_batches(Teacher(model, normalise, flags).logits, held_out.images)
    return fit_temperature(logits, torch.from_numpy(held_out.labels))
