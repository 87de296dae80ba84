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
    """The N at which a choice turns from helping to hurting, or the other way: on the line in log N
    through the mean changes; `between` are the N around it. None where there is none."""

    n_samples: float | None
    between: tuple[int, int] | None
    hurts_after: bool


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
    """A choice's text as far as the margin of a figure holds it."""
    return text if len(text) <= n_columns else f"{text[: n_columns - 3]}..."


def numbers(told: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    """A mean and the ends of its interval."""
    low, high = told["interval_95"] or (None, None)
    return told["mean"], low, high


def limit_n(explained: dict[str, Any]) -> int | None:
    """The N from which dR(N) is dI, for no run uses a sample twice; None if it is not known.

    That of a choice that looks at the N samples themselves never is.
    """
    own = [explained[name] for name in ("baseline", "choice")]
    n_draws = [about.get("n_draws") for about in own]
    if None in n_draws or not all(about.get("shares_prefix", True) for about in own):
        return None
    return max(
        round(n / about.get("keep_fraction", 1.0) * own[0].get("keep_fraction", 1.0))
        for n, about in zip(n_draws, own, strict=True)
    )


def effect_points(explained: dict[str, Any]) -> list[tuple[int, float]]:
    """Mean dR(N) by N, ending in (limit N, dI) where that is known."""
    points, d_ideal = [], None
    for n, of_n in explained["n_samples"].items():
        told = of_n["final"]["error"]
        if told["real"]["mean"] is not None:
            points.append((int(n), told["real"]["mean"]))
            d_ideal = told["ideal"]["mean"]
    last = limit_n(explained)
    if last is not None and d_ideal is not None and points and points[-1][0] < last:
        points.append((last, d_ideal))
    return points


def crossover(points: Sequence[tuple[int, float]]) -> Crossover:
    """Where the change last changes its sign; points are (N, change), N rising."""
    signed = [(n, d) for n, d in points if d != 0]
    for (low, before), (high, after) in reversed(list(pairwise(signed))):
        if before * after < 0:
            share = before / (before - after)
            n = exp(log(low) + share * (log(high) - log(low)))
            return Crossover(n_samples=n, between=(low, high), hurts_after=after > 0)
    return Crossover(n_samples=None, between=None, hurts_after=bool(signed and signed[-1][1] > 0))


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
    yield "change of the real world's test error at the last step, in points, and its limit dI"
    for text, explained in found:
        by_n = [
            f"{in_points(of_n['final']['error']['real']['mean']).strip()} at N = {int(n):,}"
            for n, of_n in explained["n_samples"].items()
        ]
        last = list(explained["n_samples"].values())[-1]["final"]["error"]["ideal"]
        ends = last["interval_95"]
        sure = " (its sign is not sure)" if ends and ends[0] <= 0 <= ends[1] else ""
        limit = f"dI = {in_points(last['mean']).strip()}{sure}"
        yield f"{text}: {', '.join(by_n)}; {limit}; {crossover_text(effect_points(explained))}"


def crossover_text(known: Sequence[tuple[int, float]]) -> str:
    """The crossover in words."""
    where = crossover(known)
    if where.n_samples is None or where.between is None:
        last = known[-1][1] if known else 0
        verdict = "hurts" if last > 0 else "helps" if last < 0 else "changes nothing"
        return f"no crossover, it {verdict} at every N and in the limit" if known else "no records"
    before, after = ("helps", "hurts") if where.hurts_after else ("hurts", "helps")
    low, high = where.between
    return (
        f"crossover at N of about {where.n_samples:,.0f} (between {low:,} and {high:,}):"
        f" it {before} below and {after} above"
    )
