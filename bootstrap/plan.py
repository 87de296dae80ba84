"""The plan of a pair: what is trained on what, under which name; made before any training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bootstrap.environment import describe_environment, version_changes
from bootstrap.errors import ConfigurationError, NotEnoughData
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, file_sha256, pretty_json, replace, sha256_hex
from bootstrap.filtered import KeptOrder, count_kept, has_filter
from bootstrap.interventions import Choice, check_execution, name_of
from bootstrap.keep import Keep, agree
from bootstrap.pool import Pool
from bootstrap.presets import PRESETS
from bootstrap.pretrained import Pretrained
from bootstrap.ranks import Ranks
from bootstrap.recipe import Recipe, evaluation_grid
from bootstrap.records import SCHEMA
from bootstrap.runlog import IDEAL, real_name
from bootstrap.shards import Columns, Manifest, read_manifest
from bootstrap.worlds import BLOCK, SeedOrder, World

log = logging.getLogger(__name__)


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
    keep: Keep = Keep()
    init: Pretrained | None = None  # what all seeds start from, instead of weights of their own
    n_kept: int | None = None  # of the pool's samples, where a choice leaves some out

    @property
    def ideal_n_samples(self) -> int:
        """How many samples the ideal world has."""
        there = self.pool_n_samples if self.n_kept is None else self.n_kept
        return there - self.recipe.n_own

    @property
    def shares_prefix(self) -> bool:
        """Whether the worlds are one run until the first reuse."""
        return all(choice.shares_prefix for choice in self.recipe.choices)

    def pool(self, split: str) -> Pool:
        """A split of the data, under the conditions that choices set."""
        conditions = [choice.wrap_columns for choice in self.recipe.choices]
        return Pool(self.data, split, self.manifest, conditions)

    def evaluation_pools(self) -> dict[str, Pool]:
        """By name, the further sets that choices make of the test images."""
        found = {}
        for choice in self.recipe.choices:
            for name in choice.evaluation_sets():
                conditions = [
                    partial(as_set, c, name) if c is choice else c.wrap_columns
                    for c in self.recipe.choices
                ]
                found[name] = Pool(self.data, "test", self.manifest, conditions)
        return found

    def order(self, seed: int, world_n: int = 0) -> SeedOrder:
        """The order in which a seed reads the pool, for a world of so many samples.

        A world that is longer than what references were made from comes after it.
        """
        known: dict[str, int] = {"pool_n_samples": self.pool_n_samples, "seed": seed}
        if not has_filter(self.recipe.choices):
            return SeedOrder(**known)
        n_own = self.recipe.n_own
        first = n_own if world_n > n_own else 0
        return KeptOrder(**known, data=self.data, choices=self.recipe.choices, first=first)

    @property
    def end(self) -> int:
        """One past the last step that has a record."""
        return self.recipe.n_steps + 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Steps of evaluation of every world of the pair."""
        return tuple(
            sorted({*evaluation_grid(self.recipe.n_steps), *map(self.fork_step, self.n_samples)})
        )

    def is_done(self, seeds: Sequence[int], worlds: Sequence[str] | None = None) -> bool:
        """Whether these worlds of these seeds, by default all, have reached their last step."""
        worlds = (IDEAL, *map(real_name, self.n_samples)) if worlds is None else worlds
        marks = [
            self.folder / f"seed-{k}" / f"{world}.done.json" for k in seeds for world in worlds
        ]
        return all(mark.exists() for mark in marks)

    def fork_step(self, n: int) -> int:
        """Where the real world with N = n leaves the trunk, or n_steps if it never does."""
        world = World(n_samples=n, seed=0)
        return min(world.first_reuse_step(self.recipe.batch_size), self.recipe.n_steps)

    def forks(self, n: int) -> bool:
        """Whether the real world with N = n ever re-uses a sample."""
        return self.fork_step(n) < self.recipe.n_steps

    def fresh_until(self, world: str) -> int:
        """The last step whose record is what the world promises: the ideal one may be too short."""
        return {IDEAL: self.fork_step(self.ideal_n_samples)}.get(world, self.end)

    def own_from(self, world: str) -> int:
        """The first step whose weights are the world's alone; before, they are the ideal one's."""
        n_samples = self.n_samples if self.shares_prefix else ()
        return {real_name(n): self.fork_step(n) + 1 for n in n_samples}.get(world, 0)

    def prefix_stop(self, n: int) -> int:
        """Records before this step are the trunk's; all of them if the world never forks."""
        return self.fork_step(n) if self.forks(n) else self.end


