"""The choices of a recipe where a run stands: each with its state and its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bootstrap.batch import Normalisation
from bootstrap.interventions import Choice, Forward, Scored, Setting, StepContext
from bootstrap.interventions.choice import word_of
from bootstrap.randomness import Stream, torch_seed
from bootstrap.ranks import Ranks
from bootstrap.recipe import Recipe, evaluation_grid
from bootstrap.records import TRAIN

Wrapping = Sequence[tuple[Choice, StepContext]]


def build_wrapping(
    recipe: Recipe,
    states: Sequence[dict[str, Tensor]],
    *,
    step: int,
    seed: int,
    model: nn.Module,
    normalise: Normalisation,
    ranks: Ranks,
    device: torch.device,
) -> Wrapping:
    """Every choice with its context at a step; the first is innermost."""
    return [
        (
            choice,
            StepContext(
                step=step,
                n_steps=recipe.n_steps,
                seed=seed,
                lr=recipe.lr_at(step),
                name=name_in_draws(choice),
                state=state,
                model=model,
                normalise=normalise,
                ranks=ranks,
                device=device,
            ),
        )
        for choice, state in zip(recipe.choices, states, strict=True)
    ]


def wrap_model(
    choices: Sequence[Choice], model: nn.Module, setting: Setting, seed: int
) -> nn.Module:
    """The model with what choices put into it; draws of the global generator are each one's own."""
    for choice in choices:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, Stream.CHOICE, 0, word_of(name_in_draws(choice)), 1))
            model = choice.wrap_model(model, setting)
    return model


def name_in_draws(choice: Choice) -> str:
    """What the draws of a choice depend on."""
    return type(choice).__qualname__


def build_prediction(model: nn.Module, wrapping: Wrapping, split: str) -> Forward:
    """The logits by which images of `train` or `test` are scored."""
    forward: Forward = model
    for choice, context in wrapping:
        forward = choice.wrap_prediction(forward, split, context)
    return forward


def measures(
    wrapping: Wrapping, test: Scored, probe: Scored | None, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """What choices say of an evaluation: of all worlds, and of those with these probes.

    The fields `extra` and `probe_extra` of a record.
    """
    extra: dict[str, float] = {}
    of_probes: dict[str, dict[str, float]] = {name: {} for name in sizes}
    for choice, context in wrapping:
        if context.step in evaluation_grid(context.n_steps):
            choice.observe(test, probe, context)
        extra |= choice.measure(test, context)
        for name, n in sizes.items():
            assert probe is not None
            found = choice.measure_probe(probe.first(n), context)
            of_probes[name] |= {f"{TRAIN}{key}": value for key, value in found.items()}
    return {"extra": extra, "probe_extra": of_probes}
