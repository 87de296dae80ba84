"""Curves to numbers: the gap, the convergence step, their spread over seeds. No torch.

Everything here is arithmetic on records. Gaps are real minus ideal, signed; errors are fractions,
losses nats. The interval across seeds (Student-t, 95 %) is the one given: it holds the spread of
initialisation, order and subset. Resampling test images within a seed would need a result per
image, which runs do not store by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from bootstrap.errors import DataError
from bootstrap.pairing import identity_differences
from bootstrap.records import APPROXIMATE
from bootstrap.runlog import METRICS, Curves, Run

CONVERGED_TRAIN_ERROR = 0.01  # the paper's T_0: train error at most 1 %
CONFIDENCE = 0.95
MIN_SEEDS = 3  # below this no interval: with two seeds it says nothing


def curve_gap(
    real: Curves, ideal: Curves, metric: str = "error"
) -> Float[np.ndarray, "n_seeds n_steps"]:
    """Real minus ideal, step by step (for soft_error, the paper's bootstrap error).

    DataError if the two are of runs with different identities, or were evaluated at different
    steps.
    """
    _check_metric(metric)
    if differing := identity_differences(real.identity, ideal.identity):
        raise DataError(
            f"real and ideal are no pair, they differ in {', '.join(differing)}; subtract the"
            " worlds of one run"
        )
    if not np.array_equal(real.steps, ideal.steps):
        raise DataError(
            f"real has {len(real.steps)} evaluation steps and ideal {len(ideal.steps)}, and they"
            " differ; were they one pair? A gap needs both worlds on one grid"
        )
    return real.columns[f"test_{metric}"] - ideal.columns[f"test_{metric}"]


def gap(
    run: Run, metric: str = "error", n_samples: int | None = None
) -> Float[np.ndarray, "n_seeds n_steps"]:
    """The gap of the real world with `n_samples` at `run.steps`; metric: error, soft_error or loss.

    `n_samples` may be left out when the run has one N. The gap is NaN where a world has no record:
    in an unfinished run, or at the fork of an N that was asked for after this world was done; and
    for a seed of which one world failed. DataError if the records show that the worlds are no pair.
    """
    _check_metric(metric)
    n_samples = _only(run.n_samples) if n_samples is None else n_samples
    if n_samples not in run.n_samples:
        raise ValueError(f"{run.name} has no N = {n_samples}; it has {_listed(run.n_samples)}")
    for (seed, n), why in run.unpaired.items():
        if n == n_samples:
            raise DataError(f"{run.path}: N = {n:,}, seed {seed}: {why}; see `verify` on the run")
    return gap_where_both(run, metric, n_samples)


def gap_where_both(run: Run, metric: str, n_samples: int) -> Float[np.ndarray, "n_seeds n_steps"]:
    """The gap at `run.steps`, NaN where a world has no record or the run refuses; never raises."""
    worlds = (run.real[n_samples], run.ideal)
    real, ideal = (at_steps(w, f"test_{metric}", run.steps, len(run.seeds)) for w in worlds)
    refused = [(seed, n_samples) in run.refused for seed in run.seeds]
    return np.where(np.array(refused, dtype=bool)[:, None], np.nan, real - ideal)


def at_steps(
    curves: Curves, name: str, steps: Int[np.ndarray, " n_steps"], n_seeds: int
) -> Float[np.ndarray, "n_seeds n_steps"]:
    """Column `name` at `steps`, NaN where there is no record."""
    values = np.full((n_seeds, len(steps)), np.nan)
    if name in curves.columns:
        _, here, there = np.intersect1d(steps, curves.steps, return_indices=True)
        values[:, here] = curves.columns[name][:, there]
    return values


def convergence_step(
    steps: Int[np.ndarray, " n_steps"],
    train_error: Float[np.ndarray, " n_steps"],
    threshold: float = CONVERGED_TRAIN_ERROR,
) -> int | None:
    """The first evaluated step with train_error <= threshold (the paper's T_0); None if never."""
    reached = np.flatnonzero(np.asarray(train_error) <= threshold)  # NaN compares False
    return int(steps[reached[0]]) if len(reached) else None


def convergence_step_interpolated(
    steps: Int[np.ndarray, " n_steps"],
    train_error: Float[np.ndarray, " n_steps"],
    threshold: float = CONVERGED_TRAIN_ERROR,
) -> float | None:
    """Where the line from the evaluation before to `convergence_step` crosses `threshold`."""
    last = convergence_step(steps, train_error, threshold)
    if last is None:
        return None
    known = np.isfinite(train_error) & (steps <= last)
    x, y = steps[known][-2:].astype(np.float64), train_error[known][-2:]
    if len(x) < 2:
        return float(last)
    return float(x[0] + (y[0] - threshold) / (y[0] - y[1]) * (x[1] - x[0]))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over seeds with its 95 % interval; `low` and `high` are NaN below MIN_SEEDS seeds."""

    mean: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    n_seeds: Int[np.ndarray, "*shape"]

    def to_json(self) -> dict[str, Any]:
        """A scalar spread as it is stored; null instead of NaN."""
        ends = [number(self.low), number(self.high)]
        interval = None if None in ends else ends
        return {
            "mean": number(self.mean),
            "interval_95": interval,
            "n_seeds": int(self.n_seeds),
        }


def spread(values: Float[np.ndarray, "n_seeds ..."]) -> Spread:
    """Mean and Student-t 95 % interval over the first axis; NaN values do not count."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # no seed, or one: NaN is the answer
        mean = np.where(known, values, 0).sum(axis=0) / n
        squares = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
        standard_error = np.sqrt(squares / (n - 1) / n)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * standard_error
    half = np.where(n >= MIN_SEEDS, half, np.nan)
    return Spread(mean=mean, low=mean - half, high=mean + half, n_seeds=n)


def first_reuse_step(run: Run, n_samples: int) -> int | None:
    """The step at which the real world starts to repeat: N // batch; None if no batch is known."""
    batch_size = (run.config.get("recipe") or {}).get("batch_size")
    return n_samples // batch_size if batch_size else None


def approximate_from(run: Run) -> int | None:
    """The step at which the ideal world starts to re-use samples; None if it has not."""
    if f"extra.{APPROXIMATE}" not in run.ideal.columns:
        return None
    there = run.config.get("n_kept") or run.config["pool_n_samples"]
    return first_reuse_step(run, there - run.config.get("n_own", 0))


def error_by_seed(run: Run, n_samples: int | None) -> Float[np.ndarray, "n_seeds n_steps"]:
    """Test error of the seeds that have any."""
    curves = run.ideal if n_samples is None else run.real[n_samples]
    return seeds_with_values(at_steps(curves, "test_error", curves.steps, len(run.seeds)))


def convergence_steps(run: Run, n_samples: int) -> list[int]:
    """The convergence steps of the seeds that converged."""
    curves = run.real[n_samples]
    train = at_steps(curves, "train_error", curves.steps, len(run.seeds))
    found = [convergence_step(curves.steps, seed) for seed in train]
    return [step for step in found if step is not None]


def seeds_with_values(values: np.ndarray) -> np.ndarray:
    """The rows that hold any number."""
    return values[np.isfinite(values).any(axis=1)]


def scalar_spread(values: list[float | None]) -> dict[str, Any]:
    """The spread of one number per seed as it is stored; None does not count."""
    return spread(np.array([np.nan if value is None else value for value in values])).to_json()


def number(value: Any) -> float | None:
    """A float that JSON can hold: None instead of NaN or infinity."""
    return float(value) if math.isfinite(value) else None


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} must be one of {', '.join(METRICS)}")


def _only(n_samples: tuple[int, ...]) -> int:
    if len(n_samples) != 1:
        raise ValueError(f"say which n_samples: the run has {_listed(n_samples)}")
    return n_samples[0]


def _listed(n_samples: tuple[int, ...]) -> str:
    return ", ".join(f"{n:,}" for n in n_samples) or "none"
