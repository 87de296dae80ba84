"""What a sample is worth when it is used again: the effective reuse rate and its law. No torch.

    E(K, N) = N' / N

N' is the number of fresh samples at which the ideal world's score first comes down to that of the
real world after K passes over its N samples (Yan et al. 2025, arXiv 2511.13421, for the test loss).
It compares fully trained models, so it is named E only where a shorter run is a part of a longer
one (the learning rate never falls), or with one run per horizon (`across_horizons`). On the
trajectory of a decaying learning rate the same quotient is `reuse_rate_on_trajectory`.

In arrays NaN is unknown and infinity is not reached: then E is above the ideal world's samples / N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import least_squares

from bootstrap.curves import at_steps, number, spread
from bootstrap.errors import ConfigurationError, DataError
from bootstrap.records import APPROXIMATE
from bootstrap.runlog import METRICS, Curves, Run

MIN_N = 3  # what the law is fitted to at least
MIN_PASSES = 4
SMALLEST_R_STAR = 1e-2  # a sample is worth nothing after its first pass
LARGEST_R_STAR = 100.0  # times the most repetitions seen: from there on no decay can be seen

PerSeed = Float[np.ndarray, " n_seeds"]
Rates = dict[int, dict[str, PerSeed]]  # by passes and metric


def samples_to_reach(
    samples: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], target: float
) -> float:
    """Where `scores` first come down to `target`, on a line in log samples between two records.

    Infinity if they never do; NaN if they start below it (but at 0 samples that is the answer).
    A curve with noise reaches a level early: it is the first time that counts.
    """
    known = np.isfinite(samples) & np.isfinite(scores)
    x, y = samples[known], scores[known]
    if not len(x) or np.isnan(target):
        return np.nan
    reached = np.flatnonzero(y <= target)
    if not len(reached):
        return np.inf
    last = reached[0]
    if last == 0:
        return float(x[0]) if x[0] == 0 or y[0] == target else np.nan
    fraction = (y[last - 1] - target) / (y[last - 1] - y[last])
    if x[last - 1] == 0:  # no logarithm there
        return float(x[last] * fraction)
    return float(x[last - 1] * (x[last] / x[last - 1]) ** fraction)


def score_at(samples: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], n: float) -> float:
    """The score after `n` samples, on a line in log samples; NaN outside the records."""
    known = (samples > 0) & np.isfinite(scores)  # NaN compares False
    if not known.any():
        return np.nan
    log_x = np.log(samples[known])
    return float(np.interp(np.log(n), log_x, scores[known], left=np.nan, right=np.nan))


@dataclass(frozen=True, kw_only=True)
class Track:
    """One world's test scores by samples seen, over seeds; NaN where there is no record."""

    samples: Float[np.ndarray, "n_seeds n_points"]
    scores: dict[str, Float[np.ndarray, "n_seeds n_points"]]  # by metric

    @property
    def last(self) -> PerSeed:
        """The samples of each seed's last record; -infinity without any."""
        known = np.isfinite(self.samples) & np.isfinite(self.scores["error"])
        return np.where(known, self.samples, -np.inf).max(axis=1, initial=-np.inf)


def reuse_rates(ideal: Track, real: Track, n_samples: int) -> Rates:
    """E(K, N) of each seed for every K that has a record: powers of 2, and the last whole one."""
    rates: Rates = {}
    for n_passes in _passes(real.last.max(initial=0.0) / n_samples):
        at_k = {m: _rates_at(ideal, real, n_samples, n_passes, m) for m in METRICS}
        if not all(np.isnan(values).all() for values in at_k.values()):
            rates[n_passes] = at_k
    return rates


def _passes(most: float) -> list[int]:
    powers = [2**i for i in range(64) if 2**i <= most]
    return sorted({*powers, int(most)}) if powers else []


def _rates_at(ideal: Track, real: Track, n_samples: int, n_passes: int, metric: str) -> PerSeed:
    found = []
    for row in range(len(ideal.samples)):
        target = score_at(real.samples[row], real.scores[metric][row], n_passes * n_samples)
        found.append(samples_to_reach(ideal.samples[row], ideal.scores[metric][row], target))
    return np.array(found) / n_samples


# ---------------------------------------------------------------- the law of decay


def worth_of_repetition(n_repetitions: Any, r_star: float) -> Any:
    """D' / U = 1 + R* (1 - exp(-R / R*)), R repetitions beyond the first pass over U samples.

    Muennighoff et al. 2023 (arXiv 2305.16264): near R = 0 a repeated sample is worth a fresh one,
    and no number of repetitions is worth more than R* fresh passes.
    """
    return 1 - r_star * np.expm1(-np.asarray(n_repetitions) / r_star)


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fit of `worth_of_repetition` to one seed's rates."""

    r_star: float  # infinity: no decay that these rates could show
    limit: float  # the largest R* that they could tell from no decay
    rms_log_residual: float


