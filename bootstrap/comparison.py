"""compare: from its options to a finished pair; yields results, and says progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bootstrap.cost import cost_lines
from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags
from bootstrap.explanation import lr_line
from bootstrap.forks import Control
from bootstrap.options import CompareOptions, parse_seeds
from bootstrap.pair import run_pair
from bootstrap.pick_lr import Picking, pick_lr, with_lr
from bootstrap.plan import plan_pair
from bootstrap.pretrained import Pretrained, read_pretrained
from bootstrap.probe import probe
from bootstrap.progress import Progress, summary_lines
from bootstrap.ranks import Ranks
from bootstrap.recipe import TABLES, Recipe
from bootstrap.signals import StopRequest, deadline_of
from bootstrap.sinks import Sinks, parse_sinks
from bootstrap.spec import format_spec

Say = Callable[[str], None]


def run_compare(options: CompareOptions, flags: Flags, ranks: Ranks, say: Say) -> Iterator[str]:
    """Train both worlds, or say what that takes; on the first of the ranks."""
    seeds, openers = parse_seeds(options.seeds), parse_sinks(options.sink)
    recipe, pick = options.recipe, None
    init = read_pretrained(options.init) if options.init else None
    if options.pick_lr:
        recipe, pick = picked(options, flags, init, ranks, say)
    what: dict[str, Any] = {
        "n_samples": options.n_samples,
        "flags": flags,
        "preset": options.preset,
        "allow_reuse": options.allow_reuse,
        "keep": options.keep,
        "init": init,
        "overwrite": options.overwrite,
    }
    plan = plan_pair(recipe, options.data_folder, options.out, **what)
    say(f"{plan.folder}: N = {', '.join(f'{n:,}' for n in plan.n_samples)}, seeds {options.seeds}")
    say(
        f"{format_spec(recipe.model, TABLES['model'])},"
        f" {recipe.n_steps:,} steps of {recipe.batch_size}"
        + "".join(f", {choice}" for choice in recipe.to_json().get("choices", ()))
    )
    if init is not None:
        say(f"both worlds start from {init.path}, pre-trained by {init.card['method']}")
    say(flags.describe())
    was_complete = plan.is_done(seeds)
    if options.dry_run:
        if was_complete:
            say("it is complete, and would be left alone; as a whole it takes")
        yield from cost_lines(plan, len(seeds), probe(plan, seeds[0]))
        return
    deadline = deadline_of(options.max_minutes)
    with (
        StopRequest(say) as stop,
        Progress(plan, seeds) as progress,
        Sinks(plan.folder, openers) as sinks,
    ):
        control = Control(
            on_record=progress.on_record,
            on_row=sinks.on_row,
            is_interrupted=lambda: stop.is_requested() or time.monotonic() > deadline,
        )
        folder = run_pair(
            *(recipe, options.data_folder, options.out),
            **what,
            seeds=seeds,
            lr_pick=pick,
            control=control,
            ranks=ranks,
        )
    if was_complete:
        yield f"{folder} was complete; nothing to do"
    yield from summary_lines(folder)


def picked(
    options: CompareOptions, flags: Flags, init: Pretrained | None, ranks: Ranks, say: Say
) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe with the best learning rate, and how it was found; a dry run trains none."""
    if ranks.n > 1:
        raise ConfigurationError("--pick-lr and torchrun: pick in one process, then give the rate")
    picking = Picking(
        recipe=options.recipe,
        data=options.data_folder,
        values=options.pick_lr,
        n_samples=max(options.n_samples, default=0),
        n_steps=options.pick_lr_steps or max(options.recipe.n_steps // 4, 1),
        flags=flags,
        init=init,
    )
    known = picking.read(options.out)
    if known is None and options.dry_run:
        say(
            f"--pick-lr would first train {len(picking.values)} real worlds of"
            f" {picking.n_steps:,} steps; the rest is for lr {options.recipe.optimizer.lr:g}"
        )
        return options.recipe, None
    deadline = deadline_of(options.max_minutes)
    with StopRequest(say) as stop:
        pick = known or pick_lr(
            picking, options.out, lambda: stop.is_requested() or time.monotonic() > deadline
        )
    say(lr_line(pick))
    return with_lr(options.recipe, pick["lr"]), pick
