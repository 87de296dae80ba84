"""A pair: the ideal world is the trunk, every real world forks from it at its first reuse.

    run_pair(recipe, data, out, n_samples=(500, 2000), seeds=(0, 1, 2))

Re-running resumes what was stopped, extends with new N or seeds, and does nothing where all is
done.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors.torch import save

from bootstrap.batch import Batch
from bootstrap.checkpoint import (
    keep_latest,
    read_checkpoint,
    read_latest,
    remove_checkpoint,
    write_checkpoint,
)
from bootstrap.curves import summarise
from bootstrap.environment import describe_environment
from bootstrap.errors import ConfigurationError, Interrupted, NotEnoughData, NumericError
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, pretty_json, remove_leftovers, sha256_hex
from bootstrap.files import replace as replace_file
from bootstrap.plot import write_figure
from bootstrap.pool import Pool
from bootstrap.recipe import MAX_PROBE_N, Recipe, evaluation_grid
from bootstrap.records import SCHEMA, Record, StepRecord
from bootstrap.runlog import IDEAL, RowWriter, load_run, read_rows, real_name, truncate_rows
from bootstrap.shards import Manifest, read_manifest
from bootstrap.train import Probes, Task, TrainState, build_state, train
from bootstrap.worlds import BLOCK, SeedOrder, World

log = logging.getLogger(__name__)

OnRecord = Callable[[int, str, Record | StepRecord], None]


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a pair is watched and stopped."""

    on_record: OnRecord = lambda seed, world, record: None
    is_interrupted: Callable[[], bool] = lambda: False
    checkpoint_every_s: float = 60.0  # seconds between checkpoints
    share_prefix: bool = (
        True  # False trains every real world from step 0, to show that it is the same
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A pair, resolved: what is trained on what, and where its records go."""

    recipe: Recipe
    manifest: Manifest
    data: Path
    folder: Path
    pool_n_samples: int
    n_samples: tuple[int, ...]
    flags: Flags

    @property
    def grid(self) -> tuple[int, ...]:
        """Steps of evaluation of every world of the pair."""
        return tuple(
            sorted({*evaluation_grid(self.recipe.n_steps), *map(self.fork_step, self.n_samples)})
        )

    def fork_step(self, n: int) -> int:
        """Where the real world with N = n leaves the trunk, or n_steps if it never does."""
        world = World(n_samples=n, seed=0)
        return min(world.first_reuse_step(self.recipe.batch_size), self.recipe.n_steps)

    def forks(self, n: int) -> bool:
        """Whether the real world with N = n ever re-uses a sample."""
        return self.fork_step(n) < self.recipe.n_steps

    def prefix_stop(self, n: int) -> int:
        """Records before this step are the trunk's; all of them if the world never forks."""
        return self.fork_step(n) if self.forks(n) else self.recipe.n_steps + 1


def run_pair(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    n_samples: Sequence[int],
    seeds: Sequence[int] = (0,),
    flags: Flags,
    preset: str = "custom",
    overwrite: bool = False,
    control: Control = Control(),
) -> Path:
    """Train the ideal world and the real ones, write records, summary and figure.

    Returns the run's folder. Raises ConfigurationError, DataError, NotEnoughData (before anything
    is trained), NumericError or Interrupted (after saving; the same call goes on).
    """
    plan = plan_pair(recipe, data, out, n_samples=n_samples, flags=flags, preset=preset)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _locked(plan.folder):
        if overwrite:
            _clear(plan.folder)
        _write_pair_json(plan, preset, seeds)
        remove_leftovers(plan.folder)
        flags.apply()
        for seed in seeds:
            _run_seed(plan, seed, control)
        run = load_run(plan.folder)
        replace_file(plan.folder / "summary.json", pretty_json(summarise(run)))
        write_figure(run)
    return plan.folder


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
    if n_samples > manifest.n_stream:
        raise NotEnoughData(
            f"{data}: the stream holds {manifest.n_stream:,} samples, not {n_samples:,}"
        )
    plan = Plan(
        recipe=recipe,
        manifest=manifest,
        data=data,
        folder=out / _run_name(preset, recipe, manifest, manifest.n_stream, flags),
        pool_n_samples=manifest.n_stream,
        n_samples=(n_samples,),
        flags=flags,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _locked(plan.folder):
        _write_pair_json(plan, preset, [seed])
        flags.apply()
        if not _is_done(plan.folder / f"seed-{seed}", real_name(n_samples)):
            pool = Pool(data, "stream", manifest)
            _run_alone(plan, seed, pool, real_name(n_samples), n_samples, [], control)
            pool.close()
    return plan.folder


def plan_pair(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    n_samples: Sequence[int],
    flags: Flags,
    preset: str = "custom",
) -> Plan:
    """Resolve a pair without training: find its folder, check that the stream is long enough."""
    manifest = read_manifest(data)
    check_enough_data(recipe, manifest, n_samples, data)
    pool_n_samples, known_n = manifest.n_stream, set()
    for path in sorted(
        out.glob(f"{preset}-????????/pair.json")
    ):  # perhaps made before the stream was extended
        known = json.loads(path.read_bytes())
        pool_then = known["pool_n_samples"]
        same = path.parent.name == _run_name(preset, recipe, manifest, pool_then, flags)
        if same and pool_then <= manifest.n_stream:
            pool_n_samples, known_n = pool_then, set(known["n_samples"])
    return Plan(
        recipe=recipe,
        manifest=manifest,
        data=data,
        folder=out / _run_name(preset, recipe, manifest, pool_n_samples, flags),
        pool_n_samples=pool_n_samples,
        n_samples=tuple(sorted({*n_samples, *known_n})),
        flags=flags,
    )


def check_enough_data(
    recipe: Recipe, manifest: Manifest, n_samples: Sequence[int], data: Path
) -> None:
    """NotEnoughData unless the ideal world stays fresh to the last step and every N fits."""
    if not n_samples or min(n_samples) < 1:
        raise ConfigurationError(f"n_samples={list(n_samples)}: give at least one N of at least 1")
    needed = max(recipe.n_draws, max(n_samples))
    if needed > manifest.n_stream:
        blocks = -(-needed // BLOCK) * BLOCK
        raise NotEnoughData(
            f"{data}: the stream holds {manifest.n_stream:,} samples, {needed:,} are needed"
            f" ({recipe.n_steps:,} steps x {recipe.batch_size}, N up to {max(n_samples):,});"
            f" run `make generate N={blocks}` or lower --n-steps"
        )
    if manifest.n("test") == 0:
        raise NotEnoughData(f"{data}: there is no test split; generate or import one")


def identity(
    recipe: Recipe, manifest: Manifest, pool_n_samples: int, flags: Flags
) -> dict[str, Any]:
    """Everything that decides the numbers of a pair, whatever its seeds, N and folder."""
    return {
        "schema": SCHEMA,
        "recipe": recipe.non_default(),
        "data": data_hash(manifest, pool_n_samples),
        "pool_n_samples": pool_n_samples,
        "n_test": manifest.n("test"),
        "grid": list(evaluation_grid(recipe.n_steps)),
        "flags": flags.to_json(),
    }


def data_hash(manifest: Manifest, pool_n_samples: int) -> str:
    """sha256 over the shards of test, reference and the used blocks of the stream."""
    stream = manifest.split("stream")
    first_id = stream[0].first_id if stream else 0
    used = [shard for shard in stream if shard.first_id < first_id + pool_n_samples]
    shards = [*manifest.split("test"), *manifest.split("reference"), *used]
    return sha256_hex(canonical_json([[shard.name, shard.sha256] for shard in shards]).encode())


def _run_name(
    preset: str, recipe: Recipe, manifest: Manifest, pool_n_samples: int, flags: Flags
) -> str:
    text = canonical_json(identity(recipe, manifest, pool_n_samples, flags))
    return f"{preset}-{sha256_hex(text.encode())[:8]}"


def _write_pair_json(plan: Plan, preset: str, seeds: Sequence[int]) -> None:
    path = plan.folder / "pair.json"
    known = json.loads(path.read_bytes()) if path.exists() else {}
    environment = known.get("environment") or describe_environment(plan.flags)
    value = {
        "schema": SCHEMA,
        "run": plan.folder.name,
        "preset": preset,
        "recipe": plan.recipe.to_json(),
        "n_samples": list(plan.n_samples),
        "seeds": sorted({*seeds, *known.get("seeds", [])}),
        "data": {
            "name": plan.manifest.name,
            "label_source": plan.manifest.label_source,
            "image_shape": list(plan.manifest.image_shape),
            "class_names": list(plan.manifest.class_names),
        },
        "n_test": plan.manifest.n("test"),
        "n_test_curve": min(plan.recipe.n_test_curve, plan.manifest.n("test")),
        "every_step": plan.recipe.every_step,
        "pool_n_samples": plan.pool_n_samples,
        "identity": identity(plan.recipe, plan.manifest, plan.pool_n_samples, plan.flags),
        "environment": environment,
    }
    if value != known:
        replace_file(path, pretty_json(value))


def _run_seed(plan: Plan, seed: int, control: Control) -> None:
    """Bring one seed to its end: the trunk, then every tail that is not done."""
    folder = plan.folder / f"seed-{seed}"
    pending = [n for n in plan.n_samples if not _is_done(folder, real_name(n))]
    if _is_done(folder, IDEAL) and not pending:
        return
    pool = Pool(plan.data, "stream", plan.manifest)
    try:
        if not control.share_prefix:
            _run_without_forks(plan, seed, pool, control)
            return
        if not _is_done(folder, IDEAL):
            _run_trunk(plan, seed, pool, plan.n_samples, control)
        lost = [
            n
            for n in plan.n_samples
            if not _is_done(folder, real_name(n)) and not _can_start_tail(plan, folder, n)
        ]
        if lost:
            _replay_trunk(plan, seed, pool, lost, control)
        for n in plan.n_samples:
            if not _is_done(folder, real_name(n)):
                _run_tail(plan, seed, pool, n, control)
                _complete_ideal(plan, folder, n)
        for step in {plan.fork_step(n) for n in plan.n_samples}:
            remove_checkpoint(folder / "checkpoints", "fork", step)
    finally:
        pool.close()


def _run_trunk(
    plan: Plan, seed: int, pool: Pool, n_samples: Sequence[int], control: Control
) -> None:
    """The ideal world from its latest checkpoint, with a fork state and shared records per N."""
    folder = plan.folder / f"seed-{seed}"
    state = build_state(plan.recipe, plan.manifest, plan.pool_n_samples, seed, plan.flags)
    found = read_latest(folder / "checkpoints", "trunk")
    if found and found[1]["n_samples"] == list(n_samples):
        state.load(found[0], found[1]["state"])
    task = _task(plan, seed, pool, plan.pool_n_samples, n_samples)
    worlds = {
        IDEAL: plan.recipe.n_steps + 1,
        **{real_name(n): plan.prefix_stop(n) for n in n_samples},
    }
    stops = sorted({plan.fork_step(n) for n in n_samples} | {plan.recipe.n_steps})
    meta = {"n_samples": list(n_samples)}
    _advance(plan, task, state, worlds, stops, "trunk", meta, control)
    for n in n_samples:
        if not plan.forks(n):
            _finish(folder, real_name(n), state)
    _finish(folder, IDEAL, state)
    keep_latest(folder / "checkpoints", "trunk", n=0)


def _replay_trunk(
    plan: Plan, seed: int, pool: Pool, n_samples: Sequence[int], control: Control
) -> None:
    """The trunk again as far as these N need it, because they were asked for after it was done."""
    folder = plan.folder / f"seed-{seed}"
    log.info("seed %d: replaying the ideal world up to the forks of N = %s", seed, list(n_samples))
    state = build_state(plan.recipe, plan.manifest, plan.pool_n_samples, seed, plan.flags)
    task = _task(plan, seed, pool, plan.pool_n_samples, n_samples)
    stops = sorted({plan.fork_step(n) for n in n_samples})
    worlds = {real_name(n): plan.prefix_stop(n) for n in n_samples}
    _advance(plan, task, state, worlds, stops, "replay", {}, control, resumes=False)
    for n in n_samples:
        if not plan.forks(n):
            _finish(folder, real_name(n), state)


def _run_tail(plan: Plan, seed: int, pool: Pool, n: int, control: Control) -> None:
    """A real world from its fork, or from its latest checkpoint, to the end."""
    folder, name = plan.folder / f"seed-{seed}", real_name(n)
    state = build_state(plan.recipe, plan.manifest, plan.pool_n_samples, seed, plan.flags)
    found = read_latest(folder / "checkpoints", name) or read_checkpoint(
        folder / "checkpoints", "fork", plan.fork_step(n)
    )
    if found is None:
        raise RuntimeError(f"{folder}: no state to start {name} from")
    state.load(found[0], found[1]["state"])
    task = _task(plan, seed, pool, n, [n])
    _advance(
        plan, task, state, {name: plan.recipe.n_steps + 1}, [plan.recipe.n_steps], name, {}, control
    )
    _finish(folder, name, state)
    keep_latest(folder / "checkpoints", name, n=0)


def _complete_ideal(plan: Plan, folder: Path, n: int) -> None:
    """Give the ideal world its row at the fork of an N that was asked for after it was done.

    At the fork both worlds are the same run, so the row is the real world's without its `train_*`.
    """
    ideal, step = read_rows(folder / f"{IDEAL}.jsonl"), plan.fork_step(n)
    if any(row["step"] == step for row in ideal):
        return
    shared = next(row for row in read_rows(folder / f"{real_name(n)}.jsonl") if row["step"] == step)
    ideal.append(
        {
            key: value
            for key, value in shared.items()
            if not key.startswith("train_") and key != "schema"
        }
    )
    ideal.sort(key=lambda row: row["step"])
    replace_file(
        folder / f"{IDEAL}.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in ideal)
    )


def _run_without_forks(plan: Plan, seed: int, pool: Pool, control: Control) -> None:
    """Every world from step 0, each on its own."""
    _run_alone(plan, seed, pool, IDEAL, plan.pool_n_samples, [], control)
    for n in plan.n_samples:
        _run_alone(plan, seed, pool, real_name(n), n, [n], control)


def _run_alone(
    plan: Plan, seed: int, pool: Pool, name: str, n: int, probe_n: Sequence[int], control: Control
) -> None:
    """One world from step 0, or from its latest checkpoint, to the end."""
    folder = plan.folder / f"seed-{seed}"
    state = build_state(plan.recipe, plan.manifest, plan.pool_n_samples, seed, plan.flags)
    found = read_latest(folder / "checkpoints", name)
    if found:
        state.load(found[0], found[1]["state"])
    task = _task(plan, seed, pool, n, probe_n)
    _advance(
        plan, task, state, {name: plan.recipe.n_steps + 1}, [plan.recipe.n_steps], name, {}, control
    )
    _finish(folder, name, state)
    keep_latest(folder / "checkpoints", name, n=0)


def _task(plan: Plan, seed: int, pool: Pool, world_n: int, probe_n: Sequence[int]) -> Task:
    """What stays fixed while a world is trained; probes last until the world is on its own."""
    order = SeedOrder(pool_n_samples=plan.pool_n_samples, seed=seed)
    device = plan.flags.torch_device
    test_pool = Pool(plan.data, "test", plan.manifest)
    test = Batch.from_columns(test_pool.first(test_pool.n), device)
    test_pool.close()
    probes = None
    if probe_n:
        sizes = {real_name(n): min(n, MAX_PROBE_N) for n in probe_n}
        largest = order.ids(np.arange(max(sizes.values())))
        on_own = plan.recipe.n_steps + 1
        until = {real_name(n): on_own if world_n == n else plan.prefix_stop(n) for n in probe_n}
        probes = Probes(
            batch=Batch.from_columns(pool.rows(largest), device), n=sizes, until_step=until
        )
    return Task(
        recipe=plan.recipe,
        world=World(n_samples=world_n, seed=seed),
        pool=pool,
        order=order,
        test=test,
        probes=probes,
        grid=frozenset(plan.grid),
        flags=plan.flags,
    )


def _advance(
    plan: Plan,
    task: Task,
    state: TrainState,
    worlds: dict[str, int],
    stops: Sequence[int],
    name: str,
    meta: dict[str, Any],
    control: Control,
    *,
    resumes: bool = True,
) -> None:
    """Train through `stops`, write each world's records before its own stop, save states."""
    seed, folder = state.seed, plan.folder / f"seed-{state.seed}"
    checkpoints = folder / "checkpoints"
    remove_leftovers(folder)
    for world in worlds:
        truncate_rows(folder / f"{world}.jsonl", state.step)
        truncate_rows(folder / f"{world}-every-step.jsonl", state.step)
    (folder / f"{name}.failed.json").unlink(missing_ok=True)
    saved_at = time.monotonic()

    def is_paused() -> bool:
        return control.is_interrupted() or time.monotonic() - saved_at > control.checkpoint_every_s

    with ExitStack() as files:
        rows = {
            world: files.enter_context(RowWriter(folder / f"{world}.jsonl")) for world in worlds
        }
        steps = {
            world: files.enter_context(RowWriter(folder / f"{world}-every-step.jsonl"))
            for world in worlds
            if plan.recipe.every_step
        }

        def write(record: Record | StepRecord) -> None:
            writers = steps if isinstance(record, StepRecord) else rows
            for world, until in worlds.items():
                if record.step < until:
                    own = record.for_world(world) if isinstance(record, Record) else record
                    writers[world].write(own.to_json())
            control.on_record(seed, name, record)

        def save_state(label: str) -> None:
            for writer in (*rows.values(), *steps.values()):
                writer.sync()
            write_checkpoint(
                checkpoints, label, state.step, state.tensors(), {**meta, "state": state.meta()}
            )

        for stop in (stop for stop in stops if stop >= state.step):
            while True:
                try:
                    for record in train(task, state, until_step=stop, is_paused=is_paused):
                        write(record)
                except NumericError as error:
                    failure = {"step": state.step, "reason": str(error)}
                    replace_file(folder / f"{name}.failed.json", pretty_json(failure))
                    raise NumericError(f"{folder}: {name}: {error}") from error
                if state.step >= stop:
                    break
                if resumes:
                    save_state(name)
                    keep_latest(checkpoints, name)
                saved_at = time.monotonic()
                if control.is_interrupted():
                    raise Interrupted(
                        f"{folder}: {name} stopped at step {state.step};"
                        " run the same command to go on"
                    )
            if stop < plan.recipe.n_steps:
                save_state("fork")


def _finish(folder: Path, world: str, state: TrainState) -> None:
    """Save the final weights, then the mark that says the world is done."""
    weights = save(
        {key: tensor.cpu().contiguous() for key, tensor in state.model.state_dict().items()}
    )
    replace_file(folder / f"{world}.safetensors", weights)
    done = {
        "weights_sha256": sha256_hex(weights),
        "n_rows": len(read_rows(folder / f"{world}.jsonl")),
        "wall_s": round(state.wall_s, 3),
        "evaluation_s": round(state.evaluation_s, 3),
    }
    replace_file(folder / f"{world}.done.json", pretty_json(done))


def _is_done(folder: Path, world: str) -> bool:
    return (folder / f"{world}.done.json").exists()


def _can_start_tail(plan: Plan, folder: Path, n: int) -> bool:
    checkpoints = folder / "checkpoints"
    found = read_latest(checkpoints, real_name(n)) or read_checkpoint(
        checkpoints, "fork", plan.fork_step(n)
    )
    return found is not None and (folder / f"{real_name(n)}.jsonl").exists()


def _locked(folder: Path) -> AcquireReturnProxy:
    """The run's lock, held; ConfigurationError naming the holder if another process has it."""
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"{folder} is being written by another process; wait for it or stop it"
        ) from None


def _clear(folder: Path) -> None:
    """Delete a run's content, but not its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
