"""The trainer: a generator of records. It knows no files, plots, command line or names of worlds.

    state  = build_state(recipe, ...)
    for record in train(recipe, world, pool, ...): ...

Every draw is a function of (seed, step), so `state` is all that a stop and a resume need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.batch_norm import globalise_batch_norm
from bootstrap.checkpoint import load_optimizer_tensors, optimizer_tensors, prefixed, without_prefix
from bootstrap.errors import NumericError
from bootstrap.evaluate import PerImage, evaluate
from bootstrap.execution import Flags
from bootstrap.feed import Feed
from bootstrap.interventions import Setting
from bootstrap.models.grouped import check_convolutions
from bootstrap.objective import build_gradient, build_inputs, build_update, gradients_of
from bootstrap.pretrained import Pretrained
from bootstrap.randomness import Stream, integers, torch_seed
from bootstrap.ranks import ALONE, Ranks
from bootstrap.recipe import EVERY_STEP_N, Recipe
from bootstrap.records import NO_IDS, Record, Scores, StepRecord, hash_ids
from bootstrap.shards import Manifest
from bootstrap.stacked import Seat
from bootstrap.worlds import STREAM_START
from bootstrap.wrapping import Wrapping, build_prediction, build_wrapping, measures, wrap_model


@dataclass
class TrainState:
    """All that training changes: `tensors` and `meta` are a checkpoint, `load` takes them back."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    seed: int
    is_seen: np.ndarray  # bool per pool sample
    choices: tuple[dict[str, Tensor], ...] = ()  # of each choice of the recipe
    step: int = 0
    ids_hash: str = NO_IDS
    samples_seen: int = 0
    wall_s: float = 0.0
    evaluation_s: float = 0.0

    def note(self, ids: Int[np.ndarray, " batch"]) -> None:
        """Count the ids that were fetched for a step."""
        self.is_seen[ids - STREAM_START] = True
        self.samples_seen += len(ids)
        self.ids_hash = hash_ids(self.ids_hash, ids)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, states of the optimiser and of choices, the set of seen ids; flat."""
        of_choices = [prefixed(f"choice.{k}", state) for k, state in enumerate(self.choices)]
        return {
            **prefixed("model", self.model.state_dict()),
            **optimizer_tensors(self.optimizer),
            "is_seen": torch.from_numpy(np.packbits(self.is_seen)),
            **{name: tensor for state in of_choices for name, tensor in state.items()},
        }

    def meta(self) -> dict[str, Any]:
        """What is not a tensor."""
        names = ("step", "ids_hash", "samples_seen", "wall_s", "evaluation_s")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Become the state that `tensors` and `meta` describe."""
        self.model.load_state_dict(without_prefix("model", tensors))
        load_optimizer_tensors(self.optimizer, tensors)
        for k, state in enumerate(self.choices):
            for name, tensor in without_prefix(f"choice.{k}", tensors).items():
                state[name].copy_(tensor)
        self.is_seen = np.unpackbits(tensors["is_seen"].numpy(), count=len(self.is_seen)).astype(
            bool
        )
        for name, value in meta.items():
            setattr(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Training images that are scored on the grid: each named probe is the first n, till a step."""

    batch: Batch
    n: Mapping[str, int]
    until_step: Mapping[str, int]

    def active(self, step: int) -> list[str]:
        """Names of the probes still wanted at `step`."""
        return [name for name, until in self.until_step.items() if step < until]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What stays fixed while a world is trained."""

    recipe: Recipe
    feed: Feed
    test: Batch
    probes: Probes | None
    grid: frozenset[int]
    flags: Flags
    ranks: Ranks = ALONE
    seat: Seat | None = None  # among runs that take their steps together
    sets: Mapping[str, Batch] = field(default_factory=dict)  # further test images, by name

    def wrapping(self, state: TrainState, normalise: Normalisation) -> Wrapping:
        """Every choice with where it stands: the step, its state, its draws."""
        return build_wrapping(
            *(self.recipe, state.choices),
            step=state.step,
            seed=state.seed,
            model=state.model,
            normalise=normalise,
            ranks=self.ranks,
            device=self.flags.torch_device,
        )

    @property
    def normalise(self) -> Normalisation:
        """The data set's normalisation, on the run's device."""
        manifest = self.feed.pool.manifest
        return Normalisation.of(manifest.mean, manifest.deviation, self.flags.torch_device)


def build_state(
    recipe: Recipe,
    manifest: Manifest,
    pool_n_samples: int,
    seed: int,
    flags: Flags,
    ranks: Ranks = ALONE,
    init: Pretrained | None = None,
) -> TrainState:
    """Fresh weights that depend on the seed alone, or those of `init`, whatever the seed.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.INIT))
        model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    check_convolutions(model, flags)
    if init is not None:
        init.load_into(model)
    if ranks.n > 1 and flags.bn == "global":
        globalise_batch_norm(model, ranks)
    setting = Setting(
        image_shape=manifest.image_shape,
        n_classes=manifest.n_classes,
        pool_n_samples=pool_n_samples,
        n_steps=recipe.n_steps,
        batch_size=recipe.batch_size // ranks.n,
        device=flags.torch_device,
    )
    model = wrap_model(recipe.choices, model, setting, seed)
    model = model.to(flags.torch_device).to(memory_format=torch.channels_last)
    optimizer = recipe.optimizer.build(model.parameters())
    if flags.compiled:
        model.compile(dynamic=False)
    return TrainState(
        model=model,
        optimizer=optimizer,
        seed=seed,
        is_seen=np.zeros(pool_n_samples, dtype=bool),
        choices=tuple(choice.init_state(model, setting) for choice in recipe.choices),
    )


def train(
    task: Task, state: TrainState, *, until_step: int, is_paused: Callable[[], bool] = lambda: False
) -> Iterator[Record | StepRecord]:
    """Train `state` in place up to `until_step`; yields on the grid, before the step that follows.

    With until_step = n_steps the last evaluation is included; at an earlier stop, or when paused,
    the state is whole and a later call goes on as if there had been no stop. NumericError (with the
    step) if a loss or the gradient is not finite; the update is then not made.

    Several ranks all prepare the whole batch, so that every image is augmented as in one process,
    and the model sees a share of it on each. All must pause together: `is_paused` has to be agreed.
    """
    stop = min(until_step, task.recipe.n_steps)
    with closing(task.feed.batches(state.step, stop)) as batches:
        yield from _train(task, state, batches, until_step, is_paused)


def _train(
    task: Task,
    state: TrainState,
    batches: Iterator[Batch],
    until_step: int,
    is_paused: Callable[[], bool],
) -> Iterator[Record | StepRecord]:
    recipe, normalise, first_step = task.recipe, task.normalise, state.step
    ranks, n_classes = task.ranks, task.feed.pool.manifest.n_classes

    while True:
        step, started = state.step, time.perf_counter()
        may_pause = step > first_step  # every call makes progress
        if step < recipe.n_steps and (step >= until_step or (may_pause and is_paused())):
            return
        if step in task.grid:
            record = _evaluate_on_grid(task, state, normalise)
            state.evaluation_s += time.perf_counter() - started
            state.wall_s += time.perf_counter() - started
            yield record
            started = time.perf_counter()
        if step == recipe.n_steps:
            return

        batch = next(batches)
        state.note(batch.ids)
        on_test = _evaluate_this_step(task, state, normalise) if recipe.every_step else None

        for group in state.optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        x = recipe.augmentation.apply(to_unit_range(batch.images), normalise.mean, state.seed, step)
        wrapping = task.wrapping(state, normalise)
        inputs = build_inputs(normalise(x), batch, n_classes, wrapping, ranks)
        found = build_gradient(state.model, wrapping, task.flags, ranks, task.seat)(inputs)
        if not torch.isfinite(found.loss):
            raise NumericError(
                f"step {step}: the training loss is {found.loss.item()}; lower the learning rate"
            )
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients_of(state.model))):
            raise NumericError(f"step {step}: the gradient is not finite; lower the learning rate")
        build_update(state.optimizer, wrapping)()
        state.optimizer.zero_grad()

        state.step += 1
        state.wall_s += time.perf_counter() - started
        if on_test is not None:
            is_wrong = found.logits.argmax(dim=1) != inputs.labels
            yield StepRecord(
                step=step,
                test=on_test,
                batch_loss=found.loss.item(),
                batch_error=ranks.mean(is_wrong.float().mean()).item(),
            )


def _evaluate_on_grid(task: Task, state: TrainState, normalise: Normalisation) -> Record:
    is_last = state.step == task.recipe.n_steps
    test = task.test if is_last else task.test.first(task.recipe.n_test_curve)
    wrapping = task.wrapping(state, normalise)

    def scores_of(batch: Batch, split: str) -> PerImage:
        forward = build_prediction(state.model, wrapping, split)
        return evaluate(
            *(state.model, batch, normalise, task.flags), ranks=task.ranks, forward=forward
        )

    on_probes: dict[str, Scores] = {}
    names = task.probes.active(state.step) if task.probes else []
    sizes = {name: task.probes.n[name] for name in names} if task.probes else {}
    probe = None
    if task.probes and names:
        largest = task.probes.batch.first(max(sizes.values()))
        per_image = scores_of(largest, "train")
        on_probes = {name: per_image.mean(n) for name, n in sizes.items()}
        probe = per_image.scored(largest)
    on_test = scores_of(test, "test")
    scores = on_test.mean()
    on_sets = {
        name: scores_of(batch if is_last else batch.first(task.recipe.n_test_curve), "test").mean()
        for name, batch in task.sets.items()
    }
    for found in (scores, *on_probes.values(), *on_sets.values()):
        refuse_infinite(found, state.step)
    told = measures(wrapping, on_test.scored(test), probe, sizes)
    told["extra"] |= {
        f"test_{key}_{name}": value for name, s in on_sets.items() for key, value in vars(s).items()
    }
    return Record(
        step=state.step,
        samples_seen=state.samples_seen,
        unique_samples_seen=int(state.is_seen.sum()),
        ids_hash=state.ids_hash,
        lr=task.recipe.lr_at(state.step),
        test=scores,
        train=None,
        probes=on_probes,
        **told,
        wall_s=state.wall_s,
        test_images=on_test.images(),
    )


def _evaluate_this_step(task: Task, state: TrainState, normalise: Normalisation) -> Scores:
    """Scores on 64 test images drawn by (seed, step), the same in both worlds."""
    rows = integers(len(task.test), state.seed, Stream.EVERY_STEP_TEST, state.step, n=EVERY_STEP_N)
    index = torch.from_numpy(rows).to(task.flags.torch_device)
    drawn = Batch(
        images=task.test.images[index], labels=task.test.labels[index], ids=task.test.ids[rows]
    )
    started = time.perf_counter()
    chunk = -(-EVERY_STEP_N // task.ranks.n)
    forward = build_prediction(state.model, task.wrapping(state, normalise), "test")
    scores = evaluate(state.model, drawn, normalise, task.flags, chunk, task.ranks, forward).mean()
    state.evaluation_s += time.perf_counter() - started
    refuse_infinite(scores, state.step)
    return scores


def refuse_infinite(scores: Scores, step: int) -> None:
    """NumericError if an evaluation found no number."""
    if not isfinite(scores.loss):
        raise NumericError(f"step {step}: a loss is {scores.loss}; lower the learning rate")
