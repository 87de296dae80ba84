"""One seed of a pair: the trunk (the ideal world), its forks, and their tails (the real worlds).

States are saved at intervals and at every fork; whatever was stopped goes on from the latest.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bootstrap.batch import Batch
from bootstrap.checkpoint import (
    checkpoint_steps,
    keep_latest,
    read_checkpoint,
    read_latest,
    remove_checkpoint,
    tensor_bytes,
    write_checkpoint,
)
from bootstrap.errors import Interrupted, NumericError
from bootstrap.feed import Feed
from bootstrap.files import canonical_json, pretty_json, remove_leftovers, replace, sha256_hex
from bootstrap.filtered import KeptOrder
from bootstrap.image_results import insert_evaluation
from bootstrap.kept import Keeping
from bootstrap.plan import Plan
from bootstrap.pool import Pool
from bootstrap.ranks import ALONE, Ranks
from bootstrap.recipe import MAX_PROBE_N
from bootstrap.records import TRAIN, Record, StepRecord
from bootstrap.runlog import IDEAL, RowWriter, read_rows, real_name, truncate_rows
from bootstrap.stacked import Seat
from bootstrap.train import Probes, Task, TrainState, build_state, train
from bootstrap.worlds import World

log = logging.getLogger(__name__)
Saved = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a pair is watched and stopped."""

    on_record: Callable[[int, str, Record | StepRecord], None] = lambda seed, world, record: None
    on_row: Callable[[int, str, dict[str, Any]], None] = lambda seed, stem, row: None
    is_interrupted: Callable[[], bool] = lambda: False
    checkpoint_every_s: float = 60.0
    share_prefix: bool = True  # False trains every real world from step 0: the same, but slower


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What is trained in one go: the world of `world_n`, scored on the probes of the `probe_n`,
    with a stop at every step of `stops`, which rise."""

    world_n: int
    probe_n: Sequence[int]
    stops: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of a plan, with its data open, on the first of the ranks that train it."""

    plan: Plan
    seed: int
    pool: Pool
    control: Control
    ranks: Ranks = ALONE
    seat: Seat | None = None

    @property
    def folder(self) -> Path:
        """Where the seed's records go."""
        return self.plan.folder / f"seed-{self.seed}"

    @property
    def checkpoints(self) -> Path:
        """Where its states go until they are not needed any more."""
        return self.folder / "checkpoints"

    def is_done(self, world: str) -> bool:
        """Whether a world has reached its last step."""
        return (self.folder / f"{world}.done.json").exists()

    @property
    def pending(self) -> list[int]:
        """The N of the real worlds that have not reached their last step."""
        return [n for n in self.plan.n_samples if not self.is_done(real_name(n))]

    def state(self, saved: Saved | None = None) -> TrainState:
        """The state at step 0, or a saved one."""
        plan = self.plan
        state = build_state(
            *(plan.recipe, plan.manifest, plan.pool_n_samples, self.seed, plan.flags, self.ranks),
            init=plan.init,
        )
        if saved is not None:
            state.load(saved[0], saved[1]["state"])
        if self.seat is not None:
            self.seat.take(state.model)
        return state

    def task(self, world_n: int, probe_n: Sequence[int]) -> Task:
        """What stays fixed in training; a probe lasts until its world is on its own."""
        plan, device = self.plan, self.plan.flags.torch_device
        order, names = plan.order(self.seed, world_n), plan.recipe.columns
        test_pool = plan.pool("test")
        test = Batch.from_columns(test_pool.first(test_pool.n), device, names)
        test_pool.close()
        sets = {}
        for name, set_pool in plan.evaluation_pools().items():
            sets[name] = Batch.from_columns(set_pool.first(set_pool.n), device, names)
            set_pool.close()
        probes = None
        if probe_n:
            sizes = {real_name(n): min(n, MAX_PROBE_N) for n in probe_n}
            columns = self.pool.rows(order.ids(np.arange(max(sizes.values()))))
            until = {
                real_name(n): plan.end if world_n == n else plan.prefix_stop(n) for n in probe_n
            }
            batch = Batch.from_columns(columns, device, names)
            probes = Probes(batch=batch, n=sizes, until_step=until)
        is_repeated = world_n < plan.recipe.n_draws
        self.pool.keep(order.n_drawn(world_n) if is_repeated else 0)
        return Task(
            recipe=plan.recipe,
            feed=Feed(
                pool=self.pool,
                order=order,
                world=World(n_samples=world_n, seed=self.seed),
                batch_size=plan.recipe.batch_size,
                n_steps=plan.recipe.n_steps,
                device=device,
                columns=names,
            ),
            test=test,
            sets=sets,
            probes=probes,
            grid=frozenset(plan.grid),
            flags=plan.flags,
            ranks=self.ranks,
            seat=self.seat,
        )

    def announce(self, leg: Leg, state: TrainState) -> None:
        """Hand what is trained next, and from where, to the ranks that follow (`follow.follow`)."""
        if self.ranks.n == 1:
            return
        order = {
            "seed": self.seed,
            "pool_n_samples": self.plan.pool_n_samples,
            "n_samples": self.plan.n_samples,
            "leg": asdict(leg),
            "state": state.meta(),
        }
        self.ranks.broadcast(canonical_json(order).encode())
        self.ranks.broadcast(tensor_bytes(state.tensors()))

    def saved_tail(self, n: int) -> Saved | None:
        """Where the real world with N = n can start: its latest checkpoint, else its fork."""
        if not (self.folder / f"{real_name(n)}.jsonl").exists():
            return None
        latest = read_latest(self.checkpoints, real_name(n))
        return latest or read_checkpoint(self.checkpoints, "fork", self.plan.fork_step(n))


