"""Two runs, a baseline and a design choice: what the choice changes, and why. No torch.

The numbers are those of `bootstrap.decompose`, for every N and seed that both runs have.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Bool

from bootstrap.caption import approximate_note
from bootstrap.curves import approximate_from, number, scalar_spread
from bootstrap.decompose import (
    PairCurves,
    Stopping,
    Terms,
    decompose,
    matched,
    pair_curves,
    score_at,
    stopping,
)
from bootstrap.errors import ConfigurationError, DataError
from bootstrap.pairing import identity_differences
from bootstrap.records import SCHEMA
from bootstrap.runlog import METRICS, Run

NAMES = ("baseline", "choice")
CALIBRATION = ("ece", "scaled_soft_error", "scaled_loss")  # of the choice `calibration`
APPROXIMATE_FROM = "ideal_approximate_from"
SAME = ("data", "pool_n_samples", "n_test")  # of two identities, or the runs share no test or seed


def common(baseline: Run, choice: Run) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds and the N of both.

    ConfigurationError if there are none; DataError if other data or test images are behind them.
    """
    one, other = baseline.config.get("identity") or {}, choice.config.get("identity") or {}
    values = [(name, one.get(name), other.get(name)) for name in SAME]
    n_curve = "n_test_curve"
    values += [(n_curve, baseline.config.get(n_curve), choice.config.get(n_curve))]
    if differing := [name for name, a, b in values if a != b and None not in (a, b)]:
        raise DataError(
            f"{baseline.name} and {choice.name} cannot be compared, they differ in"
            f" {', '.join(differing)}; run both with the same --data and --n-test-curve"
        )
    seeds = tuple(sorted({*baseline.seeds} & {*choice.seeds}))
    n_samples = tuple(
        n for n in baseline.n_samples if n_of_choice(baseline, choice, n) in choice.n_samples
    )
    for what, option, found in (("seed", "--seeds", seeds), ("N", "--n-samples", n_samples)):
        if not found:
            raise ConfigurationError(
                f"{baseline.name} and {choice.name} have no {what} in common; extend one of them"
                f" with `deep-bootstrap compare {option}`"
            )
    return seeds, n_samples


def n_of_choice(baseline: Run, choice: Run, n_samples: int) -> int:
    """The N of the choice that stands against a baseline's: fewer where it prunes as many.

    A choice that leaves half of the samples has 500 where its baseline has 1,000; two that prune
    alike have the same N.
    """
    shares = [run.config.get("keep_fraction", 1.0) for run in (baseline, choice)]
    return n_of_share(n_samples, *shares)


def n_of_share(n_samples: int, share: float, other: float) -> int:
    """The N of a run that keeps the `other` share, against one that keeps `share`; 1 at least."""
    return max(round(n_samples * other / share), 1)


def sides(
    baseline: Run, choice: Run, n_samples: int, metric: str, seeds: Sequence[int]
) -> tuple[PairCurves, PairCurves]:
    """The curves of both runs for one N of the baseline."""
    return (
        pair_curves(baseline, n_samples, metric, seeds),
        pair_curves(choice, n_of_choice(baseline, choice, n_samples), metric, seeds),
    )


def differences(baseline: Run, choice: Run) -> list[str]:
    """What the choice is: the fields in which the two runs differ, with both values."""
    return identity_differences(_decided(baseline), _decided(choice))


def _decided(run: Run) -> dict[str, Any]:
    """What was decided about a run, as far as people are told."""
    identity, init = run.config.get("identity") or {}, run.config.get("init")
    start = f"{init['method']} {init['weights_sha256'][:8]}" if init else "fresh"
    return {
        "recipe": run.config.get("recipe") or {},
        "initial_weights": start,
        **{key: identity[key] for key in ("own_files", "flags") if key in identity},
    }


def explain(baseline: Run, choice: Run) -> dict[str, Any]:
    """The content of explain.json: the terms and the change at the last step, by N and score.

    Means over the seeds of both runs with Student-t 95 % intervals, null below 3 seeds, of the
    difference in each seed. Raises what `common` and `decompose` do.
    """
    seeds, n_samples = common(baseline, choice)
    return {
        "schema": SCHEMA,
        "baseline": _about(baseline),
        "choice": _about(choice),
        "differences": differences(baseline, choice),
        "seeds": list(seeds),
        "interval": "Student-t 95 % across seeds, of per-seed differences; null below 3 seeds",
        "n_test": choice.config.get("n_test"),
        "n_test_curve": choice.config.get("n_test_curve"),
        "n_samples": {str(n): _explain_n(baseline, choice, n, seeds) for n in n_samples},
    }


