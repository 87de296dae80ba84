"""Fit the denoiser to real images: step in, record out; bf16, EMA with warm-up, exact resume.

A step's images, flips, dropped labels, times and noise depend on (seed, step) only, so a run that
was stopped goes on as if it never had been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootstrap.checkpoint import load_optimizer_tensors, optimizer_tensors, prefixed, without_prefix
from bootstrap.errors import NumericError
from bootstrap.randomness import Stream, torch_seed, uniforms
from bootstrap.ranks import ALONE, Ranks
from bootstrap.worlds import World
from generators.denoiser import (
    Denoiser,
    DenoiserConfig,
    FromData,
    FromDataAsEDM,
    FromGuide,
    Target,
    build_denoiser,
    draw_noise,
    velocity_loss,
)
from generators.sources import LabelledImages


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """Everything about a denoiser's training but its data; lengths are in images seen."""

    config: DenoiserConfig = field(default_factory=DenoiserConfig)
    n_images_seen: int = 1_250_000
    batch_size: int = 128
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_images: int = 25_000
    decay_fraction: float = 0.2  # the learning rate falls linearly to zero over this last part
    label_drop_fraction: float = 0.1
    mirror: bool = True
    """mirror half of the images; not for digits or text"""
    clip_norm: float = 1.0
    distill_steps: int = 0  # above 0: learn to go the initial weights' guided way in so many steps
    distill_guidance: float = 2.0
    distill_midpoint: int = 1
    """midpoint steps of those weights for one that is learned; stronger guidance wants more"""
    ema_decay: float = 0.9995
    seed: int = 0

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.n_images_seen // self.batch_size

    def lr_at(self, step: int) -> float:
        """Warm-up, constant, linear decay; a function of the step alone."""
        warm = (step + 1) * self.batch_size / max(self.warmup_images, 1)
        cool = (self.n_steps - step) / max(self.decay_fraction * self.n_steps, 1)
        return self.lr * min(1.0, warm, cool)

    def ema_decay_at(self, step: int) -> float:
        """The decay warms up, so that a short run does not average its first weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass
class DenoiserState:
    """What a step changes; `tensors` and `load` are what a checkpoint holds."""

    model: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    step: int = 0
    train_s: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averaged weights and optimiser state, flat."""
        return {
            **prefixed("model", self.model.state_dict()),
            **prefixed("ema", self.ema.state_dict()),
            **optimizer_tensors(self.optimizer),
        }

    def meta(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {"step": self.step, "train_s": self.train_s}

    def load(self, tensors: dict[str, Tensor], step: int, train_s: float) -> None:
        """Take over what `tensors` and `meta` returned."""
        self.model.load_state_dict(without_prefix("model", tensors))
        self.ema.load_state_dict(without_prefix("ema", tensors))
        load_optimizer_tensors(self.optimizer, tensors)
        self.step, self.train_s = step, train_s


@dataclass(frozen=True, kw_only=True)
class DenoiserRecord:
    """One line of progress; `loss` is the mean since the line before."""

    step: int
    images_seen: int
    loss: float
    lr: float
    images_per_s: float


def build_state(
    recipe: DenoiserRecipe, device: torch.device, initial: Denoiser | None = None
) -> DenoiserState:
    """A fresh state, from random weights or from those of `initial`."""
    model, ema = (build_denoiser(recipe.config, recipe.seed).to(device) for _ in range(2))
    if initial is not None:
        model.load_state_dict(initial.state_dict())
        ema.load_state_dict(initial.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=0.0
    )
    return DenoiserState(model=model, ema=ema.requires_grad_(False), optimizer=optimizer)


def train_denoiser(
    recipe: DenoiserRecipe,
    data: LabelledImages,
    state: DenoiserState,
    *,
    precision: torch.dtype = torch.float32,
    guide: Denoiser | None = None,
    ranks: Ranks = ALONE,
    record_every_steps: int = 100,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[DenoiserRecord]:
    """Train `state` in place until the recipe's end or an interruption; yields progress.

    With a `guide` the model learns to take that denoiser's guided way in `distill_steps` steps of
    one evaluation each; no labels are dropped then. Each of several `ranks` takes its share of
    every batch, and all stop together when one is interrupted.
    The state is consistent, and may be saved, whenever a record is yielded and after the last.
    """
    device = next(state.model.parameters()).device
    images = torch.from_numpy(data.images).to(device)
    labels = torch.from_numpy(data.labels).to(device)
    share = ranks.share(recipe.batch_size)
    world = World(n_samples=len(images), seed=recipe.seed)
    parameters: list[Tensor] = list(state.model.parameters())
    averages: list[Tensor] = list(state.ema.parameters())
    target: Target = FromDataAsEDM() if recipe.config.prediction == "edm" else FromData()
    if guide is not None:
        target = FromGuide(
            guide, recipe.distill_guidance, recipe.distill_steps, recipe.distill_midpoint
        )
    losses: list[Tensor] = []
    started = time.perf_counter()

    is_stop = False
    while state.step < recipe.n_steps and not is_stop:
        index = torch.from_numpy(world.positions(state.step, recipe.batch_size)[share]).to(device)
        draws = uniforms(
            recipe.seed, Stream.DENOISER_BATCH, state.step, n=2 * recipe.batch_size
        ).reshape(2, -1)[:, share]
        x = _to_unit_range(images[index], flip=draws[0] < 0.5 * recipe.mirror)
        label = labels[index]
        if guide is None:
            is_dropped = torch.from_numpy(draws[1] < recipe.label_drop_fraction).to(device)
            label = label.masked_fill(is_dropped, state.model.null_label)
        generator = torch.Generator(device).manual_seed(
            torch_seed(recipe.seed, Stream.DENOISER_NOISE, state.step)
        )
        noise = draw_noise(target, recipe.batch_size, x.shape[1:], generator)

        for group in state.optimizer.param_groups:
            group["lr"] = recipe.lr_at(state.step)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            loss = velocity_loss(state.model, x, label, target, noise[share])
        loss.backward()
        asked = torch.tensor(float(is_interrupted()), device=device)
        ranks.average([*(p.grad for p in parameters if p.grad is not None), loss, asked])
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        if not torch.isfinite(norm):
            raise NumericError(
                f"step {state.step}: the gradient's norm is {norm.item()}, the loss {loss.item()};"
                " lower the learning rate"
            )
        state.optimizer.step()
        state.optimizer.zero_grad()
        torch._foreach_lerp_(averages, parameters, 1 - recipe.ema_decay_at(state.step))

        state.step += 1
        losses.append(loss.detach())
        is_stop = state.step == recipe.n_steps or asked.item() > 0
        if is_stop or state.step % record_every_steps == 0:
            elapsed_s = time.perf_counter() - started
            state.train_s += elapsed_s
            yield DenoiserRecord(
                step=state.step,
                images_seen=state.step * recipe.batch_size,
                loss=float(torch.stack(losses).mean()),
                lr=recipe.lr_at(state.step - 1),
                images_per_s=len(losses) * recipe.batch_size / elapsed_s,
            )
            losses, started = [], time.perf_counter()


def _to_unit_range(images: Tensor, flip: np.ndarray) -> Tensor:
    """uint8 NHWC -> float NCHW in [-1, 1], mirrored where `flip`."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.from_numpy(flip).to(x.device)[:, None, None, None]
    return torch.where(mirrored, x.flip(3), x)
