"""Makes a checkpoint for `compare --init`: trains a model on data that no world of a pair sees.

    corpus = Corpus(data=Path("data/small-v2"))
    job = Job(recipe=recipe, method=Rotation(), corpus=corpus, flags=flags)
    pretrain(job, Path("build/rotation.safetensors"))

Every draw is a function of (seed, step), so what was stopped goes on to the same bytes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.checkpoint import (
    keep_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    prefixed,
    read_latest,
    without_prefix,
    write_checkpoint,
)
from bootstrap.environment import describe_environment
from bootstrap.errors import ConfigurationError, Interrupted, NotEnoughData, NumericError
from bootstrap.execution import Flags
from bootstrap.feed import read_ahead
from bootstrap.locks import locked
from bootstrap.pool import Pool
from bootstrap.pretexts import METHODS, Method, Objective
from bootstrap.pretrained import about_data, card_path, write_pretrained
from bootstrap.randomness import Stream, torch_seed
from bootstrap.recipe import Recipe
from bootstrap.shards import Columns, Manifest, read_manifest
from bootstrap.spec import format_spec
from bootstrap.timm_weights import TimmWeights
from bootstrap.worlds import World

SPLITS = ("pretrain", "stream")
NAME = "step"  # of the states that are saved on the way
N_LAST = 50  # steps that the card's last loss is a mean over


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The labelled images of a split, or those of some classes, in the order of their ids.

    `split` is `pretrain`, which no world sees, or the whole `stream` of another data set than the
    comparison's. Of `n_samples` the first so many are used.
    """

    data: Path
    split: str = "pretrain"
    classes: tuple[int, ...] = ()
    n_samples: int | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """Of the data set; ConfigurationError or NotEnoughData if it cannot serve."""
        manifest = read_manifest(self.data)
        if self.split not in SPLITS:
            raise ConfigurationError(f"--split {self.split}: use {' or '.join(SPLITS)}")
        if not manifest.n(self.split):
            remedy = "`deep-bootstrap generate --n-pretrain N` makes one"
            raise NotEnoughData(f"{self.data}: there is no split {self.split}; {remedy}")
        if unknown := [k for k in self.classes if not 0 <= k < manifest.n_classes]:
            raise ConfigurationError(
                f"--classes {unknown[0]}: {manifest.name} has the classes 0 to"
                f" {manifest.n_classes - 1}"
            )
        return manifest

    @property
    def n_classes(self) -> int:
        """How many classes are left."""
        return len({*self.classes}) or self.manifest.n_classes

    def ids(self, pool: Pool) -> Int[np.ndarray, " n"]:
        """The global ids of its samples; NotEnoughData if there are fewer than asked for."""
        found = pool.start + np.arange(pool.n)
        if self.classes:
            labels = np.concatenate([part.labels for part in pool.chunks(4_096)])
            found = found[np.isin(labels, self.classes)]
        if len(found) < (self.n_samples or 1):
            raise NotEnoughData(
                f"{self.data}: the split {self.split} holds {len(found):,} such samples, not"
                f" {self.n_samples or 1:,}; `deep-bootstrap generate --n-pretrain N` makes more"
            )
        return found[: self.n_samples]

    def relabelled(self, columns: Columns) -> Columns:
        """The same rows; with some classes only, these are the labels 0, 1, ... in their order."""
        if not self.classes:
            return columns
        labels = np.searchsorted(np.unique(self.classes), columns.labels)
        return Columns(images=columns.images, labels=labels, ids=columns.ids)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of pre-training."""

    step: int
    loss: float
    error: float  # NaN where nothing is right or wrong


@dataclass
class State:
    """All that pre-training changes."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: tuple[float, ...] = ()  # of the last steps

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and optimiser, flat."""
        objective = prefixed("objective", self.objective.state_dict())
        return {**objective, **optimizer_tensors(self.optimizer)}

    def load(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Become a state that was saved."""
        self.objective.load_state_dict(without_prefix("objective", tensors))
        load_optimizer_tensors(self.optimizer, tensors)
        self.step, self.losses = meta["step"], tuple(meta["losses"])


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How pre-training is watched and stopped."""

    on_step: Callable[[Step], None] = lambda step: None
    is_interrupted: Callable[[], bool] = lambda: False
    checkpoint_every_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides every byte of the weights. Of the recipe, evaluation does not count."""

    recipe: Recipe
    method: Method
    corpus: Corpus
    seed: int = 0
    flags: Flags

    def card(self, n_samples: int) -> dict[str, Any]:
        """What is known beforehand."""
        return {
            "method": format_spec(self.method, METHODS),
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "data": about_data(
                self.corpus.manifest, self.corpus.split, n_samples, self.corpus.classes
            ),
            "flags": self.flags.to_json(),
        }


