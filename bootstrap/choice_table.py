"""What several design choices change against one baseline: a row each, and how it goes with N.

The change of the real world's error at the last step, dR(N), tends to that of the ideal world's,
dI, as N grows: where N is at least the samples that a run takes, no sample is used twice, the
worlds are one run, and dR(N) = dI exactly. So a choice with dI > 0 hurts from some N on. No torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

from bootstrap.explanation import APPROXIMATE_FROM, NAMES, n_of_share
from bootstrap.records import SCHEMA

Found = Sequence[tuple[str, dict[str, Any]]]  # choices as they were asked for: content of explain()
TERMS = ("speed", "time", "residual")
ENDS = ("", "_low", "_high")
TABLE_COLUMNS = (
    *("choice", "n_samples", "n_seeds"),
    *(f"{term}{end}" for term in TERMS for end in ENDS),
)
EFFECT_COLUMNS = (
    *("choice", "n_samples", "n_seeds", "step"),
    *(f"{name}{end}" for name in ("d_real", "d_ideal") for end in ENDS),
)


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """The last N at which a choice turns from helping to hurting, or the other way: on the line in
    log N through the mean changes; `between` are the N around it. None where there is none."""

    n_samples: float | None
    between: tuple[int, int] | None
    hurts_after: bool
    n_turns: int  # how often it turns; more than once is mostly noise


def table_csv(found: Found) -> bytes:
    """Speed, time and residual in test error at convergence: a row per choice and N."""
    rows = []
    for text, explained in found:
        for n, of_n in explained["n_samples"].items():
            told = of_n["error"]
            terms = [value for term in TERMS for value in numbers(told[term])]
            rows.append([text, n, told["total"]["n_seeds"], *terms])
    return csv_bytes(TABLE_COLUMNS, rows)


def effect_csv(found: Found) -> bytes:
    """The change at the last step by N, and its limit dI: a row per choice and N."""
    rows = []
    for text, explained in found:
        for n, of_n in explained["n_samples"].items():
            told, step = of_n["final"]["error"], of_n["final"]["step"]
            values = [*numbers(told["real"]), *numbers(told["ideal"])]
            rows.append([text, n, told["real"]["n_seeds"], step, *values])
    return csv_bytes(EFFECT_COLUMNS, rows)


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A table; None is an empty cell."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(columns)
    table.writerows([["" if value is None else value for value in row] for row in rows])
    return buffer.getvalue().encode()


def shortened(text: str, n_columns: int = 29) -> str:
    """A choice's text as far as the margin of a figure holds it; its end tells it from others."""
    if len(text) <= n_columns:
        return text
    n_end = n_columns // 3
    return f"{text[: n_columns - 3 - n_end]}...{text[-n_end:]}"


