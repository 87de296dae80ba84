"""Runs made of formulas, written through RunWriter, to test curves, plots and reports on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bootstrap.records import Record, Scores, StepRecord
from bootstrap.runlog import Run, RunWriter, load_run

BATCH_SIZE = 10
GRID = (0, 1, 2, 4, 8, 16, 32)


def record(
    step: int, test_error: float, train_error: float | None = None, **extra: float
) -> Record:
    """A record with soft-error half the error and loss twice the error."""
    return Record(
        step=step,
        samples_seen=step * BATCH_SIZE,
        unique_samples_seen=step * BATCH_SIZE,
        ids_hash=f"{step:08x}",
        lr=0.1,
        test=scores(test_error),
        train=None if train_error is None else scores(train_error),
        wall_s=0.5 * step,
        extra=extra,
    )


def scores(error: float) -> Scores:
    return Scores(error=error, soft_error=error / 2, loss=error * 2)


def write_world(
    root: Path, n_samples: int | None, records: Sequence[Record | StepRecord], seed: int = 0
) -> Run:
    """Append records of one world to the run `root/run`; N None is the ideal world."""
    world = "ideal" if n_samples is None else "real"
    with RunWriter(root, "run", seed, world, n_samples) as writer:
        for one in records:
            writer.write(one)
    return load_run(root / "run")


def write_run(
    root: Path,
    n_samples: Sequence[int] = (40, 160),
    seeds: Sequence[int] = (0, 1, 2),
    grid: Sequence[int] = GRID,
    n_every_step: int = 0,
    noise: float = 0.004,
) -> Run:
    """A run whose real worlds leave the ideal one at N // BATCH_SIZE, and later for larger N."""
    for seed in seeds:
        draw = np.random.default_rng(seed)
        shared = noise * draw.standard_normal(len(grid))  # the worlds agree until the first reuse
        for n in (None, *n_samples):
            reused = np.array([n is not None and step > n // BATCH_SIZE for step in grid])
            own = noise * draw.standard_normal(len(grid)) * reused
            errors = np.array([_test_error(step, n) for step in grid]) + shared + own
            train = [None if n is None else _train_error(step, n) for step in grid]
            rows: list[Record | StepRecord]
            rows = [record(s, float(e), t) for s, e, t in zip(grid, errors, train, strict=True)]
            rows += [_step_record(draw, step, n) for step in range(n_every_step)]
            write_world(root, n, rows, seed)
    configure(root / "run", recipe={"batch_size": BATCH_SIZE, "n_steps": grid[-1]})
    return load_run(root / "run")


def configure(path: Path, **config: Any) -> None:
    """Add keys to the run's pair.json."""
    pair = json.loads((path / "pair.json").read_text())
    (path / "pair.json").write_text(json.dumps(pair | config))


def finish(run: Run) -> Run:
    """Mark every world of every seed as done."""
    for seed in run.seeds:
        for world in run.worlds:
            (run.path / f"seed-{seed}" / f"{world}.done.json").write_text("{}")
    return load_run(run.path)


def _test_error(step: int, n_samples: int | None) -> float:
    ideal = 0.15 + 0.75 / (1 + step / 40) ** 0.6
    if n_samples is None:
        return ideal
    return ideal + 0.05 * math.log(max(1.0, step * BATCH_SIZE / n_samples))


def _train_error(step: int, n_samples: int) -> float:
    return 0.9 * math.exp(-step * BATCH_SIZE / n_samples / 2)


def _step_record(draw: np.random.Generator, step: int, n_samples: int | None) -> StepRecord:
    error = float(draw.binomial(64, min(1.0, _test_error(step, n_samples))) / 64)
    return StepRecord(step=step, test=scores(error), batch_loss=2 * error, batch_error=error)