def pretrain(job: Job, path: Path, watch: Watch = Watch()) -> Path:
    """Train for the recipe's `n_steps` and write weights and card; returns `path`.

    A finished one of the same card is left alone, one that was stopped goes on. ConfigurationError
    for a model that cannot do the task, and for a file that holds other weights; NotEnoughData;
    NumericError; Interrupted after saving.
    """
    corpus, work = job.corpus, path.with_suffix(".work")
    with closing(Pool(corpus.data, corpus.split, corpus.manifest)) as pool:
        ids = corpus.ids(pool)
        card = job.card(len(ids))
        if is_made(path, card):
            return path
        with locked(work):
            state = _saved_state(job, work, card)
            _train_and_save(job, pool, ids, state, work, card, watch)
            told = {
                "n_steps": job.recipe.n_steps,
                "last_loss": float(np.mean(state.losses)),
                "environment": describe_environment(job.flags),
            }
            write_pretrained(path, state.objective.model, job.recipe, card | told)
    shutil.rmtree(work, ignore_errors=True)
    return path


def _saved_state(job: Job, work: Path, card: dict[str, Any]) -> State:
    """Where the same job was stopped, or its beginning."""
    state, saved = build_state(job), read_latest(work, NAME)
    if saved is not None and saved[1]["card"] == as_json(card):
        state.load(*saved)
    else:
        keep_latest(work, NAME, n=0)  # another job's, whose steps would count as later ones
    return state


def _train_and_save(
    job: Job,
    pool: Pool,
    ids: Int[np.ndarray, " n"],
    state: State,
    work: Path,
    card: dict[str, Any],
    watch: Watch,
) -> None:
    """Train to the last step; save at intervals, and when asked to stop, which is then raised."""
    saved_at = time.monotonic()
    for step in train(job, pool, ids, state):
        watch.on_step(step)
        is_asked = state.step < job.recipe.n_steps and watch.is_interrupted()
        if is_asked or time.monotonic() - saved_at > watch.checkpoint_every_s:
            meta = {"step": state.step, "losses": list(state.losses), "card": card}
            write_checkpoint(work, NAME, state.step, state.tensors(), meta)
            keep_latest(work, NAME)
            saved_at = time.monotonic()
        if is_asked:
            raise Interrupted(f"{work}: stopped at step {state.step}; run it again to go on")


def build_state(job: Job) -> State:
    """Fresh weights that depend on the seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(job.seed, Stream.PRETRAIN))
        shape, n_classes = job.corpus.manifest.image_shape, job.corpus.n_classes
        objective = job.method.build(job.recipe.model, shape, n_classes)
    objective = objective.to(job.flags.torch_device).to(memory_format=torch.channels_last)
    optimizer = job.recipe.optimizer.build(objective.parameters())
    if job.flags.compiled:
        objective.compile(dynamic=False)
    return State(objective, optimizer)


def train(job: Job, pool: Pool, ids: Int[np.ndarray, " n"], state: State) -> Iterator[Step]:
    """Train `state` in place to the last step; yields after every step.

    NumericError if a loss is not finite.
    """
    manifest, recipe, device = job.corpus.manifest, job.recipe, job.flags.torch_device
    normalise = Normalisation.of(manifest.mean, manifest.deviation, device)
    world = World(n_samples=len(ids), seed=job.seed)

    def read(step: int) -> Batch:
        rows = pool.rows(ids[world.positions(step, recipe.batch_size)])
        return Batch.from_columns(job.corpus.relabelled(rows), device)

    with closing(read_ahead(read, state.step, recipe.n_steps)) as batches:
        for step, batch in enumerate(batches, start=state.step):
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            pixels = to_unit_range(batch.images)
            x = normalise(recipe.augmentation.apply(pixels, normalise.mean, job.seed, step))
            with job.flags.autocast():
                given = job.method.batch(x, batch.labels, job.seed, step)
                loss, error = state.objective(*given)
            if not torch.isfinite(loss):
                raise NumericError(
                    f"step {step}: the loss is {loss.item()}; lower the learning rate"
                )
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step = step + 1
            state.losses = (*state.losses, loss.item())[-N_LAST:]
            yield Step(step=step, loss=loss.item(), error=error.item())


def convert(recipe: Recipe, weights: TimmWeights, data: Path, path: Path) -> Path:
    """Write weights of timm as a checkpoint for the images of a data set; returns `path`."""
    manifest = read_manifest(data)
    with torch.random.fork_rng(devices=[]):
        model, source = weights.fit(recipe.model, manifest)
    card = {"method": "timm", "source": source, "image_shape": list(manifest.image_shape)}
    if not is_made(path, card):
        write_pretrained(path, model, recipe, card)
    return path


def is_made(path: Path, card: dict[str, Any]) -> bool:
    """Whether the checkpoint is there; ConfigurationError if another one is."""
    if not path.exists() and not card_path(path).exists():
        return False
    known = json.loads(card_path(path).read_bytes()) if card_path(path).exists() else {}
    wanted = as_json(card)
    differing = [key for key in wanted if known.get(key) != wanted[key]]
    if differing:
        raise ConfigurationError(
            f"{path} is another checkpoint, it differs in {', '.join(differing)}; choose another"
            " --weights, or remove it"
        )
    return path.exists()


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """As it will be read from a file: tuples become lists."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
