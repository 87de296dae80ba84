"""What the generator's commands do, as plain functions that yield lines of progress."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from bootstrap.augment import CropFlip
from bootstrap.batch import Normalisation
from bootstrap.checkpoint import keep_latest, read_latest, write_checkpoint
from bootstrap.environment import hardware
from bootstrap.errors import ConfigurationError, Interrupted
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, file_sha256, pretty_json, remove_leftovers
from bootstrap.files import replace as replace_file
from bootstrap.forks import Control
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD, Cosine
from bootstrap.options import Execution
from bootstrap.pair import run_real
from bootstrap.pool import Pool, concatenate
from bootstrap.recipe import Recipe
from bootstrap.runlog import load_run, real_name
from bootstrap.shards import Manifest, read_manifest
from generators.card import grid_image, write_card
from generators.denoiser import read_card, read_denoiser, write_denoiser
from generators.label import (
    Teacher,
    fit_temperature,
    read_teacher,
    read_teacher_card,
    write_teacher,
)
from generators.metrics import in_batches
from generators.quality import (
    Protocol,
    cross_test,
    image_distance,
    label_agreement,
    memorisation,
    read_first,
)
from generators.sample import SamplerConfig, distilled_sampler, noise_of_ids, solve, to_uint8
from generators.sources import LabelledImages, npz_parts, read_npz
from generators.train import DenoiserRecipe, DenoiserState, build_state, train_denoiser

SHIPPED = Path(__file__).resolve().parent / "weights"
GUIDED = SamplerConfig(solver="dpm++", n_steps=8, guidance=2.0)  # draws the grids of snapshots


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorOptions:
    """Fit the denoiser to real images; running it again goes on where it stopped."""

    images: Path
    """a folder of npz parts with the keys X (uint8 NHWC) and Y, or a data set made by `import`"""
    pattern: str = "train-*.npz"
    """which of its files to train on"""
    work: Path = Path("build/denoiser")
    """checkpoints, snapshots and the progress log"""
    init: Path | None = None
    """start from these weights, e.g. the shipped ones"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    snapshot_minutes: float = 10.0
    """averaged weights and a sample grid this often"""
    execution: Execution = field(default_factory=Execution)
    recipe: DenoiserRecipe = field(default_factory=DenoiserRecipe)


def run_train_generator(
    options: TrainGeneratorOptions, flags: Flags, is_interrupted: Callable[[], bool]
) -> Iterator[str]:
    """Train, with a line of progress now and then; weights go to <work>/denoiser.safetensors."""
    data = read_images(options)
    config = replace(
        options.recipe.config, image_shape=data.images.shape[1:], class_names=data.class_names
    )
    recipe = replace(options.recipe, config=config)
    initial = read_denoiser(options.init) if options.init else None
    state = build_state(recipe, flags.torch_device, initial)
    remove_leftovers(options.work)
    found = read_latest(options.work, "denoiser")
    if found:
        refuse_other_run(options.work, found[1]["run"], describe_run(options, recipe, data))
        state.load(found[0], **found[1]["state"])
        yield f"going on from {state.step * recipe.batch_size:,} images seen"
    guide = None
    if recipe.distill_steps:
        if initial is None:
            raise ConfigurationError("--distill-steps needs --init, the weights to distil")
        guide = initial.to(flags.torch_device).eval().requires_grad_(False)
    for network in (state.model, guide):
        if flags.compiled and network is not None:
            network.compile(dynamic=False)

    started, snapshot_at = time.monotonic(), time.monotonic()
    limit_s = 60 * options.max_minutes if options.max_minutes else float("inf")

    def is_over() -> bool:
        return is_interrupted() or time.monotonic() - started > limit_s

    for record in train_denoiser(
        recipe, data, state, precision=flags.dtype, guide=guide, is_interrupted=is_over
    ):
        left_s = (recipe.n_images_seen - record.images_seen) / record.images_per_s
        yield (
            f"{record.images_seen:>9,} images  loss {record.loss:.4f}  lr {record.lr:.2e}"
            f"  {record.images_per_s:.0f} images/s  {left_s / 60:.0f} min left"
        )
        if time.monotonic() - snapshot_at > 60 * options.snapshot_minutes or is_over():
            write_snapshot(options, recipe, data, state, flags)
            snapshot_at = time.monotonic()
    write_snapshot(options, recipe, data, state, flags)
    if state.step < recipe.n_steps:
        raise Interrupted(
            f"{options.work}: stopped at {state.step * recipe.batch_size:,} images; run it again"
        )
    yield f"{options.work / 'denoiser.safetensors'}: {recipe.n_images_seen:,} images seen"


def read_images(options: TrainGeneratorOptions) -> LabelledImages:
    """The images to train on: npz parts, or stream and reference of a data set made by `import`."""
    if not (options.images / "manifest.json").exists():
        return read_npz(npz_parts(options.images, options.pattern))
    manifest = read_manifest(options.images)
    pools = [Pool(options.images, s, manifest) for s in ("stream", "reference") if manifest.n(s)]
    columns = concatenate([pool.first(pool.n) for pool in pools])
    return LabelledImages(
        images=columns.images, labels=columns.labels, class_names=manifest.class_names
    )


