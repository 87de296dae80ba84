"""What a pair costs before it is run: samples, operations, bytes on disk, time.

Samples and files are counted here; what one takes is measured in `bootstrap.probe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from bootstrap.plan import Plan
from bootstrap.probe import Probe
from bootstrap.recipe import EVERY_STEP_N, MAX_PROBE_N
from bootstrap.runlog import IDEAL, kept_steps, real_name

N_STATES = 3  # of the world in training: the two latest, while the next is written


@dataclass(frozen=True, kw_only=True)
class WorldCost:
    """What one world of one seed takes by itself: a real world nothing before its fork."""

    world: str
    n_steps: int
    n_trained: int  # samples
    n_evaluated: int  # test images and probes, single steps included


def world_costs(plan: Plan) -> tuple[WorldCost, ...]:
    """The worlds of one seed, the ideal one first; its probes are those of all N at once."""
    sizes = {n: min(n, MAX_PROBE_N) for n in plan.n_samples}
    shared = sum(
        max((sizes[n] for n in plan.n_samples if step < plan.prefix_stop(n)), default=0)
        for step in plan.grid
    )
    costs = [_world_cost(plan, IDEAL, 0, shared)]
    for n in plan.n_samples:
        first = plan.prefix_stop(n)
        own = sum(step >= first for step in plan.grid)
        costs.append(_world_cost(plan, real_name(n), first, own * sizes[n]))
    return tuple(costs)


def _world_cost(plan: Plan, world: str, first: int, n_probed: int) -> WorldCost:
    recipe = plan.recipe
    n_test, n_steps = plan.manifest.n("test"), max(recipe.n_steps - first, 0)
    n_sets = 1 + sum(len(choice.evaluation_sets()) for choice in recipe.choices)
    on_curve = sum(first <= step < recipe.n_steps for step in plan.grid)
    n_last = n_test if first <= recipe.n_steps else 0
    n_single = n_steps * EVERY_STEP_N if recipe.every_step else 0
    return WorldCost(
        world=world,
        n_steps=n_steps,
        n_trained=n_steps * recipe.batch_size,
        n_evaluated=n_sets * (on_curve * min(recipe.n_test_curve, n_test) + n_last)
        + n_probed
        + n_single,
    )


@dataclass(frozen=True, kw_only=True)
class PairCost:
    """What a pair takes over its seeds; costs add up."""

    n_trained: int = 0  # samples
    n_evaluated: int = 0
    flop: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: PairCost) -> PairCost:
        return PairCost(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


def pair_cost(plan: Plan, n_seeds: int, probe: Probe) -> PairCost:
    """All worlds of `n_seeds` seeds from step 0."""
    costs = world_costs(plan)
    n_trained = n_seeds * sum(cost.n_trained for cost in costs)
    n_evaluated = n_seeds * sum(cost.n_evaluated for cost in costs)
    return PairCost(
        n_trained=n_trained,
        n_evaluated=n_evaluated,
        flop=n_trained * probe.train_flop + n_evaluated * probe.evaluate_flop,
        seconds=n_trained * probe.train_s + n_evaluated * probe.evaluate_s,
    )


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Training samples of a seed that are saved against a pair for each N, trained from step 0."""

    n_separate: int  # an ideal and a real world for each N
    by_ideal: int  # one ideal world for all N
    by_prefix: int  # real worlds start at their forks


def saving(plan: Plan) -> Saving:
    """What a seed saves by sharing."""
    n_worlds, recipe = len(plan.n_samples), plan.recipe
    return Saving(
        n_separate=2 * n_worlds * recipe.n_draws,
        by_ideal=(n_worlds - 1) * recipe.n_draws,
        by_prefix=sum(map(plan.fork_step, plan.n_samples)) * recipe.batch_size,
    )


def n_states(plan: Plan) -> int:
    """The most whole states (weights, optimiser) that are on disk at once; seeds go one by one."""
    return N_STATES + len({plan.fork_step(n) for n in plan.n_samples if plan.forks(n)})


def n_kept(plan: Plan) -> int:
    """The most weights that a seed keeps on the way."""
    rule, worlds = plan.keep.checkpoints, (IDEAL, *map(real_name, plan.n_samples))
    if rule is None:
        return 0
    return sum(rule.most(plan.own_from(world), plan.recipe.n_steps) for world in worlds)


