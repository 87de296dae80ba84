"""What a figure of several pairs shows: one N of one run at a time, under a name. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from bootstrap.caption import about_data, about_test, approximate_note, listed
from bootstrap.curves import MIN_SEEDS, approximate_from, at_steps, convergence_step
from bootstrap.runlog import METRICS, Run

WORLDS = ("real", "ideal")


@dataclass(frozen=True, kw_only=True)
class AtConvergence:
    """Where the real world of a seed converged, or its last step so far if it has not."""

    seed: int
    step: int
    is_censored: bool  # it has not
    scores: dict[str, dict[str, float]]  # by world and metric


@dataclass(frozen=True)
class Series:
    """One N of one run, over those of `seeds` that have records (None: all of them)."""

    label: str
    run: Run
    n_samples: int
    asked_seeds: tuple[int, ...] | None = None

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with records of both worlds, which are a pair."""
        asked = self.run.seeds if self.asked_seeds is None else self.asked_seeds
        refused = self.run.refused
        known = [s for s in self.run.seeds if s in asked and (s, self.n_samples) not in refused]
        has_n = self.n_samples in self.run.n_samples
        return tuple(s for s in known if has_n and self.run.rows(s, f"real-n{self.n_samples}"))

    def values(self, world: str, metric: str) -> Float[np.ndarray, "n_seeds n_steps"]:
        """Test scores at `run.steps`, NaN where there is no record."""
        curves = self.run.ideal if world == "ideal" else self.run.real[self.n_samples]
        return self._own(at_steps(curves, f"test_{metric}", self.run.steps, len(self.run.seeds)))

    @cached_property
    def at_convergence(self) -> tuple[AtConvergence, ...]:
        """Each seed's scores in both worlds where its real world converged."""
        return tuple(self._at_convergence())

    def _at_convergence(self) -> Iterator[AtConvergence]:
        if not self.seeds:
            return
        real, steps = self.run.real[self.n_samples], self.run.steps
        train = self._own(at_steps(real, "train_error", real.steps, len(self.run.seeds)))
        scores = {w: {m: self.values(w, m) for m in METRICS} for w in WORLDS}
        both = np.isfinite(scores["real"]["error"] + scores["ideal"]["error"])
        for row, seed in enumerate(self.seeds):
            converged = convergence_step(real.steps, train[row])
            last = steps[-1] if converged is None else converged
            known = np.flatnonzero(both[row] & (steps <= last))
            if not len(known):
                continue
            at = known[-1]
            mine = {w: {m: float(v[row, at]) for m, v in by.items()} for w, by in scores.items()}
            is_censored = converged is None
            yield AtConvergence(
                seed=seed, step=int(steps[at]), is_censored=is_censored, scores=mine
            )

    def _own(self, values: np.ndarray) -> np.ndarray:
        return values[[self.run.seeds.index(seed) for seed in self.seeds]]


def series_of(runs: Iterable[Run]) -> list[Series]:
    """Every N of every run, named after its model."""
    return [
        Series(str((run.config.get("recipe") or {}).get("model", run.name)), run, n)
        for run in runs
        for n in run.n_samples
    ]


def about_series(series: Sequence[Series]) -> str:
    """Data, N, steps, seeds, test images and hardware of what a figure shows, and from which step
    an ideal world is approximate.
    """
    configs = [one.run.config for one in series]
    recipes = [config.get("recipe") or {} for config in configs]
    n_samples = listed(sorted({one.n_samples for one in series}))
    steps = {
        f"{r['n_steps']:,} SGD steps of batch {r['batch_size']}" for r in recipes if "n_steps" in r
    }
    ends = {step for one in series if (step := approximate_from(one.run)) is not None}
    hardware = {(c.get("environment") or {}).get("hardware") or "" for c in configs} - {""}
    sentences = [
        *sorted({about_data(config) for config in configs}),
        f"N = {n_samples}, {' or '.join(sorted(steps))}." if steps else f"N = {n_samples}.",
        about_seeds([len(one.seeds) for one in series]),
        *sorted({about_test(c, r) for c, r in zip(configs, recipes, strict=True)}),
        *(f"{approximate_note(step)}." for step in sorted(ends)),
        f"Trained on {' and '.join(sorted(hardware))}." if hardware else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def about_seeds(counts: Sequence[int]) -> str:
    """How many seeds a point or a line is a mean of, and what its bar or band is."""
    low, high = min(counts, default=0), max(counts, default=0)
    said = f"{low} to {high} seeds" if low < high else f"{low} seed{'s' * (low != 1)}"
    if high >= MIN_SEEDS:
        where = "" if low >= MIN_SEEDS else f" where there are {MIN_SEEDS}"
        return f"Mean of {said}; Student-t 95 % interval across seeds{where}."
    return f"Mean of {said}; no interval." if high > 1 else f"{said.capitalize()}; no interval."


def series_csv(series: Sequence[Series]) -> bytes:
    """A row per series, seed, world and evaluation."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    scores = [f"test_{metric}" for metric in METRICS]
    table.writerow(["label", "run", "n_samples", "seed", "world", "step", *scores])
    for one in series:
        for world in WORLDS:
            values = [one.values(world, metric) for metric in METRICS] if one.seeds else []
            for row, seed in enumerate(one.seeds):
                for at, step in enumerate(one.run.steps):
                    found = [float(v[row, at]) for v in values]
                    if np.isfinite(found).all():
                        key = [one.label, one.run.name, one.n_samples, seed, world, int(step)]
                        table.writerow([*key, *found])
    return buffer.getvalue().encode()
