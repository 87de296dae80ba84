"""What the other ranks do while the first one runs a pair: train along.

The first rank alone decides, reads and writes runs, and speaks. Before it trains it says what, and
hands over its state (`forks.SeedRun.announce`); from there all take the same steps. So no rank
depends on what another one finds on disk, and only the data set has to be seen by all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from bootstrap.errors import NumericError
from bootstrap.execution import Flags
from bootstrap.forks import Control, Leg, SeedRun
from bootstrap.plan import Plan
from bootstrap.ranks import Ranks
from bootstrap.recipe import Recipe
from bootstrap.shards import read_manifest
from bootstrap.train import train


def follow(
    recipe: Recipe,
    data: Path,
    *,
    flags: Flags,
    ranks: Ranks,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Train as the first rank says while it is in `run_pair`, to its end, whatever that is.

    Nothing is written. What stops all ranks, a request or a loss that is not finite, is raised by
    the first one only.
    """
    flags.apply()
    for order, tensors in _orders(ranks):
        manifest = read_manifest(data)
        plan = Plan(
            recipe=recipe,
            manifest=manifest,
            data=data,
            folder=Path(),
            pool_n_samples=order["pool_n_samples"],
            n_samples=tuple(order["n_samples"]),
            flags=flags,
        )
        control = Control(is_interrupted=is_interrupted)
        with closing(plan.pool("stream")) as pool:
            run = SeedRun(plan=plan, seed=order["seed"], pool=pool, control=control, ranks=ranks)
            _train_along(run, Leg(**order["leg"]), (tensors, order))


def _orders(ranks: Ranks) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What the first rank announces, until it has no more or is gone; why, it says itself."""
    while True:
        try:
            order = ranks.broadcast()
            tensors = ranks.broadcast() if order else b""
        except RuntimeError:
            return
        if not order:
            return
        yield json.loads(order), load(tensors)


def _train_along(run: SeedRun, leg: Leg, saved: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    """The steps of `forks.advance`, without records."""
    state, task = run.state(saved), run.task(leg.world_n, leg.probe_n)
    is_interrupted = run.control.is_interrupted
    for stop in (stop for stop in leg.stops if stop >= state.step):
        while True:
            try:
                for _ in train(
                    task,
                    state,
                    until_step=stop,
                    is_paused=lambda: run.ranks.any(is_interrupted()),
                ):
                    pass
            except NumericError:
                return
            if state.step >= stop:
                break
            if run.ranks.any(is_interrupted()):
                return