def results_bytes(plan: Plan) -> int:
    """What a seed's scores per test image take: a float16 and a byte each."""
    n_worlds = 1 + len(plan.n_samples)
    per_world = len(plan.grid) * plan.manifest.n("test") * 3
    return n_worlds * per_world if plan.keep.test_results else 0


def bytes_to_come(plan: Plan, seeds: Sequence[int], weights_bytes: int) -> int:
    """The most bytes that are still to be kept on request, given those of one model's weights."""
    worlds = (IDEAL, *map(real_name, plan.n_samples))
    n_there = sum(
        len(kept_steps(plan.folder / f"seed-{k}", world)) for k in seeds for world in worlds
    )
    n_to_come = max(len(seeds) * n_kept(plan) - n_there, 0)
    return n_to_come * weights_bytes + len(seeds) * results_bytes(plan)


def cost_lines(plan: Plan, n_seeds: int, probe: Probe) -> Iterator[str]:
    """What a whole pair takes: samples, operations, what sharing saves, disk, time."""
    yield f"{'per seed':<16} {'training samples':>17} {'evaluated samples':>18} {'FLOP':>10}"
    n_trained = n_evaluated = 0
    for cost in world_costs(plan):
        yield _cost_row(cost.world, cost.n_trained, cost.n_evaluated, probe)
        n_trained, n_evaluated = n_trained + cost.n_trained, n_evaluated + cost.n_evaluated
    total = n_seeds * n_trained, n_seeds * n_evaluated
    yield _cost_row(f"all, {n_seeds} seed{'s' if n_seeds > 1 else ''}", *total, probe)
    yield ""
    yield from _saving_lines(plan, n_seeds)
    states, kept = n_states(plan), n_seeds * n_kept(plan)
    n_final = n_seeds * (1 + len(plan.n_samples))
    yield _fact(
        "checkpoints", f"{_bytes(states * probe.state_bytes)} at most, while a seed is trained"
    )
    yield _fact("final weights", _bytes(n_final * probe.weights_bytes))
    if kept:
        yield _fact("kept weights", f"{_bytes(kept * probe.weights_bytes)}, {kept} files at most")
    if plan.keep.test_results:
        yield _fact("test results", _bytes(n_seeds * results_bytes(plan)))
    yield _fact("evaluation", _share_of_evaluation(*total, probe))
    seconds = total[0] * probe.train_s + total[1] * probe.evaluate_s
    yield _fact("time", f"about {duration(seconds)}, {_measured(probe)}")


def _share_of_evaluation(n_trained: int, n_evaluated: int, probe: Probe) -> str:
    """What part of all is evaluation, single steps included."""
    flop = n_evaluated * probe.evaluate_flop
    seconds = n_evaluated * probe.evaluate_s
    of_flop = flop / (flop + n_trained * probe.train_flop)
    of_time = seconds / (seconds + n_trained * probe.train_s)
    return f"{of_flop:.1%} of the operations, {of_time:.1%} of the time"


def _cost_row(name: str, n_trained: int, n_evaluated: int, probe: Probe) -> str:
    flop = n_trained * probe.train_flop + n_evaluated * probe.evaluate_flop
    return f"{name:<16} {n_trained:>17,} {n_evaluated:>18,} {si(flop):>10}"


def _saving_lines(plan: Plan, n_seeds: int) -> Iterator[str]:
    """Against a pair of its own for each N, both worlds from step 0."""
    saved = saving(plan)
    separate = f"{n_seeds * saved.n_separate:,} training samples"
    yield _fact("separate pairs", f"{separate}: an ideal and a real run for each N")
    for name, n in (("one ideal run", saved.by_ideal), ("shared prefixes", saved.by_prefix)):
        share = n / saved.n_separate
        yield _fact(name, f"saves {n_seeds * n:,} of them, {share:.1%}")


def _measured(probe: Probe) -> str:
    steps = "1 step" if probe.n_steps == 1 else f"{probe.n_steps} steps"
    eager = "; not compiled, as the run will be" if probe.is_eager else ""
    return (
        f"measured now: {steps} of {probe.batch_size}, {1e3 * probe.train_s:.3g} ms a training"
        f" sample, {1e3 * probe.evaluate_s:.3g} ms an evaluated one{eager}"
    )


def _fact(name: str, text: str) -> str:
    return f"{name:<16} {text}"


def si(value: float) -> str:
    """A number with a prefix of the SI: 1.23 T."""
    for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:,.0f}"


def _bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 12 min or 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"