def fit_law(rates: Mapping[int, Mapping[int, float]], limits: Mapping[int, float]) -> Law:
    """The R* that fits E by N and K best, in log E; a rate that was not reached only bounds it.

    `limits`: by N, what E is above where it is infinity. ConfigurationError below MIN_N N with
    MIN_PASSES known rates each.
    """
    _check_enough(rates)
    points = [(k - 1, e, limits[n]) for n, by_k in rates.items() for k, e in by_k.items()]
    useful = [(r, e, limit) for r, e, limit in points if r > 0 and e > 0]  # NaN compares False
    repetitions, found, limit = np.array(useful).T
    is_reached = np.isfinite(found)
    target = np.log(np.where(is_reached, found, limit))

    def residuals(log_r_star: Float[np.ndarray, " 1"]) -> Float[np.ndarray, " n"]:
        misfit = np.log(worth_of_repetition(repetitions, np.exp(log_r_star[0]))) - target
        return np.where(is_reached, misfit, np.minimum(misfit, 0))

    largest = LARGEST_R_STAR * repetitions.max()
    ends = np.log([SMALLEST_R_STAR, largest])
    fit = least_squares(residuals, x0=[np.log(np.median(repetitions))], bounds=ends, xtol=1e-12)
    is_open = fit.x[0] > ends[1] - 0.01
    return Law(
        r_star=np.inf if is_open else float(np.exp(fit.x[0])),
        limit=float(largest),
        rms_log_residual=float(np.sqrt(np.mean(fit.fun**2))),
    )


def _check_enough(rates: Mapping[int, Mapping[int, float]]) -> None:
    known = {n: sum(map(np.isfinite, by_k.values())) for n, by_k in sorted(rates.items())}
    if sum(count >= MIN_PASSES for count in known.values()) < MIN_N:
        have = ", ".join(f"N = {n:,} has {count}" for n, count in known.items()) or "there is none"
        raise ConfigurationError(
            f"the law of repetition needs the reuse rate at {MIN_PASSES} numbers of passes for"
            f" each of {MIN_N} N, and {have}; run `deep-bootstrap compare` with more --n-samples"
        )


# ---------------------------------------------------------------- of a run


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """The reuse rates of a run, or of one run per horizon, and how they are stored."""

    seeds: tuple[int, ...]
    is_on_trajectory: bool
    rates: dict[int, Rates]  # by N
    limits: dict[int, PerSeed]  # by N: the ideal world's samples / N

    @property
    def name(self) -> str:
        """What the quotient is called: E only where it compares fully trained models."""
        return "reuse_rate_on_trajectory" if self.is_on_trajectory else "reuse_rate"

    def across(self, n_samples: int) -> dict[str, Any]:
        """By passes and metric, the spread over seeds as it is stored."""
        limit = self.limits[n_samples]
        return {
            str(k): {metric: _over_seeds(values, limit) for metric, values in at_k.items()}
            for k, at_k in self.rates[n_samples].items()
        }

    def of_seed(self, n_samples: int, seed: int) -> dict[str, Any]:
        """One seed's rates, null where not reached, and the limit that they are above there."""
        row = self.seeds.index(seed)
        by_k = self.rates[n_samples].items()
        return {
            self.name: {str(k): {m: number(v[row]) for m, v in at_k.items()} for k, at_k in by_k},
            f"{self.name}_limit": number(self.limits[n_samples][row]),
        }

    def law(self) -> dict[str, Any]:
        """By metric: R* over seeds and the misfit of the worst seed, or why there is no fit."""
        return {metric: self._law_of(metric) for metric in METRICS}

    def to_json(self) -> dict[str, Any]:
        """All of it, as in summary.json."""
        n_samples = {str(n): {self.name: self.across(n)} for n in self.rates}
        return {"seeds": list(self.seeds), "n_samples": n_samples, f"{self.name}_law": self.law()}

    def _law_of(self, metric: str) -> dict[str, Any]:
        laws: list[Law] = []
        refused = None
        for row in range(len(self.seeds)):
            by_n = {n: {k: v[metric][row] for k, v in r.items()} for n, r in self.rates.items()}
            try:
                laws.append(fit_law(by_n, {n: v[row] for n, v in self.limits.items()}))
            except ConfigurationError as error:
                refused = refused or str(error)
        if not laws:
            return {"r_star": None, "refused": refused or "no seed has a record"}
        r_star, limit = (
            np.array([getattr(law, key) for law in laws]) for key in ("r_star", "limit")
        )
        worst = max(law.rms_log_residual for law in laws)
        return {"r_star": _over_seeds(r_star, limit), "rms_log_residual": worst}


def reuse_of(run: Run) -> Reuse:
    """The reuse rates along a run: E if its learning rate never falls, else on the trajectory."""
    n_seeds = len(run.seeds)
    ideal = _track(run.ideal, n_seeds)
    worlds = {n: _track(run.real[n], n_seeds) for n in run.n_samples}
    for seed, n in run.refused:  # these worlds are not compared
        for scores in worlds[n].scores.values():
            scores[run.seeds.index(seed)] = np.nan
    stable = _never_falls([run.ideal, *run.real.values()])
    return _reuse(run.seeds, ideal, worlds, is_on_trajectory=not stable)


