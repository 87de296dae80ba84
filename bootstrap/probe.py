"""How long a pair will take, and how much it will compute: measured on a few steps, then forgotten.

Operations are those of matrix products, convolutions and attention, as PyTorch counts them.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.evaluate import CHUNK, evaluate
from bootstrap.forks import Control, SeedRun
from bootstrap.interventions import step_cost
from bootstrap.plan import Plan
from bootstrap.train import Task, TrainState, train

N_STEPS = 3
N_SMALL = 8  # images, where a whole batch would take long
LONG_S = 1.5  # a step


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One sample's seconds and operations in training and evaluation; bytes of a model's states."""

    train_s: float
    evaluate_s: float
    train_flop: float  # forward and backward
    evaluate_flop: float  # forward
    weights_bytes: int
    state_bytes: int  # weights, optimiser and the set of seen ids
    n_steps: int  # timed
    batch_size: int  # of those steps
    is_eager: bool  # although the run will be compiled


def probe(plan: Plan, seed: int = 0) -> Probe:
    """Train a model for a few steps and throw it away; nothing is written.

    It is not compiled, which would take longer than all the rest, and where a step is long a small
    batch stands for a whole one: seconds, not minutes.
    """
    recipe = replace(plan.recipe, n_steps=max(plan.recipe.n_steps, 4 * N_STEPS))
    eager = replace(plan, recipe=recipe, flags=replace(plan.flags, compiled=False))
    n_small = min(N_SMALL, recipe.batch_size)
    with closing(plan.pool("stream")) as pool:
        run = SeedRun(plan=eager, seed=seed, pool=pool, control=Control())
        task, state = replace(run.task(plan.ideal_n_samples, ()), grid=frozenset()), run.state()
        small = replace(
            task,
            recipe=replace(recipe, batch_size=n_small),
            feed=replace(task.feed, batch_size=n_small),
        )
        _seconds_per_sample(small, state, 1)  # the first step prepares much
        train_s, n_steps, batch_size = _seconds_per_sample(small, state, 1), 1, n_small
        if train_s * recipe.batch_size < LONG_S:
            _seconds_per_sample(task, state, 1)
            n_steps, batch_size = N_STEPS, recipe.batch_size
            train_s = _seconds_per_sample(task, state, n_steps)
    is_long = train_s * CHUNK > LONG_S
    forward, both = _operations(state, task.test.first(2), task.normalise)
    tensors = state.tensors()
    return Probe(
        train_s=train_s,
        evaluate_s=_evaluation_s(task, state, n_small if is_long else CHUNK),
        train_flop=both * step_cost(recipe.choices),
        evaluate_flop=forward,
        weights_bytes=_n_bytes(state.model.state_dict()),
        state_bytes=_n_bytes(tensors),
        n_steps=n_steps,
        batch_size=batch_size,
        is_eager=plan.flags.compiled,
    )


def _seconds_per_sample(task: Task, state: TrainState, n_steps: int) -> float:
    """Seconds of training, without the evaluations of single steps."""
    wall_s, evaluation_s = state.wall_s, state.evaluation_s
    for _ in train(task, state, until_step=state.step + n_steps):
        pass
    seconds = (state.wall_s - wall_s) - (state.evaluation_s - evaluation_s)
    return seconds / (n_steps * task.recipe.batch_size)


def _evaluation_s(task: Task, state: TrainState, chunk: int) -> float:
    """Seconds of evaluating one image in chunks of so many."""
    images = task.test.first(chunk)
    for _ in range(2):  # the first prepares
        started = time.perf_counter()
        evaluate(state.model, images, task.normalise, task.flags, chunk).mean()
        seconds = time.perf_counter() - started
    return seconds / chunk


def _operations(state: TrainState, batch: Batch, normalise: Normalisation) -> tuple[float, float]:
    """Operations of one sample: forward, and forward and backward."""
    with FlopCounterMode(display=False) as counter:
        logits = state.model(normalise(to_unit_range(batch.images)))
        forward = counter.get_total_flops()
        cross_entropy(logits.float(), batch.labels).backward()
        both = counter.get_total_flops()
    return forward / len(batch), both / len(batch)


def _n_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