def _about(run: Run) -> dict[str, Any]:
    recipe = run.config.get("recipe") or {}
    told: dict[str, Any] = {key: recipe[key] for key in ("model", "optimizer") if key in recipe}
    told |= {key: run.config[key] for key in ("init", "lr_pick") if key in run.config}
    told |= {
        key: run.config[key] for key in ("keep_fraction", "shares_prefix") if key in run.config
    }
    if {"n_steps", "batch_size"} <= {*recipe}:
        told["n_draws"] = recipe["n_steps"] * recipe["batch_size"]
    if (step := approximate_from(run)) is not None:
        told[APPROXIMATE_FROM] = step
    return {"run": run.name, "status": run.status, **told}


def _explain_n(baseline: Run, choice: Run, n: int, seeds: Sequence[int]) -> dict[str, Any]:
    both = {metric: sides(baseline, choice, n, metric, seeds) for metric in METRICS}
    terms = {metric: decompose(*pairs) for metric, pairs in both.items()}
    at = dict(zip(NAMES, map(stopping, both["error"]), strict=True))
    is_known = np.isfinite(terms["error"].total)
    measured = {metric: sides(baseline, choice, n, metric, seeds) for metric in CALIBRATION}
    measured = {metric: pairs for metric, pairs in measured.items() if _ends_known(*pairs)}
    return {
        "convergence": {name: _across(found, is_known) for name, found in at.items()},
        **{
            metric: {f.name: scalar_spread(list(getattr(found, f.name))) for f in fields(found)}
            for metric, found in terms.items()
        },
        "gap_at_convergence": _gaps(both, is_known),
        "final": _final(both | measured, is_known),
        "per_seed": {
            str(seed): {
                "convergence": {name: _of_seed(found, row) for name, found in at.items()},
                **{
                    metric: {f.name: number(getattr(found, f.name)[row]) for f in fields(found)}
                    for metric, found in terms.items()
                },
            }
            for row, seed in enumerate(seeds)
            if is_known[row]
        },
        "left_out": [seed for row, seed in enumerate(seeds) if not is_known[row]],
    }


def _across(found: Stopping, is_known: Bool[np.ndarray, " n_seeds"]) -> dict[str, Any]:
    """Convergence over the seeds that count; a mean over those that converged."""
    converged = found.steps[is_known & ~found.is_censored]
    return {
        "step": scalar_spread([float(step) for step in converged]),
        "n_censored": int((is_known & found.is_censored).sum()),
        "n_seeds": int(is_known.sum()),
    }


def _of_seed(found: Stopping, row: int) -> dict[str, Any]:
    return {"step": int(found.steps[row]), "censored": bool(found.is_censored[row])}


def _gaps(
    both: dict[str, tuple[PairCurves, PairCurves]], is_known: Bool[np.ndarray, " n_seeds"]
) -> dict[str, Any]:
    """Of each run by itself, the gap where its real world converges, over seeds where it does."""
    found = [stopping(pair) for pair in both["error"]]

    def gaps(pair: PairCurves, k: int) -> list[float | None]:
        values = score_at(pair.steps, pair.gap, found[k].steps)
        return list(np.where(is_known & ~found[k].is_censored, values, np.nan))

    return {
        name: {metric: scalar_spread(gaps(pairs[k], k)) for metric, pairs in both.items()}
        for k, name in enumerate(NAMES)
    }


def _ends_known(*pairs: PairCurves) -> bool:
    """Whether both worlds of all have the metric at the last step, in a seed at least."""
    return all(np.isfinite(c[:, -1]).any() for pair in pairs for c in (pair.real, pair.ideal))


def _final(
    both: dict[str, tuple[PairCurves, PairCurves]], is_known: Bool[np.ndarray, " n_seeds"]
) -> dict[str, Any]:
    """The change at the last step, which is what a user of the choice sees."""
    changes = {metric: matched(*pairs) for metric, pairs in both.items()}
    return {
        "step": int(both["error"][0].steps[-1]),
        **{
            metric: {
                name: scalar_spread(list(np.where(is_known, getattr(change, name)[:, -1], np.nan)))
                for name in ("real", "ideal", "gap")
            }
            for metric, change in changes.items()
        },
    }


# ---------------------------------------------------------------- what is shown

CSV_COLUMNS = (
    *("n_samples", "seed", "step", "metric"),
    *("baseline_real", "baseline_ideal", "choice_real", "choice_ideal"),
    *("d_real", "d_ideal", "d_gap"),
)


