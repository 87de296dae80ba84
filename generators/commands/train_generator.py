"""train-generator: fit the denoiser to real images, with snapshots; resumable at any time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bootstrap.checkpoint import keep_latest, read_latest, write_checkpoint
from bootstrap.environment import hardware
from bootstrap.errors import ConfigurationError, Interrupted
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, file_sha256, remove_leftovers
from bootstrap.locks import locked
from bootstrap.options import Execution
from bootstrap.ranks import Ranks, joined
from generators.card import grid_image
from generators.denoiser import (
    Denoiser,
    DenoiserConfig,
    read_denoiser,
    read_images_seen,
    write_denoiser,
)
from generators.sample import SamplerConfig, distilled_sampler, noise_of_ids, solve, to_uint8
from generators.sources import LabelledImages
from generators.train import DenoiserRecipe, DenoiserState, build_state, train_denoiser
from generators.training_images import read_training_images

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
    """start from these weights, and with their network"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    snapshot_minutes: float = 10.0
    """averaged weights and a sample grid this often"""
    size: str = "small"
    """small (for a CPU) or base (for a GPU): where the defaults of widths and layers come from"""
    execution: Execution = field(default_factory=Execution)
    recipe: DenoiserRecipe = field(default_factory=DenoiserRecipe)


def run_train_generator(
    options: TrainGeneratorOptions, flags: Flags, is_interrupted: Callable[[], bool]
) -> Iterator[str]:
    """Train, with a line of progress now and then; weights go to <work>/denoiser.safetensors.

    Started by torchrun it is one of several ranks; the first speaks and writes.
    """
    with joined(flags) as (ranks, own_flags), _one_writer(options.work, ranks):
        for line in _train(options, own_flags, ranks, is_interrupted):
            if ranks.is_first:
                yield line


def _one_writer(work: Path, ranks: Ranks) -> AbstractContextManager[None]:
    """The lock of the folder that the first rank writes to."""
    return locked(work) if ranks.is_first else nullcontext()


def _train(
    options: TrainGeneratorOptions,
    flags: Flags,
    ranks: Ranks,
    is_interrupted: Callable[[], bool],
) -> Iterator[str]:
    data = read_training_images(options.images, options.pattern)
    if options.init:
        read_images_seen(options.init)  # the snapshots' cards need it: refuse now, not then
    initial = read_denoiser(options.init) if options.init else None
    recipe = replace(options.recipe, config=network_for(data, options, initial))
    state = build_state(recipe, flags.torch_device, initial)
    if ranks.is_first:
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
        recipe,
        data,
        state,
        precision=flags.dtype,
        guide=guide,
        ranks=ranks,
        is_interrupted=is_over,
    ):
        left_s = (recipe.n_images_seen - record.images_seen) / record.images_per_s
        yield (
            f"{record.images_seen:>9,} images  loss {record.loss:.4f}  lr {record.lr:.2e}"
            f"  {record.images_per_s:.0f} images/s  {left_s / 60:.0f} min left"
        )
        is_due = time.monotonic() - snapshot_at > 60 * options.snapshot_minutes
        if ranks.is_first and is_due:
            write_snapshot(options, recipe, data, state, flags)
            snapshot_at = time.monotonic()
    if ranks.is_first:
        write_snapshot(options, recipe, data, state, flags)
    if state.step < recipe.n_steps:
        raise Interrupted(
            f"{options.work}: stopped at {state.step * recipe.batch_size:,} images; run it again"
        )
    weights = options.work / "denoiser.safetensors"
    yield f"{weights}: {recipe.n_images_seen:,} images seen"
    yield f"next: {next_command(weights, recipe)}"


def next_command(weights: Path, recipe: DenoiserRecipe) -> str:
    """What draws from these weights: in their own steps if they were distilled, else guided."""
    config = distilled_sampler(recipe.distill_steps) if recipe.distill_steps else GUIDED
    sampler = f"solver='{config.solver}', n_steps={config.n_steps}, guidance={config.guidance}"
    source = f"diffusion(weights='{weights}', {sampler})"
    return f'deep-bootstrap generate --source "{source}" --data data/NAME'


def network_for(
    data: LabelledImages, options: TrainGeneratorOptions, initial: Denoiser | None
) -> DenoiserConfig:
    """The network that was asked for, or that of the first weights, for these images."""
    config = options.recipe.config if initial is None else initial.config
    shape, n_classes = data.images.shape[1:], len(data.class_names)
    if initial is not None and (config.image_shape, config.n_classes) != (shape, n_classes):
        sides = "x".join(map(str, config.image_shape))
        raise ConfigurationError(
            f"{options.init} draws images of {sides} in {config.n_classes} classes, but"
            f" {options.images} holds {'x'.join(map(str, shape))} in {n_classes}; leave --init out"
        )
    return replace(config, image_shape=shape, class_names=data.class_names)


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
    """Checkpoint, averaged weights and a grid: ten images of each of the first classes."""
    seen_before = read_images_seen(options.init) if options.init else 0
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
    labels = np.repeat(np.arange(min(n_classes, 10)), 10)
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
