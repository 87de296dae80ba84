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
from bootstrap.records import SCHEMA
from bootstrap.runlog import METRICS, Curves, Run

CONVERGED_TRAIN_ERROR = 0.01  # the paper's T_0: train error at most 1 %
CONFIDENCE = 0.95
MIN_SEEDS = 3  # below this no interval: with two seeds it says nothing

Triple = dict[str, float | None]


def curve_gap(
    real: Curves, ideal: Curves, metric: str = "error"
) -> Float[np.ndarray, "n_seeds n_steps"]:
    """Real minus ideal, step by step (for soft_error, the paper's bootstrap error).

    DataError if the two were evaluated at different steps.
    """
    _check_metric(metric)
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
    in an unfinished run, or at the fork of an N that was asked for after this world was done.
    """
    _check_metric(metric)
    n_samples = _only(run.n_samples) if n_samples is None else n_samples
    if n_samples not in run.n_samples:
        raise ValueError(f"{run.name} has no N = {n_samples}; it has {_listed(run.n_samples)}")
    return gap_where_both(run, metric, n_samples)


def gap_where_both(run: Run, metric: str, n_samples: int) -> Float[np.ndarray, "n_seeds n_steps"]:
    """The gap at `run.steps`, NaN where a world has no record; never refuses."""
    worlds = (run.real[n_samples], run.ideal)
    real, ideal = (at_steps(w, f"test_{metric}", run.steps, len(run.seeds)) for w in worlds)
    return real - ideal


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
        ends = [_number(self.low), _number(self.high)]
        interval = None if None in ends else ends
        return {
            "mean": _number(self.mean),
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


def summarise(run: Run) -> dict[str, Any]:
    """The content of summary.json: by N, the spread over seeds and under `per_seed` each seed.

    Every gap and final entry is {error, soft_error, loss}; null where there is no number. The
    final step of an entry is the last that both its worlds have; a mean of final scores is over
    the seeds that reached the latest of these. A world that has not converged is `censored`, and
    its `max_abs_gap_until_convergence` is the maximum so far.
    """
    return {
        "schema": SCHEMA,
        "run": run.name,
        "status": run.status,
        "seeds": list(run.seeds),
        "n_test": run.config.get("n_test"),
        "convergence_train_error": CONVERGED_TRAIN_ERROR,
        "interval": "Student-t 95 % across seeds, null below 3 seeds",
        "n_samples": {str(n): _summary_of_n(run, n) for n in run.n_samples},
    }


def _summary_of_n(run: Run, n_samples: int) -> dict[str, Any]:
    entries = _entries(run, n_samples)
    return {
        "first_reuse_step": first_reuse_step(run, n_samples),
        **_across(list(entries.values())),
        "per_seed": entries,
    }


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


def _entries(run: Run, n_samples: int) -> dict[str, dict[str, Any]]:
    """An entry per seed for one N."""
    curves, n_seeds = run.real[n_samples], len(run.seeds)
    train = at_steps(curves, "train_error", curves.steps, n_seeds)
    worlds = {"real": curves, "ideal": run.ideal}
    scores = {
        name: {m: at_steps(world, f"test_{m}", run.steps, n_seeds) for m in METRICS}
        for name, world in worlds.items()
    }
    scores["gap"] = {m: gap(run, m, n_samples) for m in METRICS}
    entries = {}
    for row, seed in enumerate(run.seeds):
        if not np.isfinite(scores["real"]["error"][row]).any():
            continue  # this seed was never asked for this N, or has not started
        converged = convergence_step(curves.steps, train[row])
        interpolated = convergence_step_interpolated(curves.steps, train[row])
        mine = {name: {m: v[row] for m, v in by.items()} for name, by in scores.items()}
        entries[str(seed)] = {
            "convergence_step": converged,
            "censored": converged is None,
            "convergence_step_interpolated": interpolated,
            **_at_and_until_convergence(run.steps, mine["gap"], converged),
            **_final(run.steps, mine),
        }
    return entries


def _at_and_until_convergence(
    steps: np.ndarray, gaps: dict[str, np.ndarray], converged: int | None
) -> dict[str, Triple]:
    at = np.flatnonzero(steps == converged) if converged is not None else np.array([], dtype=int)
    until = slice(None) if converged is None else steps <= converged
    return {
        "gap_at_convergence": {m: _number(g[at[0]]) if len(at) else None for m, g in gaps.items()},
        "max_abs_gap_until_convergence": {m: _max_abs(g[until]) for m, g in gaps.items()},
    }


def _final(steps: np.ndarray, scores: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Scores of both worlds and their gap at the last step that both have."""
    known = np.flatnonzero(np.isfinite(scores["gap"]["error"]))
    last = known[-1] if len(known) else None
    final = {
        f"final_{name}": {m: None if last is None else _number(v[last]) for m, v in by.items()}
        for name, by in scores.items()
    }
    return {"final_step": None if last is None else int(steps[last]), **final}


def _across(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The spread over seeds of the entries of one N."""
    n_converged = sum(not entry["censored"] for entry in entries)
    latest = max((e["final_step"] for e in entries if e["final_step"] is not None), default=None)
    finished = [e for e in entries if e["final_step"] == latest]
    return {
        "n_seeds": len(entries),
        "n_converged": n_converged,
        "convergence_step": _scalar_spread([e["convergence_step"] for e in entries]),
        "gap_at_convergence": _triple_spread(entries, "gap_at_convergence"),
        "max_abs_gap_until_convergence": _triple_spread(entries, "max_abs_gap_until_convergence"),
        "final_step": latest,
        **{f"final_{w}": _triple_spread(finished, f"final_{w}") for w in ("real", "ideal", "gap")},
    }


def _triple_spread(entries: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {m: _scalar_spread([entry[key][m] for entry in entries]) for m in METRICS}


def _scalar_spread(values: list[float | None]) -> dict[str, Any]:
    return spread(np.array([np.nan if value is None else value for value in values])).to_json()


def _max_abs(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.abs(known).max()) if len(known) else None


def _number(value: Any) -> float | None:
    """A float that JSON can hold."""
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
