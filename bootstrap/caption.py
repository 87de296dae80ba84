"""The caption of a pair's figure: what a reader must know to judge it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bootstrap.curves import MIN_SEEDS, approximate_from, convergence_steps, error_by_seed
from bootstrap.runlog import Run


def caption(run: Run) -> str:
    """What a reader must know to judge the figure: data, model, N, seeds, test images, interval."""
    recipe, n_seeds = run.config.get("recipe") or {}, len(run.seeds)
    sentences = [about_data(run.config), about_training(run, recipe)]
    if n_seeds >= MIN_SEEDS:
        sentences.append(f"Mean of {n_seeds} seeds, band: Student-t 95 % interval across seeds.")
    elif n_seeds > 1:
        sentences.append(f"{n_seeds} seeds, each drawn thin, and their mean; no interval.")
    else:
        sentences.append("1 seed; no interval." if n_seeds else "No seed has a record.")
    sentences.append(about_test(run.config, recipe))
    return " ".join(s for s in (*sentences, *_notes(run)) if s)


def about_data(config: dict[str, Any]) -> str:
    """The data set and where its labels are from."""
    data = config.get("data") or {}
    labels = f" (labels: {data['label_source']})" if data.get("label_source") else ""
    return f"Data: {data['name']}{labels}." if data.get("name") else ""


def about_training(run: Run, recipe: dict[str, Any]) -> str:
    """The model, every N, and how long it trains."""
    parts = [str(recipe["model"])] if recipe.get("model") else []
    if run.n_samples:
        parts.append("N = " + listed(run.n_samples))
    n_steps = recipe.get("n_steps") or (int(run.steps[-1]) if len(run.steps) else 0)
    batch = f" of batch {recipe['batch_size']}" if recipe.get("batch_size") else ""
    parts += [f"{n_steps:,} SGD steps{batch}"] if n_steps else []
    parts += [f"both worlds from {start}"] if (start := about_start(run.config)) else []
    parts += recipe.get("choices", ())
    return ", ".join(parts) + "." if parts else ""


def about_start(config: dict[str, Any]) -> str:
    """What weights both worlds start from, if not from a seed's own."""
    method = (config.get("init") or {}).get("method")
    return f"weights pre-trained by {method}, with a head of zeros" if method else ""


def about_test(config: dict[str, Any], recipe: dict[str, Any]) -> str:
    """How many test images are behind a point."""
    n_test = config.get("n_test")
    if not n_test:
        return ""
    n_curve = min(config.get("n_test_curve") or recipe.get("n_test_curve") or n_test, n_test)
    if n_curve == n_test:
        return f"{n_test:,} test images."
    return f"{n_curve:,} test images on the curve, {n_test:,} at the last step."


def _notes(run: Run) -> list[str]:
    """What the figure leaves out."""
    notes = [] if run.status == "complete" else [f"Status: {run.status}."]
    if not run.config.get("shares_prefix", True):
        notes.append("A choice looks at the N samples: the worlds share no step, so no zero gap.")
    if not len(run.steps):
        return [*notes, "The ideal world has no record, so there is no gap."]
    if (step := approximate_from(run)) is not None:
        notes.append(f"{approximate_note(step)}.")
    for (seed, n), why in run.refused.items():
        notes.append(f"No gap for N = {n:,}, seed {seed}: {why}.")
    if any(not np.array_equal(real.steps, run.steps) for real in run.real.values()):
        notes.append("The worlds were evaluated at different steps: the gap is at common steps.")
    if any(np.isnan(error_by_seed(run, n)).any() for n in (None, *run.n_samples)):
        notes.append("Some seeds lack steps: a mean is drawn where all seeds have one.")
    return notes + _convergence_notes(run)


def approximate_note(step: int) -> str:
    """What an ideal world on a short stream is worth."""
    return f"The stream was too short: from step {step:,} on the ideal world is approximate"


def _convergence_notes(run: Run) -> list[str]:
    """Which worlds have no convergence mark, or one that is a mean over some of the seeds only."""
    known = [n for n in run.n_samples if "train_error" in run.real[n].columns]
    seeds = {n: (len(convergence_steps(run, n)), len(error_by_seed(run, n))) for n in known}
    never = [n for n, (n_converged, _) in seeds.items() if n_converged == 0]
    notes = [f"Not converged: N = {listed(never)}."] if never else []
    return notes + [
        f"N = {n:,}: {n_converged} of {n_seeds} seeds converged; the mark is their mean."
        for n, (n_converged, n_seeds) in seeds.items()
        if 0 < n_converged < n_seeds
    ]


def listed(n_samples: Sequence[int]) -> str:
    """1,000, 2,000 and 5,000."""
    *first, last = [f"{n:,}" for n in n_samples]
    return f"{', '.join(first)} and {last}" if first else last
