"""A study of design choices: pairs with each and without, on the same seeds, then what they say.

    explain --baseline laptop --choice "flooding(level=0.05)" --choice mixup --seeds 0-2

Pairs that are done are loaded, others are run as `compare` would; `bootstrap.study_results` says
what they tell.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bootstrap.errors import BootstrapError, ConfigurationError, Interrupted
from bootstrap.explanation import n_of_share
from bootstrap.grid import changed_recipe
from bootstrap.interventions import INTERVENTIONS
from bootstrap.options import CompareOptions, ExplainOptions
from bootstrap.runlog import load_run
from bootstrap.spec import did_you_mean, parse_spec
from bootstrap.study_results import write_study
from bootstrap.sweep import Job, run_jobs, who_runs
from bootstrap.sweep import table_lines as cost_table_lines

TOGETHER = " + "  # between choices that are put on at once
OPTION = re.compile(r"([a-z_]+(?:\.[a-z_]+)?)=(.+)", re.DOTALL)
OPTIONS = ("model", "optimizer", "schedule", "augmentation", "init")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One pair of a study: the baseline, or the baseline with a choice, as it was asked for."""

    text: str
    job: Job


def run_study(options: ExplainOptions, is_stopped: Callable[[], bool]) -> Iterator[str]:
    """Run what is not done of a study, explain and draw the rest; yields lines for people.

    What is raised is as in `bootstrap.sweep.run_points`; choices that failed are left out.
    """
    run_all = who_runs(options)
    baseline, *choices = build_sides(options)
    jobs = [side.job for side in (baseline, *choices)]
    if options.dry_run:
        yield from cost_table_lines(jobs)
        return
    failure = None
    try:
        about = f"{len(choices)} choice{'s' * (len(choices) > 1)} and the baseline"
        yield from run_jobs(
            jobs, about, is_stopped, max_minutes=options.max_minutes, run_all=run_all
        )
    except Interrupted:
        raise
    except BootstrapError as error:
        if not baseline.job.is_done():
            raise
        failure = error
    done = [side for side in choices if side.job.is_done()]
    if done:
        folder = options.out or options.results / "explain" / baseline.job.plan.folder.name
        runs = {side.text: load_run(side.job.plan.folder) for side in done}
        yield from write_study(load_run(baseline.job.plan.folder), runs, folder)
    if failure is not None:
        raise failure


# ---------------------------------------------------------------- what is run


def build_sides(options: ExplainOptions) -> list[Side]:
    """The baseline, then every choice; ConfigurationError for the first that cannot be."""
    base = CompareOptions(
        preset=options.preset,
        data=options.data_folder,
        out=options.results,
        seeds=options.seeds,
        n_samples=options.n_samples,
        allow_reuse=options.allow_reuse,
        execution=options.execution,
        recipe=options.recipe,
    )
    asked = {"baseline": base}
    for text in options.choice:
        if text in asked:
            raise ConfigurationError(f"--choice {text!r} is given twice; give it once")
        asked[text] = with_choice(base, text)
    execution = options.execution
    double = any(c.differentiates_twice for side in asked.values() for c in side.recipe.choices)
    if double and execution.compile == "auto":  # then none is compiled, so that all are alike
        execution = replace(execution, compile="off")
    sides = []
    for text, own in asked.items():
        flags = execution.resolve("classifier", base.recipe.n_draws)
        sides.append(Side(text=text, job=Job(options=own, flags=flags.stacked(1))))
    folders = [side.job.plan.folder for side in sides]  # refuses what cannot be, before any is run
    for k, side in enumerate(sides):
        if folders[k] in folders[:k]:
            same = sides[folders.index(folders[k])].text
            raise ConfigurationError(f"--choice {side.text!r} is the same run as {same!r}")
    return sides


def with_choice(base: CompareOptions, text: str) -> CompareOptions:
    """The baseline's options with one choice, or several at once; fewer samples if it prunes."""
    options = base
    for part in text.split(TOGETHER):
        options = _with_part(options, part.strip())
    shares = base.recipe.keep_fraction, options.recipe.keep_fraction
    n_samples = tuple(n_of_share(n, *shares) for n in base.n_samples)
    return replace(options, n_samples=n_samples)


def _with_part(options: CompareOptions, text: str) -> CompareOptions:
    """The options with a choice of the package or of one's own, or with another value of a word."""
    found = OPTION.fullmatch(text)
    if found is None:
        choice = parse_spec(text, INTERVENTIONS, "choice")
        recipe = replace(options.recipe, choices=(*options.recipe.choices, choice))
        return replace(options, recipe=recipe)
    word, value = found.groups()
    name, dot, _ = word.partition(".")
    if name not in OPTIONS or (dot and name == "init"):
        raise ConfigurationError(
            f"--choice {text!r}: {name!r} is no option that can be a choice"
            f"{did_you_mean(name, OPTIONS)}; there are: {', '.join(OPTIONS)}"
        )
    if name == "init":
        return replace(options, init=Path(value))
    literal = parse_literal(value) if dot else value
    return replace(options, recipe=changed_recipe(options.recipe, {word: literal}))


def parse_literal(text: str) -> object:
    """A number or a truth value as it is written, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