def plan_pair(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    n_samples: Sequence[int],
    flags: Flags,
    preset: str = "custom",
    allow_reuse: bool = False,
    keep: Keep = Keep(),
    init: Pretrained | None = None,
    overwrite: bool = False,
) -> Plan:
    """Resolve a pair without training: find its folder, check that the stream is long enough.

    With `allow_reuse` a stream that is too short for the ideal world will do; of one that is long
    enough nothing is re-used all the same. A run that has begun keeps what it was begun with,
    unless it is to be overwritten: ConfigurationError if `keep` asks for more, and if `init` does
    not fit the model or has seen the data.
    """
    Ranks(n=flags.ranks).share(recipe.batch_size)  # refuses what does not divide
    manifest = read_manifest(data)
    check_columns(recipe, data, manifest)
    check_execution(recipe.choices, is_stacked=flags.replicas > 1, is_compiled=flags.compiled)
    for choice in recipe.choices:
        choice.check_data(recipe, manifest, n_samples)
    needed = check_enough_data(recipe, manifest, n_samples, data, preset, allow_reuse)
    if init is not None:
        init.check(recipe, manifest)
    pool_n_samples, known_n = manifest.n_stream, set()
    names: dict[int, str] = {}  # the run's, by the size of its pool
    for folder in sorted(path.parent for path in out.glob(f"{preset}-????????/pair.json")):
        pool_then, n_then = known_pool(folder.absolute())
        if not (needed <= n_then and pool_then <= pool_n_samples):
            continue
        if pool_then not in names:
            names[pool_then] = run_name(preset, recipe, manifest, pool_then, flags, init)
        if folder.name == names[pool_then]:
            known = json.loads((folder / "pair.json").read_bytes())
            pool_n_samples, known_n = pool_then, set(known["n_samples"])  # the oldest that serves
    folder = out / run_name(preset, recipe, manifest, pool_n_samples, flags, init)
    return Plan(
        recipe=recipe,
        manifest=manifest,
        data=data,
        folder=folder,
        pool_n_samples=pool_n_samples,
        n_samples=tuple(sorted({*n_samples, *known_n})),
        flags=flags,
        keep=keep if overwrite else agree(folder, keep),
        init=init,
        n_kept=count_kept(recipe.choices, data, pool_n_samples),
    )


@cache
def known_pool(folder: Path) -> tuple[int, int]:
    """How many samples a run's pool holds, and how many of them a choice keeps.

    Both are fixed by the run's name, so of hundreds of runs each is read once in a process.
    """
    known = json.loads((folder / "pair.json").read_bytes())
    pool_n_samples = known.get("pool_n_samples", 0)
    return pool_n_samples, known.get("n_kept", pool_n_samples)


def as_set(choice: Choice, name: str, columns: Columns, split: str, n_classes: int) -> Columns:
    """What a choice makes of the test images for a further set."""
    return choice.wrap_columns(columns, f"{split}/{name}", n_classes)


def check_columns(recipe: Recipe, data: Path, manifest: Manifest) -> None:
    """ConfigurationError if a choice needs a column that neither data nor choices have."""
    if recipe.columns and manifest.n_stream:
        with closing(Pool(data, "stream", manifest)) as pool:
            there = {*pool.read(0, 1).extra}
        provided = {name for choice in recipe.choices for name in choice.provides}
        for choice in recipe.choices:
            for name in set(choice.needs) - there - provided:
                raise ConfigurationError(
                    f"{data}: choice {name_of(choice)} needs the column {name}, which the data set"
                    " has not; add a choice that provides it"
                )


