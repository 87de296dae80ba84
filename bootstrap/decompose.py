"""A design choice against its baseline: is it faster online, or later to fit its samples? No torch.

Of a baseline 0 and a choice c, in every seed: R is the test error of the real world, I of the ideal
one, G = R - I the gap; tau is the convergence step (train error at most 1 %), or the last step T
where the real world never converges, which is then marked as censored.

    speed    = 1/2 [I_c(tau_0) - I_0(tau_0)] + 1/2 [I_c(tau_c) - I_0(tau_c)]
    time     = 1/2 [I_c(tau_c) - I_c(tau_0)] + 1/2 [I_0(tau_c) - I_0(tau_0)]
    residual = G_c(tau_c) - G_0(tau_0)
    speed + time + residual = R_c(tau_c) - R_0(tau_0), the total

Speed is what the choice changes by learning faster or slower from fresh samples; time what it
changes by letting the real world learn for longer; both are averaged over the order in which the
two are changed, so that none comes first. The residual says how far the framework itself fails. Of
an error, negative is better. At equal steps, dR(t) = dI(t) + dG(t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bootstrap.curves import at_steps, convergence_step
from bootstrap.errors import DataError
from bootstrap.runlog import METRICS, Run

PerSeed = Float[np.ndarray, " n_seeds"]
PerStep = Float[np.ndarray, "n_seeds n_steps"]


@dataclass(frozen=True, kw_only=True)
class PairCurves:
    """A score on test images in both worlds, for one N, and the real world's train error.

    Rows are seeds, columns are `steps`, which rise; NaN where there is no record.
    """

    steps: Int[np.ndarray, " n_steps"]
    real: PerStep
    ideal: PerStep
    train_error: PerStep

    def __post_init__(self) -> None:
        shapes = {curve.shape for curve in (self.real, self.ideal, self.train_error)}
        if shapes != {(len(self.real), len(self.steps))} or not len(self.steps):
            raise ValueError(f"{len(self.steps)} steps, curves of {sorted(shapes)}")

    @property
    def gap(self) -> PerStep:
        """Real minus ideal."""
        return self.real - self.ideal


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """The step at which each seed's real world has converged; the last step where it has not."""

    steps: Int[np.ndarray, " n_seeds"]
    is_censored: Bool[np.ndarray, " n_seeds"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a choice changes at the stopping time, by seed; speed + time + residual = total."""

    speed: PerSeed
    time: PerSeed
    residual: PerSeed
    total: PerSeed


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a choice changes at equal steps: real = ideal + gap."""

    steps: Int[np.ndarray, " n_steps"]
    real: PerStep
    ideal: PerStep
    gap: PerStep


def pair_curves(run: Run, n_samples: int, metric: str, seeds: Sequence[int]) -> PairCurves:
    """The curves of a run for one N, at the steps where both worlds were evaluated.

    Seeds that have no gap, because a world failed or the two are no pair, are NaN. A metric that is
    no score of every record is one under `extra`, NaN where it was not measured.
    """
    name = f"test_{metric}" if metric in METRICS else f"extra.test_{metric}"
    worlds, n_seeds = (run.real[n_samples], run.ideal), len(run.seeds)
    steps = np.intersect1d(worlds[0].steps, worlds[1].steps)
    if not len(steps):
        raise DataError(
            f"{run.name}: no step at which both worlds were evaluated, N = {n_samples:,}"
        )
    rows = [run.seeds.index(seed) for seed in seeds]
    refused = np.array([(seed, n_samples) in run.refused for seed in seeds], dtype=bool)
    real, ideal = (at_steps(w, name, steps, n_seeds)[rows] for w in worlds)
    train = at_steps(worlds[0], "train_error", steps, n_seeds)[rows]
    real, ideal = (np.where(refused[:, None], np.nan, curve) for curve in (real, ideal))
    return PairCurves(steps=steps, real=real, ideal=ideal, train_error=train)


def stopping(pair: PairCurves) -> Stopping:
    """When every seed's real world stops being new to its samples, or the run ends."""
    found = [convergence_step(pair.steps, train) for train in pair.train_error]
    last = int(pair.steps[-1])
    return Stopping(
        steps=np.array([last if step is None else step for step in found], dtype=np.int64),
        is_censored=np.array([step is None for step in found], dtype=bool),
    )


def score_at(
    steps: Int[np.ndarray, " n_steps"], curves: PerStep, when: Int[np.ndarray, " n_seeds"]
) -> PerSeed:
    """Each seed's score at a step of its own, between two evaluations on the line through them.

    NaN outside the steps of which there is a record.
    """
    found = np.full(len(curves), np.nan)
    for row, (curve, step) in enumerate(zip(curves, when, strict=True)):
        known = np.isfinite(curve)
        if known.any():
            x, y = steps[known], curve[known]
            found[row] = np.interp(step, x, y, left=np.nan, right=np.nan)
    return found


def decompose(baseline: PairCurves, choice: PairCurves) -> Terms:
    """The change at the stopping time as speed + time + residual.

    The rows of both are the same seeds, in the same order; NaN for a seed that lacks a record of
    these or of the last step.
    DataError if the two were not trained for equally many steps.
    """
    _check_length(baseline, choice)
    tau_0, tau_c = stopping(baseline).steps, stopping(choice).steps
    i0_at_0, i0_at_c, ic_at_0, ic_at_c = (
        score_at(pair.steps, pair.ideal, tau)
        for pair in (baseline, choice)
        for tau in (tau_0, tau_c)
    )
    r_0 = score_at(baseline.steps, baseline.real, tau_0)
    r_c = score_at(choice.steps, choice.real, tau_c)
    speed = ((ic_at_0 - i0_at_0) + (ic_at_c - i0_at_c)) / 2
    time = ((ic_at_c - ic_at_0) + (i0_at_c - i0_at_0)) / 2
    residual = (r_c - ic_at_c) - (r_0 - i0_at_0)
    last = matched(baseline, choice).real[:, -1]
    is_whole = np.isfinite(speed + time + residual + last)  # or means were over different seeds
    terms = {"speed": speed, "time": time, "residual": residual, "total": r_c - r_0}
    return Terms(**{name: np.where(is_whole, term, np.nan) for name, term in terms.items()})


def matched(baseline: PairCurves, choice: PairCurves) -> Matched:
    """The change at every step at which both were evaluated."""
    _check_length(baseline, choice)
    steps, here, there = np.intersect1d(baseline.steps, choice.steps, return_indices=True)
    real = choice.real[:, there] - baseline.real[:, here]
    ideal = choice.ideal[:, there] - baseline.ideal[:, here]
    gap = choice.gap[:, there] - baseline.gap[:, here]
    real, ideal = (np.where(np.isfinite(gap), change, np.nan) for change in (real, ideal))
    return Matched(steps=steps, real=real, ideal=ideal, gap=gap)


def _check_length(baseline: PairCurves, choice: PairCurves) -> None:
    ends = int(baseline.steps[-1]), int(choice.steps[-1])
    if ends[0] != ends[1]:
        raise DataError(
            f"the baseline ends at step {ends[0]:,}, the choice at step {ends[1]:,}: at a later"
            " step the shorter one has no error; train both for the same --n-steps, and to the end"
        )
