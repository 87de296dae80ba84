"""A grid of pairs: each is run like `compare` would, here one after the other, or on Ray.

What is done is left alone and what is not goes on, so the same command resumes. A pair that fails
does not stop the others. Parts of a grid (`3/16`, for job arrays) share one results folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bootstrap.cost import PairCost, duration, pair_cost, si
from bootstrap.errors import BootstrapError, ConfigurationError, Interrupted, StorageError
from bootstrap.execution import Flags
from bootstrap.forks import Control
from bootstrap.grid import Sweep, Words, figure_sweep, part_of, read_sweep
from bootstrap.locks import Held
from bootstrap.options import (
    CompareOptions,
    Execution,
    ManyPairs,
    SweepOptions,
    SweepRun,
    parse_seeds,
)
from bootstrap.pair import run_pair
from bootstrap.plan import Plan, plan_pair
from bootstrap.presets.figure import Figure
from bootstrap.presets.figures import build_figure
from bootstrap.pretrained import read_pretrained
from bootstrap.probe import Probe, probe
from bootstrap.progress import SweepProgress
from bootstrap.recipe import TABLES
from bootstrap.replicas import resolve_replicas
from bootstrap.spec import format_spec

Run = TypeVar("Run", bound=SweepRun)
Ended = Iterator[tuple["Job", Exception | None]]  # jobs as they end, with what went wrong
RunAll = Callable[[list["Job"], "Watch"], Ended]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One pair of a sweep: what `compare` was asked for, and how it is executed."""

    options: CompareOptions
    flags: Flags

    @cached_property
    def plan(self) -> Plan:
        """As it is before the pair is run."""
        return plan_pair(*self._what(), **self._how())

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the pair."""
        return parse_seeds(self.options.seeds)

    def run(self, control: Control) -> Path:
        """Bring the pair to its end; see `run_pair`."""
        return run_pair(*self._what(), **self._how(), seeds=self.seeds, control=control)

    def is_done(self) -> bool:
        """Whether every world has reached its last step and the summary says so."""
        if not self.plan.is_done(self.seeds):
            return False
        summary = {}
        with suppress(OSError, ValueError):
            summary = json.loads((self.plan.folder / "summary.json").read_bytes())
        has_n = {*map(str, self.plan.n_samples)} <= {*summary.get("n_samples", ())}
        return has_n and {*self.seeds} <= {*summary.get("seeds", ())}

    def _what(self) -> tuple[Any, Path, Path]:
        return self.options.recipe, self.options.data_folder, self.options.out

    def _how(self) -> dict[str, Any]:
        return {
            "n_samples": self.options.n_samples,
            "flags": self.flags,
            "preset": self.options.preset,
            "allow_reuse": self.options.allow_reuse,
            "keep": self.options.keep,
            "init": read_pretrained(self.options.init) if self.options.init else None,
        }


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a sweep is watched and stopped."""

    is_interrupted: Callable[[], bool] = lambda: False
    on_begin: Callable[[Job], None] = lambda job: None
    on_record: Callable[[int, str, Any], None] = lambda seed, world, record: None


def default_words(options: SweepRun) -> Words:
    """What the options say for points that do not: data and execution."""
    execution = vars(options.execution)
    unusual = {f.name: execution[f.name] for f in fields(Execution)}
    words = {k: v for k, v in unusual.items() if v != getattr(Execution(), k)}
    return words | ({} if options.data is None else {"data": str(options.data)})


def build_jobs(sweep: Sweep, options: SweepRun) -> tuple[Job, ...]:
    """The pairs of a sweep; raises for the first that cannot be, before any is run."""
    jobs = []
    for pair in sweep.pairs(default_words(options)):
        flags = pair.execution.resolve("classifier", pair.recipe.n_draws)
        replicas = resolve_replicas(pair.replicas, pair.recipe, pair.data_folder, flags)
        own = replace(pair, out=options.out)
        jobs.append(Job(options=own, flags=flags.stacked(replicas)))
    folders: dict[Path, Job] = {}
    for job in jobs:
        if folders.setdefault(job.plan.folder, job) is not job:
            raise ConfigurationError(
                f"two points are the same run, {job.plan.folder}, but ask for other things beside"
                " it; make `data` and what is kept the same in both"
            )
    return tuple(jobs)


def run_in_turn(jobs: list[Job], watch: Watch) -> Ended:
    """Run the jobs one after the other; ends early if asked to stop, after saving."""
    for job in jobs:
        if watch.is_interrupted():
            return
        watch.on_begin(job)
        control = Control(on_record=watch.on_record, is_interrupted=watch.is_interrupted)
        try:
            job.run(control)
        except Interrupted:
            return
        except StorageError:
            raise  # the next pair would need the same disk
        except Exception as error:
            yield job, error
        else:
            yield job, None


def run_sweep(options: SweepOptions, is_stopped: Callable[[], bool]) -> Iterator[str]:
    """Run the sweep of a file, or of a figure; see `run_points`."""
    path = Path(options.grid)
    if path.is_file():
        sweep = read_sweep(path)
    elif path.suffix:
        raise ConfigurationError(f"{path}: no such file; bootstrap/grid.py says what it holds")
    else:
        from bootstrap.stages import prepared

        figure = build_figure(options.grid, options.scale)
        if figure.toys:
            raise ConfigurationError(f"{options.grid} has no pairs; use `reproduce {options.grid}`")
        if options.dry_run and any(point.init or point.pick_lr for point in figure.points):
            raise ConfigurationError(
                f"{options.grid}: its pairs are known once weights are made and rates are picked;"
                f" `reproduce {options.grid} --dry-run` says what all of it takes"
            )
        options = on_its_data(options, figure)
        sweep = figure_sweep((yield from prepared(figure, options, is_stopped)))
    yield from run_points(options, sweep, is_stopped)