def explain_csv(baseline: Run, choice: Run) -> bytes:
    """A row per N, seed, common step and score: the four curves and their differences."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    seeds, n_samples = common(baseline, choice)
    for n in n_samples:
        for metric in METRICS:
            one, other = sides(baseline, choice, n, metric, seeds)
            change = matched(one, other)
            _, at_one, at_other = np.intersect1d(one.steps, other.steps, return_indices=True)
            columns = [one.real[:, at_one], one.ideal[:, at_one]]
            columns += [other.real[:, at_other], other.ideal[:, at_other]]
            columns += [change.real, change.ideal, change.gap]
            for row, seed in enumerate(seeds):
                for column, step in enumerate(change.steps):
                    values = [c[row, column] for c in columns]
                    shown = ["" if np.isnan(value) else float(value) for value in values]
                    table.writerow([n, seed, int(step), metric, *shown])
    return buffer.getvalue().encode()


def explain_lines(explained: dict[str, Any]) -> Iterator[str]:
    """What a person reads: the choice, and its terms in test error by N."""
    for name in NAMES:
        about = explained[name]
        start = f", from {about['init']['method']} weights" if "init" in about else ""
        yield f"{name:<9} {about['run']}: {about.get('optimizer', '')}{start}".rstrip(": ")
        if pick := about.get("lr_pick"):
            yield f"{'':<9} {lr_line(pick)}"
    yield f"they differ in {'; '.join(explained['differences']) or 'nothing that is recorded'}"
    yield from approximate_notes({name: explained[name].get(APPROXIMATE_FROM) for name in NAMES})
    yield f"{'N':>8} {'':>12} {'change in test error':>22} {'95 % interval':>20}"
    for n, found in explained["n_samples"].items():
        for field in fields(Terms):
            told = found["error"][field.name]
            first = n if field.name == "speed" else ""
            yield f"{first:>8} {field.name:>12} {_signed(told['mean']):>22} {_ends(told):>20}"
        final = found["final"]["error"]["real"]
        last = f"at step {found['final']['step']:,}"
        yield f"{'':>8} {last:>12} {_signed(final['mean']):>22} {_ends(final):>20}"
        gaps = [found["gap_at_convergence"][name]["soft_error"]["mean"] for name in NAMES]
        both = " and ".join(map(_signed, gaps))
        yield f"{'':>8} soft-error gap there: {both} (each run's own, where it converges)"
        yield from _notes(found)
        yield from _calibration_lines(found["final"])


def approximate_notes(steps: Mapping[str, int | None]) -> Iterator[str]:
    """Of runs whose ideal world ran out of fresh samples, by name, from which step on."""
    for step in sorted({step for step in steps.values() if step is not None}):
        names = [name for name, own in steps.items() if own == step]
        who = ", ".join(names) if len(names) <= 3 else f"{len(names)} of {len(steps)} runs"
        yield f"{approximate_note(step)} ({who})."


def lr_line(pick: dict[str, Any]) -> str:
    """The learning rates that were tried, with their errors on the reference split."""
    tried = ", ".join(
        f"{row['lr']:g}: {'diverged' if row['error'] is None else format(row['error'], '.3f')}"
        for row in pick["tried"]
    )
    return f"learning rate {pick['lr']:g}, picked by the error on `reference` ({tried})"


def _notes(found: dict[str, Any]) -> Iterator[str]:
    for name, at in found["convergence"].items():
        if not at["n_seeds"]:
            continue
        mean = at["step"]["mean"]
        when = "never converges" if mean is None else f"converges at step {mean:,.0f}"
        if at["n_censored"] and mean is not None:
            when += f", {at['n_censored']} of {at['n_seeds']} seeds never"
        censored = " (censored: the last step stands for it)" if at["n_censored"] else ""
        yield f"{'':>8} {name} {when}{censored}"
    if found["left_out"]:
        yield f"{'':>8} left out, a world has no record or failed: seeds {found['left_out']}"


def _calibration_lines(final: dict[str, Any]) -> Iterator[str]:
    """The change at the last step, by scores that can be compared across choices."""
    if CALIBRATION[0] not in final:
        return
    last = f"at step {final['step']:,}"
    heads = (f"{f'{name} world':>12} {'95 % interval':>20}" for name in ("real", "ideal"))
    yield f"{'':>8} {last:>17} {' '.join(heads)}"
    names = {"error": "error", "loss": "NLL, nats", "ece": "ECE"}
    for metric, name in (names | {"scaled_soft_error": "scaled soft-error"}).items():
        told = (final[metric][world] for world in ("real", "ideal"))
        cells = (f"{_signed(t['mean']):>12} {_ends(t):>20}" for t in told)
        yield f"{'':>8} {name:>17} {' '.join(cells)}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _ends(told: dict[str, Any]) -> str:
    ends = told["interval_95"]
    return f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else f"none ({told['n_seeds']} seeds)"
