"""Picks a learning rate on the `reference` split, so that no world's test images decide it.

Each value is given a short run of a real world, from the weights that the comparison starts from;
the one with the lowest error on `reference` is taken. That split serves nothing else in a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bootstrap import files
from bootstrap.batch import Batch
from bootstrap.errors import (
    ConfigurationError,
    Interrupted,
    NotEnoughData,
    NumericError,
)
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, pretty_json, sha256_hex
from bootstrap.filtered import count_kept
from bootstrap.forks import Control, SeedRun
from bootstrap.interventions import check_execution
from bootstrap.plan import Plan, check_enough_data, identity
from bootstrap.pretrained import Pretrained
from bootstrap.recipe import Recipe
from bootstrap.records import Record
from bootstrap.shards import Manifest, read_manifest
from bootstrap.stacked import Seat, in_groups, run_stacked
from bootstrap.train import train
from bootstrap.worlds import BLOCK

SPLIT = "reference"
SEED = 0  # whatever the seeds of the comparison, so that more of them change no learning rate


@dataclass(frozen=True, kw_only=True)
class Picking:
    """What is tried: `values` for a real world of `n_samples`, `n_steps` each with the schedule's
    whole course."""

    recipe: Recipe
    data: Path
    values: Sequence[float]
    n_samples: int
    n_steps: int
    flags: Flags
    init: Pretrained | None = None

    def __post_init__(self) -> None:
        if not self.values or min(self.values) <= 0 or len({*self.values}) < len(self.values):
            raise ConfigurationError(f"--pick-lr {list(self.values)}: give different rates above 0")
        check_execution(
            self.recipe.choices,
            is_stacked=self.flags.replicas > 1,
            is_compiled=self.flags.compiled,
        )
        if self.n_steps < 1:
            raise ConfigurationError(f"--pick-lr-steps {self.n_steps}: give at least one")

    @cached_property
    def manifest(self) -> Manifest:
        """Of the data; NotEnoughData unless it can serve."""
        manifest = read_manifest(self.data)
        check_enough_data(replace(self.recipe, n_steps=1), manifest, (self.n_samples,), self.data)
        if not manifest.n(SPLIT):
            raise NotEnoughData(
                f"{self.data}: there is no {SPLIT} split to pick a learning rate on; generate or"
                " import one, or give the rate"
            )
        if self.init is not None:
            self.init.check(self.recipe, manifest)
        return manifest

    @property
    def pool_n_samples(self) -> int:
        """The first blocks of the stream that hold N: extending it changes no choice."""
        return -(-self.n_samples // BLOCK) * BLOCK

    def short(self, lr: float) -> Recipe:
        """The recipe of one value."""
        return replace(with_lr(self.recipe, lr), n_steps=self.n_steps, every_step=False)

    def record(self, out: Path) -> Path:
        """Where the choice is kept, by all that decides it."""
        pool = self.pool_n_samples
        runs = [
            identity(self.short(lr), self.manifest, pool, self.flags, self.init)
            for lr in self.values
        ]
        name = sha256_hex(canonical_json([runs, self.n_samples, SEED]).encode())[:8]
        return out / "picked-lr" / f"{name}.json"

    def read(self, out: Path) -> dict[str, Any] | None:
        """What was picked before, if it was."""
        path = self.record(out)
        return json.loads(path.read_bytes()) if path.exists() else None


def with_lr(recipe: Recipe, lr: float) -> Recipe:
    """The recipe with another base learning rate."""
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=lr))  # type: ignore[type-var]


def pick_lr(
    picking: Picking, out: Path, is_interrupted: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Try every value and keep the choice under `out`: `lr`, and `tried` with all scores.

    A value whose loss does not stay finite has none. NumericError if no value has; Interrupted when
    asked to stop, and the values are then tried again. With replicas so many are tried at once.
    """
    scores: dict[float, dict[str, float | None]] = {}

    def try_rate(lr: float, seat: Seat | None = None) -> None:
        scores[lr] = reference_scores(picking, lr, is_interrupted, seat)

    for rates in in_groups(picking.values, picking.flags.replicas):
        if picking.flags.replicas == 1:
            try_rate(rates[0])
        elif errors := run_stacked([partial(try_rate, lr) for lr in rates], picking.flags):
            raise errors[0]
    tried = [{"lr": lr, **scores[lr]} for lr in picking.values]
    finite = [row for row in tried if row["error"] is not None]
    if not finite:
        raise NumericError(f"--pick-lr: no rate of {list(picking.values)} keeps the loss finite")
    best = min(finite, key=lambda row: (row["error"], row["loss"]))
    pick = {
        "lr": best["lr"],
        "tried": tried,
        "split": SPLIT,
        "n_images": picking.manifest.n(SPLIT),
        "n_samples": picking.n_samples,
        "n_steps": picking.n_steps,
        "seed": SEED,
    }
    files.replace(picking.record(out), pretty_json(pick))
    return pick


def reference_scores(
    picking: Picking,
    lr: float,
    is_interrupted: Callable[[], bool],
    seat: Seat | None = None,
) -> dict[str, float | None]:
    """Error, soft-error and loss on `reference` of one value's real world at its last step."""
    recipe, manifest, n = picking.short(lr), picking.manifest, picking.n_samples
    plan = Plan(
        recipe=recipe,
        manifest=manifest,
        data=picking.data,
        folder=Path(),
        pool_n_samples=picking.pool_n_samples,
        n_samples=(n,),
        flags=picking.flags,
        init=picking.init,
        n_kept=count_kept(recipe.choices, picking.data, picking.pool_n_samples),
    )
    picking.flags.apply()
    with (
        closing(plan.pool("stream")) as pool,
        closing(plan.pool(SPLIT)) as reference,
    ):
        run = SeedRun(plan=plan, seed=SEED, pool=pool, control=Control(), seat=seat)
        held_out = Batch.from_columns(reference.first(reference.n), plan.flags.torch_device)
        task = replace(run.task(n, ()), test=held_out, grid=frozenset({recipe.n_steps}))
        scores: dict[str, float | None] = {"error": None, "soft_error": None, "loss": None}
        try:
            steps = train(task, run.state(), until_step=recipe.n_steps, is_paused=is_interrupted)
            for record in steps:
                if isinstance(record, Record):
                    scores = dict(vars(record.test))
                    return scores
        except NumericError:
            return scores
    raise Interrupted("--pick-lr was stopped; run it again to try all rates again")
