"""A pair: the ideal world is the trunk, every real world forks from it at its first reuse.

    run_pair(recipe, data, out, n_samples=(500, 2000), seeds=(0, 1, 2))

Re-running resumes what was stopped, extends with new N or seeds, and does nothing where all is
done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace as with_fields
from functools import partial
from pathlib import Path
from typing import Any

from bootstrap.cost import bytes_to_come
from bootstrap.errors import BootstrapError, Interrupted, NotEnoughData, NumericError
from bootstrap.execution import Flags
from bootstrap.files import check_space, pretty_json, remove_leftovers, replace
from bootstrap.filtered import count_kept
from bootstrap.forks import (
    Control,
    SeedRun,
    remove_forks,
    run_alone,
    run_seed,
    run_shared,
    run_tail,
)
from bootstrap.keep import Keep
from bootstrap.locks import locked
from bootstrap.plan import Plan, plan_pair, run_name, write_pair_json
from bootstrap.plot import write_figure
from bootstrap.pretrained import Pretrained
from bootstrap.ranks import ALONE, Ranks
from bootstrap.recipe import Recipe
from bootstrap.records import SCHEMA
from bootstrap.runlog import IDEAL, load_run, real_name
from bootstrap.shards import read_manifest
from bootstrap.stacked import Seat, in_groups, run_stacked
from bootstrap.summary import summarise
from bootstrap.train import build_state
from bootstrap.verify import check_used_shards


def run_pair(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    n_samples: Sequence[int],
    seeds: Sequence[int] = (0,),
    flags: Flags,
    preset: str = "custom",
    allow_reuse: bool = False,
    overwrite: bool = False,
    keep: Keep = Keep(),
    init: Pretrained | None = None,
    lr_pick: dict[str, Any] | None = None,
    control: Control = Control(),
    ranks: Ranks = ALONE,
) -> Path:
    """Train the ideal world and the real ones, write records, summary and figure.

    Returns the run's folder. With `allow_reuse` the stream may be too short: the ideal world then
    re-uses samples, and its records say `approximate` from there. With `init` all seeds of both
    worlds start from those weights, and a head of zeros; `lr_pick` says how the learning rate was
    chosen (`bootstrap.pick_lr`). Raises ConfigurationError,
    DataError, NotEnoughData (before anything is trained), NumericError or Interrupted (after
    saving; the same call goes on).
    The first of several `ranks` calls this, all others `bootstrap.follow.follow` meanwhile.
    """
    plan = plan_pair(
        *(recipe, data, out),
        n_samples=n_samples,
        flags=flags,
        preset=preset,
        allow_reuse=allow_reuse,
        keep=keep,
        init=init,
        overwrite=overwrite,
    )
    if overwrite or not plan.is_done(seeds):
        _check_data(plan)
        _check_room(plan, seeds)
    with locked(plan.folder):
        if overwrite:
            _clear(plan.folder)
        write_pair_json(plan, preset, seeds, is_done=plan.is_done(seeds), lr_pick=lr_pick)
        remove_leftovers(plan.folder)
        flags.apply()
        try:
            _run_seeds(plan, [s for s in seeds if not plan.is_done([s])], control, ranks)
        except (NumericError, Interrupted) as error:
            ranks.broadcast()
            _write_status(plan.folder, error)
            raise
        ranks.broadcast()  # nothing: those that follow may go
        records = load_run(plan.folder)
        write_figure(records)
        replace(plan.folder / "summary.json", pretty_json(summarise(records)))  # last: all is there
    return plan.folder


def _run_seeds(plan: Plan, seeds: Sequence[int], control: Control, ranks: Ranks) -> None:
    """One after the other; with replicas some at once, and then their real worlds."""

    def run(work: Callable[[SeedRun], None], seed: int, seat: Seat | None = None) -> None:
        with closing(plan.pool("stream")) as pool:
            work(SeedRun(plan=plan, seed=seed, pool=pool, control=control, ranks=ranks, seat=seat))

    n = plan.flags.replicas
    if n == 1:
        for seed in seeds:
            run(run_seed, seed)
        return
    shares = control.share_prefix and plan.shares_prefix
    for group in in_groups(seeds, n):
        first = run_shared if shares else run_seed
        errors = run_stacked([partial(run, first, seed) for seed in group], plan.flags)
        if shares and not any(isinstance(error, Interrupted) for error in errors):
            tails = [
                partial(run, partial(run_tail, n=world_n), seed)
                for seed in group
                if plan.is_done([seed], (IDEAL,))
                for world_n in plan.n_samples
                if not plan.is_done([seed], (real_name(world_n),))
            ]
            for jobs in in_groups(tails, n):
                errors += run_stacked(jobs, plan.flags)
        if errors:
            raise errors[0]
        for seed in group:
            run(remove_forks, seed)


def _write_status(folder: Path, error: BootstrapError) -> None:
    """A summary without numbers: what is not complete has no gap to report."""
    status = load_run(folder).status
    summary = {"schema": SCHEMA, "run": folder.name, "status": status, "reason": str(error)}
    replace(folder / "summary.json", pretty_json(summary))


def run_real(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    n_samples: int,
    seed: int = 0,
    flags: Flags,
    preset: str = "real",
    control: Control = Control(),
) -> Path:
    """Train one real world alone, without probes: its records and final weights; resumable."""
    manifest = read_manifest(data)
    n_kept = count_kept(recipe.choices, data, manifest.n_stream)
    there = manifest.n_stream if n_kept is None else n_kept
    if n_samples > there:
        raise NotEnoughData(f"{data}: the stream holds {there:,} samples, not {n_samples:,}")
    plan = Plan(
        recipe=recipe,
        manifest=manifest,
        data=data,
        folder=out / run_name(preset, recipe, manifest, manifest.n_stream, flags),
        pool_n_samples=manifest.n_stream,
        n_samples=(n_samples,),
        flags=flags,
        n_kept=n_kept,
    )
    is_done = (plan.folder / f"seed-{seed}" / f"{real_name(n_samples)}.done.json").exists()
    if not is_done:
        _check_data(plan)
    with locked(plan.folder), closing(plan.pool("stream")) as pool:
        write_pair_json(plan, preset, [seed], is_done=is_done)
        run = SeedRun(plan=plan, seed=seed, pool=pool, control=control)
        flags.apply()
        run_alone(run, real_name(n_samples), n_samples, probe_n=())
    return plan.folder


def _check_data(plan: Plan) -> None:
    """DataError unless the samples are those of their records; every start must ask.

    A run's name covers their sha256, so what it found in them at first need not be looked at again.
    """
    has_begun = (plan.folder / "pair.json").exists()
    check_used_shards(plan.data, plan.manifest, plan.pool_n_samples, only_bytes=has_begun)


def _check_room(plan: Plan, seeds: Sequence[int]) -> None:
    """StorageError unless what is kept on request fits the disk."""
    if plan.keep != Keep():
        flags = with_fields(plan.flags, device="cpu", compiled=False)
        state = build_state(plan.recipe, plan.manifest, plan.pool_n_samples, seeds[0], flags)
        n_bytes = sum(tensor.nbytes for tensor in state.model.state_dict().values())
        check_space(plan.folder, bytes_to_come(plan, seeds, n_bytes))


def _clear(folder: Path) -> None:
    """Delete a run's content, but not its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()