def numbers(told: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    """A mean and the ends of its interval."""
    low, high = told["interval_95"] or (None, None)
    return told["mean"], low, high


def limit_n(explained: dict[str, Any]) -> int | None:
    """The N from which dR(N) is dI, for no run uses a sample twice; None if it is not known.

    That of a choice that looks at the N samples themselves never is, nor where an ideal world
    ran out of fresh samples.
    """
    own = [explained[name] for name in NAMES]
    n_draws = [about.get("n_draws") for about in own]
    if None in n_draws or not all(about.get("shares_prefix", True) for about in own):
        return None
    if any(APPROXIMATE_FROM in about for about in own):
        return None
    shares = [about.get("keep_fraction", 1.0) for about in own]
    return max(n_of_share(n, share, shares[0]) for n, share in zip(n_draws, shares, strict=True))


def effect_points(explained: dict[str, Any]) -> list[tuple[int, float]]:
    """Mean dR(N) by N, ending in (limit N, dI) where that is known."""
    told = {int(n): of_n["final"]["error"]["real"] for n, of_n in explained["n_samples"].items()}
    points = [(n, real["mean"]) for n, real in told.items() if real["mean"] is not None]
    last, d_ideal = limit_n(explained), ideal_change(explained)["mean"]
    if last is not None and d_ideal is not None and points and points[-1][0] < last:
        points.append((last, d_ideal))
    return points


def ideal_change(explained: dict[str, Any]) -> dict[str, Any]:
    """dI, the change of the ideal world at the last step, for the largest N that has records."""
    told = [of_n["final"]["error"]["ideal"] for of_n in explained["n_samples"].values()]
    return next((ideal for ideal in reversed(told) if ideal["mean"] is not None), told[-1])


def crossover(points: Sequence[tuple[int, float]]) -> Crossover:
    """Where the change last changes its sign; points are (N, change), N rising."""
    signed = [(n, d) for n, d in points if d != 0]
    turns = [(a, b) for a, b in pairwise(signed) if (a[1] > 0) != (b[1] > 0)]
    hurts_after = bool(signed and signed[-1][1] > 0)
    if not turns:
        return Crossover(n_samples=None, between=None, hurts_after=hurts_after, n_turns=0)
    (low, before), (high, after) = turns[-1]
    share = before / (before - after)
    return Crossover(
        n_samples=exp(log(low) + share * (log(high) - log(low))),
        between=(low, high),
        hurts_after=hurts_after,
        n_turns=len(turns),
    )


def study_json(found: Found) -> dict[str, Any]:
    """The content of study.json: of each choice its limit dI, its crossover, and explain.json's."""
    choices = {}
    for text, explained in found:
        where = crossover(effect_points(explained))
        choices[text] = {
            "limit_n_samples": limit_n(explained),
            "crossover": {
                "n_samples": where.n_samples,
                "between": None if where.between is None else list(where.between),
                "hurts_after": where.hurts_after,
                "n_turns": where.n_turns,
            },
            **explained,
        }
    return {"schema": SCHEMA, "choices": choices}


def table_lines(found: Found) -> Iterator[str]:
    """The table for a person, in points of test error (percent)."""
    width = max(len(text) for text, _ in found)
    heads = "".join(f"{term:>10}" for term in (*TERMS, "total"))
    yield f"{'points of test error':<{width}} {'N':>9} {'seeds':>6}{heads}  not converged"
    for text, explained in found:
        for n, of_n in explained["n_samples"].items():
            told = of_n["error"]
            cells = "".join(in_points(told[term]["mean"]) for term in (*TERMS, "total"))
            n_seeds, at = told["total"]["n_seeds"], of_n["convergence"]
            censored = ", ".join(
                f"{name} {at[name]['n_censored']} of {n_seeds}"
                for name in ("baseline", "choice")
                if at[name]["n_censored"]
            )
            yield f"{text:<{width}} {int(n):>9,} {n_seeds:>6}{cells}  {censored}".rstrip()


def in_points(value: float | None) -> str:
    """A change of error in points, in a cell."""
    return f"{'-':>10}" if value is None else f"{100 * value:>+10.2f}"


def effect_lines(found: Found) -> Iterator[str]:
    """Of each choice what it changes at the last step as N grows, its limit and crossover."""
    yield "change of test error at the last step, in points, and that of the ideal world, dI"
    yield "(?: the interval over seeds holds 0; words and crossovers are of the means)"
    for text, explained in found:
        by_n = [
            f"{points_with_doubt(of_n['final']['error']['real'])} at N = {int(n):,}"
            for n, of_n in explained["n_samples"].items()
        ]
        limit = f"dI = {points_with_doubt(ideal_change(explained))}"
        words = crossover_text(effect_points(explained), limit_n(explained))
        yield f"{text}: {', '.join(by_n)}; {limit}; {words}"


def points_with_doubt(told: dict[str, Any]) -> str:
    """A mean change in points, with a question mark where its interval holds 0."""
    ends = told["interval_95"]
    return in_points(told["mean"]).strip() + "?" * bool(ends and ends[0] < 0 < ends[1])


def crossover_text(points: Sequence[tuple[int, float]], limit: int | None) -> str:
    """The crossover in words; `limit` is the N from which the change is that of the ideal world."""
    if not points:
        return "no records"
    where = crossover(points)
    if where.n_samples is None or where.between is None:
        return f"no crossover, {_one_sign(points, limit)}"
    before, after = ("helps", "hurts") if where.hurts_after else ("hurts", "helps")
    low, high = where.between
    words = (
        f"crossover at N of about {where.n_samples:,.0f} (between {low:,} and {high:,}):"
        f" it {before} below and {after} above"
    )
    return words if where.n_turns == 1 else f"the last of {where.n_turns} turns is a {words}"


def _one_sign(points: Sequence[tuple[int, float]], limit: int | None) -> str:
    """What a change does that has one sign at every N, or is 0 at some."""
    *shown, (last_n, last) = points
    if limit is None or last_n < limit:
        return (
            f"it {_verb(*(d for _, d in points))} at every N that was run; its limit is not known"
        )
    if shown and (at_n := _verb(*(d for _, d in shown))) != _verb(last):
        return f"it {at_n} at the N that were run and {_verb(last)} in the limit"
    return f"it {_verb(last)} at every N and in the limit"


def _verb(*changes: float) -> str:
    signed = [change for change in changes if change != 0]
    return "changes nothing" if not signed else "hurts" if signed[0] > 0 else "helps"
