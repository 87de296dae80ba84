"""The content of summary.json: a run in numbers, by N, over seeds and for each seed. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from bootstrap.curves import (
    CONVERGED_TRAIN_ERROR,
    approximate_from,
    at_steps,
    convergence_step,
    convergence_step_interpolated,
    first_reuse_step,
    gap_where_both,
    number,
    scalar_spread,
)
from bootstrap.records import SCHEMA
from bootstrap.reuse import Reuse, reuse_of
from bootstrap.runlog import METRICS, Run

Triple = dict[str, float | None]


def summarise(run: Run) -> dict[str, Any]:
    """The content of summary.json: by N, the spread over seeds and under `per_seed` each seed.

    Every gap and final entry is {error, soft_error, loss}; null where there is no number. The
    final step of an entry is the last that both its worlds have; a mean of final scores is over
    the seeds that reached the latest of these. A world that has not converged is `censored`, and
    its `max_abs_gap_until_convergence` is the maximum so far.
    """
    reuse = reuse_of(run)
    return {
        "schema": SCHEMA,
        "run": run.name,
        "status": run.status,
        "seeds": list(run.seeds),
        "n_test": run.config.get("n_test"),
        "convergence_train_error": CONVERGED_TRAIN_ERROR,
        "interval": "Student-t 95 % across seeds, null below 3 seeds",
        "ideal_approximate_from": approximate_from(run),
        **({} if run.config.get("shares_prefix", True) else {"shares_prefix": False}),
        "no_gap": [{"seed": s, "n_samples": n, "why": why} for (s, n), why in run.refused.items()],
        f"{reuse.name}_law": reuse.law(),
        "n_samples": {str(n): _summary_of_n(run, n, reuse) for n in run.n_samples},
    }


def _summary_of_n(run: Run, n_samples: int, reuse: Reuse) -> dict[str, Any]:
    entries = _entries(run, n_samples, reuse)
    return {
        "first_reuse_step": first_reuse_step(run, n_samples),
        **_across(list(entries.values())),
        reuse.name: reuse.across(n_samples),
        "per_seed": entries,
    }


def _entries(run: Run, n_samples: int, reuse: Reuse) -> dict[str, dict[str, Any]]:
    """An entry per seed for one N."""
    curves, n_seeds = run.real[n_samples], len(run.seeds)
    train = at_steps(curves, "train_error", curves.steps, n_seeds)
    worlds = {"real": curves, "ideal": run.ideal}
    scores = {
        name: {m: at_steps(world, f"test_{m}", run.steps, n_seeds) for m in METRICS}
        for name, world in worlds.items()
    }
    scores["gap"] = {m: gap_where_both(run, m, n_samples) for m in METRICS}
    entries = {}
    for row, seed in enumerate(run.seeds):
        if not np.isfinite(scores["real"]["error"][row]).any():
            continue  # this seed was never asked for this N, or has not started
        if (seed, n_samples) in run.refused:
            continue
        converged = convergence_step(curves.steps, train[row])
        interpolated = convergence_step_interpolated(curves.steps, train[row])
        mine = {name: {m: v[row] for m, v in by.items()} for name, by in scores.items()}
        entries[str(seed)] = {
            "convergence_step": converged,
            "censored": converged is None,
            "convergence_step_interpolated": interpolated,
            **_at_and_until_convergence(run.steps, mine["gap"], converged),
            **_final(run.steps, mine),
            **reuse.of_seed(n_samples, seed),
        }
    return entries


def _at_and_until_convergence(
    steps: np.ndarray, gaps: dict[str, np.ndarray], converged: int | None
) -> dict[str, Triple]:
    at = np.flatnonzero(steps == converged) if converged is not None else np.array([], dtype=int)
    until = slice(None) if converged is None else steps <= converged
    return {
        "gap_at_convergence": {m: number(g[at[0]]) if len(at) else None for m, g in gaps.items()},
        "max_abs_gap_until_convergence": {m: _max_abs(g[until]) for m, g in gaps.items()},
    }


def _final(steps: np.ndarray, scores: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Scores of both worlds and their gap at the last step that both have."""
    known = np.flatnonzero(np.isfinite(scores["gap"]["error"]))
    last = known[-1] if len(known) else None
    final = {
        f"final_{name}": {m: None if last is None else number(v[last]) for m, v in by.items()}
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
        "convergence_step": scalar_spread([e["convergence_step"] for e in entries]),
        "gap_at_convergence": _triple_spread(entries, "gap_at_convergence"),
        "max_abs_gap_until_convergence": _triple_spread(entries, "max_abs_gap_until_convergence"),
        "final_step": latest,
        **{f"final_{w}": _triple_spread(finished, f"final_{w}") for w in ("real", "ideal", "gap")},
    }


def _triple_spread(entries: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {m: scalar_spread([entry[key][m] for entry in entries]) for m in METRICS}


def _max_abs(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.abs(known).max()) if len(known) else None