def on_its_data(options: Run, figure: Figure) -> Run:
    """The options with the folder that a figure on real images expects, unless one is given."""
    return replace(options, data=options.data or figure.data)


def run_points(options: SweepRun, sweep: Sweep, is_stopped: Callable[[], bool]) -> Iterator[str]:
    """Run what is not done of a sweep; yields lines for people.

    Raises Interrupted if anything is left to do, and what failed, once all others are done: as the
    kind of error that it was, or BootstrapError for several kinds.
    """
    run_all, jobs = who_runs(options), build_jobs(sweep, options)
    mine = part_of(jobs, options.part)
    if options.dry_run:
        yield from table_lines(mine)
        return
    about = sweep.about or "sweep"
    yield from run_jobs(mine, about, is_stopped, max_minutes=options.max_minutes, run_all=run_all)


def run_jobs(
    jobs: Sequence[Job],
    about: str,
    is_stopped: Callable[[], bool],
    *,
    max_minutes: float | None = None,
    run_all: RunAll = run_in_turn,
) -> Iterator[str]:
    """Run what is not done of these pairs; lines and errors as in `run_points`."""
    pending = [job for job in jobs if not job.is_done()]
    n_before = len(jobs) - len(pending)
    yield f"{about}: {n_pairs(len(jobs))}, {n_before} of them done"
    if not pending:
        return
    deadline = time.monotonic() + 60 * (max_minutes or float("inf"))
    errors: dict[Path, Exception] = {}
    n_ended = 0
    with SweepProgress([(job.plan, job.seeds) for job in pending]) as progress:
        watch = Watch(
            is_interrupted=lambda: is_stopped() or time.monotonic() > deadline,
            on_begin=lambda job: progress.begin(job.plan.folder),
            on_record=progress.on_record,
        )
        for job, error in run_all(pending, watch):
            progress.end(job.plan.folder)
            n_ended += 1
            if error is None:
                yield f"{job.plan.folder}: done; {n_before + n_ended} of {len(jobs)} have ended"
            else:
                errors[job.plan.folder] = error
    raise_if_not_done(errors, n_left=len(pending) - n_ended)


def raise_if_not_done(errors: dict[Path, Exception], n_left: int) -> None:
    """Interrupted if the same command has more to do, else what failed, if anything did."""
    lines = [f"\n  {folder}: {_in_a_line(error)}" for folder, error in errors.items()]
    is_held = [isinstance(error, Held) for error in errors.values()]
    said = f"; {len(errors)} did not end:" + "".join(lines) if errors else ""
    if n_left:
        raise Interrupted(f"{n_pairs(n_left)} left to do; the same command goes on{said}")
    if errors and all(is_held):
        raise Interrupted(f"another process has the rest; the same command goes on{said}")
    if errors:
        failed = [error for error in errors.values() if not isinstance(error, Held)]
        kinds = {type(error) for error in failed}
        kind = kinds.pop() if len(kinds) == 1 else BootstrapError
        ours = kind if issubclass(kind, BootstrapError) else BootstrapError
        raise ours(f"all other pairs are done{said}") from failed[0]


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, (BootstrapError, ValueError))
        else f"{type(error).__name__}: {text}"
    )


def n_pairs(n: int) -> str:
    """1 pair, 2 pairs."""
    return f"{n} pair{'s' * (n != 1)}"


def who_runs(options: ManyPairs) -> RunAll:
    """This process, or tasks on Ray."""
    if options.ray is None:
        if options.gpus_per_pair != 1:
            raise ConfigurationError("--gpus-per-pair is for --ray; add `--ray local`")
        return run_in_turn
    from bootstrap.sweep_ray import RayPairs

    return RayPairs(address=options.ray, gpus_per_pair=options.gpus_per_pair).run_all


# ---------------------------------------------------------------- what it takes


def table_lines(jobs: Iterable[Job]) -> Iterator[str]:
    """What is still to be trained, pair by pair and in all, with a time measured now."""
    yield (
        f"{'run':<18} {'to do':>7} {'N':>22} {'samples':>12} {'evaluated':>12} {'FLOP':>9}"
        f" {'time':>8}  model, optimizer"
    )
    probes: dict[str, Probe] = {}
    total = PairCost()
    for job in jobs:
        plan, recipe = job.plan, job.options.recipe
        seeds = [seed for seed in job.seeds if not plan.is_done([seed])]
        cost = pair_cost(plan, len(seeds), _probe(job, probes)) if seeds else PairCost()
        total += cost
        to_do = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}" if seeds else "done"
        n_samples = ", ".join(f"{n:,}" for n in plan.n_samples)
        values = (format_spec(getattr(recipe, key), TABLES[key]) for key in ("model", "optimizer"))
        row = f"{plan.folder.name:<18} {to_do:>7} {n_samples:>22} {_numbers(cost)}"
        yield f"{row}  {', '.join(values)}"
    yield f"{'in all':<18} {'':>7} {'':>22} {_numbers(total)}"


def _numbers(cost: PairCost) -> str:
    time_ = duration(cost.seconds)
    return f"{cost.n_trained:>12,} {cost.n_evaluated:>12,} {si(cost.flop):>9} {time_:>8}"


def _probe(job: Job, probes: dict[str, Probe]) -> Probe:
    """What a sample takes; measured once for pairs that differ in nothing that matters to it."""
    recipe = job.options.recipe
    values = (recipe.model, type(recipe.optimizer), recipe.augmentation, recipe.batch_size)
    key = f"{values} {job.flags} {job.options.data_folder}"
    if key not in probes:
        probes[key] = probe(job.plan, job.seeds[0])
    return probes[key]