def describe_run(
    options: TrainGeneratorOptions, recipe: DenoiserRecipe, data: LabelledImages
) -> dict[str, Any]:
    """What must not change when training goes on."""
    described = {
        "recipe": asdict(recipe),
        "init": file_sha256(options.init) if options.init else None,
        "n_images": len(data.images),
    }
    return json.loads(canonical_json(described))


def refuse_other_run(work: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """ConfigurationError naming what differs from the run that `work` holds."""
    pairs = [(before, now), (before["recipe"], now["recipe"])]
    keys = {k for a, b in pairs for k in a if k != "recipe" and a[k] != b.get(k)}
    if keys:
        raise ConfigurationError(
            f"{work} holds another training: {', '.join(sorted(keys))} differ; use another --work"
        )


def write_snapshot(
    options: TrainGeneratorOptions,
    recipe: DenoiserRecipe,
    data: LabelledImages,
    state: DenoiserState,
    flags: Flags,
) -> None:
    """Checkpoint, averaged weights and a grid of samples, ten of each class."""
    seen_before = read_card(options.init)["images_seen"] if options.init else 0
    meta = {"state": state.meta(), "run": describe_run(options, recipe, data)}
    write_checkpoint(options.work, "denoiser", state.step, state.tensors(), meta)
    keep_latest(options.work, "denoiser")
    distilled = distilled_sampler(recipe.distill_steps) if recipe.distill_steps else None
    card = {
        "images_seen": seen_before + state.step * recipe.batch_size,
        "train_s": round(state.train_s),
        "hardware": hardware(flags.device),
        "execution": flags.describe(),
        "init": options.init.name if options.init else None,
        "recipe": asdict(recipe),
        "sampler": vars(distilled) if distilled else None,
    }
    write_denoiser(options.work / "denoiser.safetensors", state.ema, card)
    n_classes = recipe.config.n_classes
    labels = np.repeat(np.arange(n_classes), 10)
    noise = noise_of_ids(
        np.arange(len(labels)), np.zeros_like(labels), recipe.config.image_shape, seed=0
    )
    device = flags.torch_device
    images = solve(
        state.ema,
        torch.from_numpy(noise).to(device),
        torch.from_numpy(labels).to(device),
        distilled or GUIDED,
        flags,
    )
    grid_image(to_uint8(images), n_columns=10).save(options.work / f"samples-{state.step:06d}.png")


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
    n_passes: float = 13.0
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


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What a generated data set is worth, on its card and in quality.json."""

    data: Path
    """the generated data set"""
    real: Path
    """a data set of real images, made by `deep-bootstrap import`: stream = training images"""
    teacher: Path = SHIPPED / "teacher-v1.safetensors"
    """a classifier of real images: features, agreement"""
    train_on: tuple[str, ...] = ("generated", "real")
    """rows of the cross-test table; each is a network to train"""
    protocol: Protocol = field(default_factory=Protocol)
    execution: Execution = field(default_factory=Execution)


def run_quality(
    options: QualityOptions, flags: Flags, is_interrupted: Callable[[], bool]
) -> Iterator[str]:
    """Write quality.json, closest.png and the data card; finished parts are not done again."""
    data, real, protocol = options.data, options.real, options.protocol
    teacher = read_teacher(options.teacher, flags)
    sets = {"real": real, "generated": data}
    unknown = set(options.train_on) - set(sets)
    if unknown:
        raise ConfigurationError(f"--train-on {sorted(unknown)[0]}: use real, generated or both")

    distance = image_distance(data, real, teacher)
    kid = distance["generated"]["kid"]["mean"]
    yield f"KID on the teacher's features: {kid:.4f} (real: {distance['real']['kid']['mean']:.4f})"
    labels = label_agreement(data, teacher)
    yield f"the teacher agrees with {labels['agreement']:.3f} of the labels"
    copies, pictures = memorisation(data, real, teacher)
    grid = io.BytesIO()
    grid_image(pictures, n_columns=10).save(grid, format="png")
    replace_file(data / "closest.png", grid.getvalue())

    errors, n_train = {}, {}
    for name in options.train_on:
        control = Control(is_interrupted=is_interrupted)
        found = cross_test(sets[name], sets, protocol, flags, control)
        n_train[name] = found["n_train"]
        for test, error in found["errors"].items():
            errors[f"{name}_to_{test}"] = error
            yield f"trained on {name}, tested on {test}: error {error:.4f}"

    card = read_teacher_card(options.teacher)
    quality = {
        "schema": 1,
        "cross_test_error": errors,
        "n_train": n_train,
        "n_test": {name: read_manifest(path).n("test") for name, path in sets.items()},
        "protocol": protocol.describe(flags),
        "hardware": hardware(flags.device),
        "real": read_manifest(real).name,
        "teacher": {"name": options.teacher.stem, "test_error": card["test_error"]},
        "distance": distance,
        "labels": labels,
        "memorisation": copies,
    }
    replace_file(data / "quality.json", pretty_json(quality))
    write_card(data, read_manifest(data))
    yield f"{data / 'quality.json'}; see {data / 'README.md'}"