def run_seed(run: SeedRun) -> None:
    """Bring one seed to its end: what its worlds share, then every tail that is not done."""
    plan = run.plan
    if not (run.control.share_prefix and plan.shares_prefix):
        run_alone(run, IDEAL, plan.ideal_n_samples, probe_n=())
        for n in plan.n_samples:
            run_alone(run, real_name(n), n, probe_n=(n,))
        return
    run_shared(run)
    for n in run.pending:
        run_tail(run, n)
    remove_forks(run)


def run_shared(run: SeedRun) -> None:
    """The ideal world to its end, and from it a fork for every real world that has none."""
    if not run.is_done(IDEAL):
        run_trunk(run)
    replay_trunk(run, [n for n in run.pending if run.saved_tail(n) is None])


def remove_forks(run: SeedRun) -> None:
    """Delete the states at the forks, which are of no use when all tails are done."""
    for step in {run.plan.fork_step(n) for n in run.plan.n_samples}:
        remove_checkpoint(run.checkpoints, "fork", step)


def run_trunk(run: SeedRun) -> None:
    """The ideal world to its end, with a fork state and the shared records of every N."""
    plan, n_samples = run.plan, list(run.plan.n_samples)
    saved = read_latest(run.checkpoints, "trunk")
    if saved and saved[1]["n_samples"] != n_samples:
        saved = None  # it has no records for the new N: start again
        keep_latest(run.checkpoints, "trunk", n=0)
    state = run.state(saved)
    worlds = {IDEAL: plan.end, **{real_name(n): plan.prefix_stop(n) for n in n_samples}}
    stops = sorted({*map(plan.fork_step, n_samples), plan.recipe.n_steps})
    leg = Leg(world_n=plan.ideal_n_samples, probe_n=n_samples, stops=stops)
    advance(run, leg, state, worlds, "trunk", {"n_samples": n_samples})
    for n in n_samples:
        if not plan.forks(n):
            finish(run, real_name(n), state)
    finish(run, IDEAL, state)
    keep_latest(run.checkpoints, "trunk", n=0)


def replay_trunk(run: SeedRun, n_samples: Sequence[int]) -> None:
    """The trunk again as far as these N need it, because they were asked for after it was done."""
    if not n_samples:
        return
    plan = run.plan
    log.info("replaying the ideal world up to the forks of N = %s", list(n_samples))
    state, stops = run.state(), sorted({*map(plan.fork_step, n_samples)})
    worlds = {real_name(n): plan.prefix_stop(n) for n in n_samples}
    leg = Leg(world_n=plan.ideal_n_samples, probe_n=n_samples, stops=stops)
    advance(run, leg, state, worlds, None)
    for n in n_samples:
        if not plan.forks(n):
            finish(run, real_name(n), state)


def run_tail(run: SeedRun, n: int) -> None:
    """A real world from its fork, or from its latest checkpoint, to the end."""
    name, state = real_name(n), run.state(run.saved_tail(n))
    leg = Leg(world_n=n, probe_n=(n,), stops=(run.plan.recipe.n_steps,))
    advance(run, leg, state, {name: run.plan.end}, name)
    complete_ideal(run, n)  # before the mark: a kill in between must not lose it
    finish(run, name, state)
    keep_latest(run.checkpoints, name, n=0)


def run_alone(run: SeedRun, name: str, n: int, probe_n: Sequence[int]) -> None:
    """One world from step 0, or from its latest checkpoint, to the end."""
    if run.is_done(name):
        return
    state = run.state(read_latest(run.checkpoints, name))
    leg = Leg(world_n=n, probe_n=probe_n, stops=(run.plan.recipe.n_steps,))
    advance(run, leg, state, {name: run.plan.end}, name)
    finish(run, name, state)
    keep_latest(run.checkpoints, name, n=0)