def across_horizons(runs: Sequence[Run]) -> Reuse:
    """E from runs that differ in `n_steps` alone: every score is that of a run's last step.

    So it holds for schedules that decay to the end of each run. DataError if the runs differ in
    anything else, or have one horizon only.
    """
    runs = sorted(runs, key=lambda run: run.config["recipe"]["n_steps"])
    _check_horizons(runs)
    seeds = tuple(sorted(set.intersection(*(set(run.seeds) for run in runs))))
    n_samples = sorted({n for run in runs for n in run.n_samples})
    worlds = {n: _last_scores([(run, run.real.get(n)) for run in runs], seeds) for n in n_samples}
    for column, run in enumerate(runs):
        for seed, n in run.refused:  # these worlds are not compared
            if seed in seeds:
                for scores in worlds[n].scores.values():
                    scores[seeds.index(seed), column] = np.nan
    ideal = _last_scores([(run, run.ideal) for run in runs], seeds)
    return _reuse(seeds, ideal, worlds, is_on_trajectory=False)


def _reuse(
    seeds: tuple[int, ...], ideal: Track, worlds: dict[int, Track], *, is_on_trajectory: bool
) -> Reuse:
    return Reuse(
        seeds=seeds,
        is_on_trajectory=is_on_trajectory,
        rates={n: reuse_rates(ideal, real, n) for n, real in worlds.items()},
        limits={n: ideal.last / n for n in worlds},
    )


def _track(curves: Curves, n_seeds: int) -> Track:
    at = {m: _scores(curves, m, curves.steps, n_seeds) for m in METRICS}
    return Track(samples=at_steps(curves, "samples_seen", curves.steps, n_seeds), scores=at)


def _scores(curves: Curves, metric: str, steps: Int[np.ndarray, " n"], n_seeds: int) -> np.ndarray:
    """Test scores; NaN past a stream's end, where the ideal world's samples are no fresh ones."""
    scores = at_steps(curves, f"test_{metric}", steps, n_seeds)
    is_used = at_steps(curves, f"extra.{APPROXIMATE}", steps, n_seeds) == 1
    return np.where(is_used, np.nan, scores)


def _last_scores(worlds: Sequence[tuple[Run, Curves | None]], seeds: tuple[int, ...]) -> Track:
    """A point per run: its score at `n_steps`, NaN where a seed has not come that far."""
    unknown = np.full((len(seeds), len(worlds)), np.nan)
    samples, scores = unknown.copy(), {m: unknown.copy() for m in METRICS}
    for column, (run, curves) in enumerate(worlds):
        if curves is None:
            continue
        rows = [run.seeds.index(seed) for seed in seeds]
        end, n_seeds = np.array([run.config["recipe"]["n_steps"]]), len(run.seeds)
        samples[:, column] = at_steps(curves, "samples_seen", end, n_seeds)[rows, 0]
        for metric in METRICS:
            scores[metric][:, column] = _scores(curves, metric, end, n_seeds)[rows, 0]
    return Track(samples=samples, scores=scores)


def _never_falls(worlds: Sequence[Curves]) -> bool:
    """Whether a learning rate is known and no seed's ever falls, but for rounding."""
    by_seed = [
        seed[np.isfinite(seed)] for curves in worlds for seed in curves.columns.get("lr", ())
    ]
    known = [seed for seed in by_seed if len(seed)]
    return bool(known) and all((np.diff(seed) >= -1e-9 * seed.max()).all() for seed in known)


def _check_horizons(runs: Sequence[Run]) -> None:
    if len({run.config["recipe"]["n_steps"] for run in runs}) < max(2, len(runs)):
        raise DataError("one run per horizon is needed: two runs or more, each of another n_steps")
    first, *others = [{**run.config["recipe"], "n_steps": None} for run in runs]
    for run, recipe in zip(runs[1:], others, strict=True):
        differing = [key for key in first if recipe.get(key) != first[key]]
        if differing or run.config.get("data") != runs[0].config.get("data"):
            what = ", ".join(differing) or "data"
            raise DataError(f"{runs[0].name} and {run.name} differ in {what}, not in n_steps alone")


def _over_seeds(values: PerSeed, limits: PerSeed) -> dict[str, Any]:
    """A spread as it is stored; without mean but with a lower bound if a seed did not reach it."""
    known = ~np.isnan(values)
    is_reached = bool(np.isfinite(values[known]).all())
    stored = spread(values if is_reached else np.full(len(values), np.nan)).to_json()
    bound = None if is_reached else float(np.minimum(values, limits)[known].mean())
    return {**stored, "n_seeds": int(known.sum()), "lower_bound": bound}
