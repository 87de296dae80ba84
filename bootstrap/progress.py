"""What a person sees of a pair: a bar while it runs, its numbers after."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from bootstrap.records import Record

if TYPE_CHECKING:
    from bootstrap.plan import Plan


def bar_settings() -> dict[str, Any]:
    """A live bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        return {"file": sys.stderr, "mininterval": 0.2, "ncols": 110}
    line = "{n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]{postfix}\n"
    return {"file": sys.stderr, "mininterval": 10, "maxinterval": 10, "bar_format": line}


class Progress:
    """A bar over the steps of all worlds and seeds, with the latest scores."""

    def __init__(self, plan: Plan, seeds: tuple[int, ...]) -> None:
        self._bar = tqdm(total=_n_steps(plan, seeds), unit="steps", **bar_settings())
        self._at: dict[tuple[int, str], int] = {}
        self._which = ""

    def on_record(self, seed: int, world: str, record: Any) -> None:
        """Move the bar to the record's step."""
        before = self._at.setdefault((seed, world), record.step)
        self._bar.update(max(record.step - before, 0))
        self._at[seed, world] = max(record.step, before)
        if isinstance(record, Record):
            self._bar.set_postfix_str(
                f"{self._which}seed {seed} {world} test error {record.test.error:.3f}",
                refresh=False,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


class SweepProgress(Progress):
    """One bar over the steps of all pairs of a sweep."""

    def __init__(self, pairs: Sequence[tuple[Plan, tuple[int, ...]]]) -> None:
        self._sizes = {plan.folder: _n_steps(plan, seeds) for plan, seeds in pairs}
        self._bar = tqdm(total=sum(self._sizes.values()), unit="steps", **bar_settings())
        self._at, self._which, self._n_ended, self._steps_ended = {}, "", 0, 0

    def begin(self, folder: Path) -> None:
        """A pair begins, or goes on."""
        self._at, self._which = {}, f"{self._n_ended + 1}/{len(self._sizes)} {folder.name} "

    def end(self, folder: Path) -> None:
        """Move the bar to where the pairs that have ended put it."""
        self._n_ended, self._steps_ended = (
            self._n_ended + 1,
            self._steps_ended + self._sizes[folder],
        )
        self._bar.update(self._steps_ended - self._bar.n)


def _n_steps(plan: Plan, seeds: tuple[int, ...]) -> int:
    tails = sum(plan.recipe.n_steps - plan.fork_step(n) for n in plan.n_samples)
    return len(seeds) * (plan.recipe.n_steps + tails)


def summary_lines(folder: Path) -> Iterator[str]:
    """The headline numbers of a run, from its summary."""
    from bootstrap.caption import approximate_note  # scipy is slow to import, and --help is not

    summary = json.loads((folder / "summary.json").read_bytes())
    yield f"{folder}: {summary['status']}"
    yield (
        f"{'N':>8} {'converges at':>13} {'gap there':>10}"
        f" {'final real':>11} {'final ideal':>12} {'final gap':>10}"
    )
    for n, across in summary["n_samples"].items():
        yield _summary_row(n, across)
    if (step := summary["ideal_approximate_from"]) is not None:
        yield approximate_note(step)
    for entry in summary["no_gap"]:
        yield f"no gap for N = {entry['n_samples']:,}, seed {entry['seed']}: {entry['why']}"
    yield f"figure: {folder / 'curves.png'}"


def _summary_row(n: str, across: dict[str, Any]) -> str:
    def number(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    final = {key: across[f"final_{key}"]["error"]["mean"] for key in ("real", "ideal")}
    gap = across["gap_at_convergence"]["error"]["mean"]
    step = across["convergence_step"]["mean"]
    difference = None if None in final.values() else final["real"] - final["ideal"]
    return (
        f"{n:>8} {number(step, '13.0f'):>13} {number(gap, '+.4f'):>10}"
        f" {number(final['real'], '.4f'):>11}"
        f" {number(final['ideal'], '.4f'):>12} {number(difference, '+.4f'):>10}"
    )