def check_enough_data(
    recipe: Recipe,
    manifest: Manifest,
    n_samples: Sequence[int],
    data: Path,
    preset: str = "custom",
    allow_reuse: bool = False,
) -> int:
    """How many samples the stream must hold, which it does.

    NotEnoughData unless the ideal world stays fresh to the last step, or may re-use samples, and
    every N fits.
    """
    if not n_samples or min(n_samples) < 1:
        raise ConfigurationError(f"n_samples={list(n_samples)}: give at least one N of at least 1")
    needed = max(recipe.n_own + recipe.n_draws, *n_samples)
    n_kept = count_kept(recipe.choices, data, manifest.n_stream)
    there = manifest.n_stream if n_kept is None else n_kept
    if needed > there and allow_reuse:
        needed = max(n_samples)
    if needed > there:
        blocks = -(-needed * manifest.n_stream // max(there, 1) // BLOCK) * BLOCK
        command = "deep-bootstrap generate" + ("" if preset == "custom" else f" --preset {preset}")
        remedy = f"run `{command} --data {data} --n {blocks}`"
        if not is_data_of_preset(manifest, preset):
            remedy += " and the --source that made it"
        if manifest.generator.get("source") == "import":
            remedy = f"import more, or draw some: `deep-bootstrap train-generator --images {data}`"
        if max(n_samples) <= there:
            remedy += ", or give --allow-reuse: the ideal world is then approximate in the end"
        raise NotEnoughData(
            f"{data}: the stream holds {there:,} samples"
            f"{'' if n_kept is None else ' that are kept'}, {needed:,} are needed"
            f" ({recipe.n_steps:,} steps x {recipe.batch_size}, N up to {max(n_samples):,});"
            f" {remedy}, or lower --n-steps"
        )
    if manifest.n("test") == 0:
        raise NotEnoughData(f"{data}: there is no test split; generate or import one")
    return needed


def is_data_of_preset(manifest: Manifest, preset: str) -> bool:
    """Whether a preset's own source makes these images, as far as kind and weights tell."""
    if preset not in PRESETS:
        return True
    source, generator = PRESETS[preset]().data.source, manifest.generator
    return source.startswith(generator.get("source", "")) and generator.get("weights", "") in source


def identity(
    recipe: Recipe,
    manifest: Manifest,
    pool_n_samples: int,
    flags: Flags,
    init: Pretrained | None = None,
) -> dict[str, Any]:
    """Everything that decides the numbers of a pair, whatever its seeds, N and folder."""
    own = {name: file_sha256(path) for name, path in recipe.own_files().items()}
    return {
        "schema": SCHEMA,
        **({"own_files": own} if own else {}),
        **({"initial_weights": init.sha256} if init else {}),
        "recipe": recipe.non_default(),
        "data": data_hash(manifest, pool_n_samples),
        "pool_n_samples": pool_n_samples,
        "n_test": manifest.n("test"),
        "grid": list(evaluation_grid(recipe.n_steps)),
        "flags": {**flags.to_json(), "device": flags.torch_device.type},
    }


def data_hash(manifest: Manifest, pool_n_samples: int) -> str:
    """sha256 over the shards of test, reference and the used blocks of the stream, and over what
    the manifest adds to them: the normalisation and the number of classes.
    """
    stream = manifest.split("stream")
    first_id = stream[0].first_id if stream else 0
    used = [shard for shard in stream if shard.first_id < first_id + pool_n_samples]
    shards = [*manifest.split("test"), *manifest.split("reference"), *used]
    added = {
        "mean": manifest.mean,
        "deviation": manifest.deviation,
        "n_classes": manifest.n_classes,
    }
    text = canonical_json([[[shard.name, shard.sha256] for shard in shards], added])
    return sha256_hex(text.encode())


def run_name(
    preset: str,
    recipe: Recipe,
    manifest: Manifest,
    pool_n_samples: int,
    flags: Flags,
    init: Pretrained | None = None,
) -> str:
    """The folder of a run: its preset and eight digits of its identity."""
    text = canonical_json(identity(recipe, manifest, pool_n_samples, flags, init))
    return f"{preset}-{sha256_hex(text.encode())[:8]}"


def write_pair_json(
    plan: Plan,
    preset: str,
    seeds: Sequence[int],
    *,
    is_done: bool = False,
    lr_pick: dict[str, Any] | None = None,
) -> None:
    """Say what the run is, before anything is trained; what earlier calls said of it is kept.

    Unless all `is_done`, other versions than those it was begun with are recorded, and a warning.
    """
    path = plan.folder / "pair.json"
    known = json.loads(path.read_bytes()) if path.exists() else {}
    environments = known_environments(known)
    lr_pick = lr_pick or known.get("lr_pick")
    if not (environments and is_done):
        environments = with_present(environments, plan)
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
        **plan.keep.to_json(),
        "pool_n_samples": plan.pool_n_samples,
        **({"init": plan.init.to_json()} if plan.init else {}),
        **({"lr_pick": lr_pick} if lr_pick else {}),
        **({} if plan.n_kept is None else {"n_kept": plan.n_kept}),
        **({"n_own": plan.recipe.n_own} if plan.recipe.n_own else {}),
        **({} if plan.recipe.keep_fraction == 1 else {"keep_fraction": plan.recipe.keep_fraction}),
        **({} if plan.shares_prefix else {"shares_prefix": False}),
        "identity": identity(
            *(plan.recipe, plan.manifest, plan.pool_n_samples, plan.flags), plan.init
        ),
        "environment": environments[0],
        **({"resumed_with": environments[1:]} if environments[1:] else {}),
    }
    if value != known:
        replace(path, pretty_json(value))


def known_environments(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run was begun with, and with what it went on where that was not the same."""
    begun = [config["environment"]] if config.get("environment") else []
    return [*begun, *config.get("resumed_with", [])]


def with_present(environments: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The present environment added to those of a run, with a warning, if it is another."""
    now = describe_environment(plan.flags)
    if not environments:
        return [now]
    changes = version_changes(environments[-1], now)
    if not changes:
        return environments
    log.warning(
        "%s goes on with other versions than it had: %s; the rest may differ in its last bits",
        plan.folder,
        "; ".join(changes),
    )
    return [*environments, now]