def complete_ideal(run: SeedRun, n: int) -> None:
    """Give the ideal world its row at the fork of an N that was asked for after it was done.

    At the fork both worlds are the same run, so the row is the real world's without its `train_*`.
    """
    path, step = run.folder / f"{IDEAL}.jsonl", run.plan.fork_step(n)
    rows = read_rows(path)
    if any(row["step"] == step for row in rows):
        return
    real = read_rows(run.folder / f"{real_name(n)}.jsonl")
    shared = next(row for row in real if row["step"] == step)
    if run.plan.keep.test_results:
        insert_evaluation(run.folder, IDEAL, real_name(n), step)
    own = {k: v for k, v in shared.items() if not k.startswith(TRAIN) and k != "schema"}
    extra = {k: v for k, v in own.pop("extra", {}).items() if not k.startswith(TRAIN)}
    own |= {"extra": extra} if extra else {}
    rows = sorted([*rows, own], key=lambda row: row["step"])
    replace(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    mark = run.folder / f"{IDEAL}.done.json"
    replace(mark, pretty_json({**json.loads(mark.read_bytes()), "n_rows": len(rows)}))


def advance(
    run: SeedRun,
    leg: Leg,
    state: TrainState,
    worlds: dict[str, int],
    name: str | None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Train a leg; write each world's records before its own step; save states.

    States go to `<name>-<step>` at intervals (without a name to none) and to `fork-<step>` at every
    stop but the last step.
    """
    control, folder, n_steps = run.control, run.folder, run.plan.recipe.n_steps
    label = name or "replay"
    remove_leftovers(folder)
    remove_leftovers(run.checkpoints)
    for later in checkpoint_steps(run.checkpoints, label):  # corrupt, or they would be gone on from
        if later > state.step:
            remove_checkpoint(run.checkpoints, label, later)
    for world in worlds:
        truncate_rows(folder / f"{world}.jsonl", state.step)
        truncate_rows(folder / f"{world}-every-step.jsonl", state.step)
    (folder / f"{label}.failed.json").unlink(missing_ok=True)
    run.announce(leg, state)
    task = run.task(leg.world_n, leg.probe_n)
    saved_at = time.monotonic()

    def is_paused() -> bool:
        is_due = time.monotonic() - saved_at > control.checkpoint_every_s
        return run.ranks.any(control.is_interrupted() or is_due)

    with ExitStack() as files:

        def open_rows(suffix: str) -> dict[str, RowWriter]:
            paths = {world: folder / f"{world}{suffix}.jsonl" for world in worlds}
            return {world: files.enter_context(RowWriter(path)) for world, path in paths.items()}

        keeping = files.enter_context(Keeping(run.plan, run.seed, tuple(worlds), state.step))
        rows = open_rows("")
        steps = open_rows("-every-step") if run.plan.recipe.every_step else {}

        def write(record: Record | StepRecord) -> None:
            for world, until_step in worlds.items():
                if record.step >= until_step:
                    continue
                if isinstance(record, Record):
                    is_approximate = record.step > run.plan.fresh_until(world)
                    mine = record.for_world(world, is_approximate=is_approximate)
                    file, row = rows[world], mine.to_json()
                    keeping.take(world, record, state.model)
                else:
                    file, row = steps[world], record.to_json()
                control.on_row(run.seed, file.path.stem, row)
                file.write(row)
            control.on_record(run.seed, label, record)

        def save_state(kind: str) -> None:
            for writer in (*rows.values(), *steps.values()):
                writer.sync()
            keeping.save()
            everything = {**(meta or {}), "state": state.meta()}
            write_checkpoint(run.checkpoints, kind, state.step, state.tensors(), everything)

        for stop in (stop for stop in leg.stops if stop >= state.step):
            while True:
                try:
                    for record in train(task, state, until_step=stop, is_paused=is_paused):
                        write(record)
                except NumericError as error:
                    failure = {"step": state.step, "reason": str(error)}
                    replace(folder / f"{label}.failed.json", pretty_json(failure))
                    raise NumericError(f"{folder}: {label}: {error}") from error
                if state.step >= stop:
                    break
                if name is not None:
                    save_state(name)
                    keep_latest(run.checkpoints, name)
                saved_at = time.monotonic()
                if run.ranks.any(control.is_interrupted()):
                    raise Interrupted(
                        f"{folder}: {label} stopped at step {state.step}; run it again to go on"
                    )
            if stop < n_steps:
                save_state("fork")


def finish(run: SeedRun, world: str, state: TrainState) -> None:
    """Save the final weights, then the mark that says the world is done."""
    weights = tensor_bytes(state.model.state_dict())
    replace(run.folder / f"{world}.safetensors", weights)
    done = {
        "weights_sha256": sha256_hex(weights),
        "n_rows": len(read_rows(run.folder / f"{world}.jsonl")),
        "wall_s": round(state.wall_s, 3),
        "evaluation_s": round(state.evaluation_s, 3),
    }
    plan, by_world = run.plan, {real_name(n): n for n in run.plan.n_samples}
    order = plan.order(run.seed, by_world.get(world, plan.ideal_n_samples))
    if isinstance(order, KeptOrder):
        n_used = by_world.get(world, plan.recipe.n_draws)
        done["n_drawn"] = order.n_drawn(min(n_used, plan.ideal_n_samples))
    replace(run.folder / f"{world}.done.json", pretty_json(done))
