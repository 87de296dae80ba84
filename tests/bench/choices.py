"""What does a step cost with each design choice? `make bench-choices`.

Operations are counted, against the multiple of a plain step that the method's definition gives
(forward 1, backward to activations 1, to weights 1, of 3); wall time is measured beside them, steps
with the choice and as many without, in turns. Exit code 1 if a count is more than a fifth off.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from bootstrap.environment import hardware
from bootstrap.execution import Flags, Precision, resolve_flags
from bootstrap.forks import Control, SeedRun
from bootstrap.interventions import INTERVENTIONS, Choice, step_cost
from bootstrap.interventions.pruning import Pruning
from bootstrap.interventions.scores import Scores
from bootstrap.interventions.spurious import Spurious
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD
from bootstrap.plan import Plan
from bootstrap.pretrained import write_pretrained
from bootstrap.recipe import Recipe
from bootstrap.shards import Manifest
from bootstrap.train import Task, TrainState, train
from tests.bench.pair import seconds, write_noise

TOLERANCE = 0.2
N_STREAM = 16_384
MULTIPLES = {  # those of all others are 1
    "gradient_penalty": 2.0,  # the definition allows 2 to 3
    "jacobian_penalty": 2.0,  # likewise
    "fgm": 5 / 3,
    "fgsm": 5 / 3,
    "pgd": 23 / 3,  # of 10 moves
    "vat": 8 / 3,
    "sam": 2.0,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    width: int = 8
    """of the ResNet-18"""
    batch_size: int = 64
    n_steps: int = 2
    """timed at once"""
    n_rounds: int = 3
    """of timing; 0 only counts"""
    only: tuple[str, ...] = ()
    """choices; by default all"""
    device: str = "auto"
    precision: Precision = "fp32"


def all_choices(folder: Path, recipe: Recipe, manifest: Manifest) -> dict[str, tuple[Choice, ...]]:
    """Every choice at its defaults, with what provides the columns that it needs."""
    rng = np.random.default_rng(0)
    scores = folder / "scores.npz"
    found = Scores(scores=rng.random((1, N_STREAM)), reference=rng.random((1, 512)))
    scores.write_bytes(found.to_bytes())
    model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    weights = write_pretrained(folder / "w.safetensors", model, recipe, {"method": "none"})
    choices: dict[str, tuple[Choice, ...]] = {}
    for name, cls in INTERVENTIONS.items():
        words = {"scores": str(scores)} if issubclass(cls, Pruning) else {}
        words = {"weights": str(weights)} if name == "pretraining" else words
        beside = (Spurious(size_px=0),) if name.startswith("error_by") else ()
        choices[name] = (*beside, cls(**words))
    return choices


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A world with a choice, that takes a few steps when asked."""

    task: Task
    state: TrainState

    def take(self, n: int) -> None:
        """Train for `n` steps."""
        for _ in train(self.task, self.state, until_step=self.state.step + n):
            pass

    def flops(self) -> int:
        """Operations of one step."""
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = OneModule()
        with counter:
            self.take(1)
        return int(counter.get_total_flops())


class OneModule(nullcontext):  # type: ignore[type-arg]
    """Counts without telling layers apart, which gradients to images do not allow."""

    parents = frozenset({"Global"})


def build_runner(recipe: Recipe, manifest: Manifest, folder: Path, flags: Flags) -> Runner:
    """The ideal world of a recipe on noise, without evaluations."""
    plan = Plan(
        recipe=recipe,
        manifest=manifest,
        data=folder,
        folder=folder / "run",
        pool_n_samples=manifest.n_stream,
        n_samples=(512,),
        flags=flags,
    )
    run = SeedRun(plan=plan, seed=0, pool=plan.pool("stream"), control=Control())
    task = replace(run.task(1_024, ()), grid=frozenset())
    return Runner(task=task, state=run.state())


def main() -> None:
    """Print a row for every choice."""
    options = tyro.cli(Options, prog="make bench-choices")
    flags = resolve_flags(options.device, options.precision, "off", n_images=1)
    flags.apply()
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(measure(options, flags, Path(folder)))


def measure(options: Options, flags: Flags, folder: Path) -> int:
    """1 if a count is off."""
    recipe = Recipe(
        model=PreActResNet18(width=options.width),
        optimizer=SGD(lr=0.01, momentum=0.9),
        n_steps=10_000,
        batch_size=options.batch_size,
        n_test_curve=64,
    )
    manifest = write_noise(folder, {"test": 64, "stream": N_STREAM})
    plain = build_runner(recipe, manifest, folder, flags)
    device = flags.torch_device
    with closing(plain.task.feed.pool):
        plain.take(1)
        flops = plain.flops()
        print(
            f"{hardware(flags.device)}, torch {torch.__version__}, {flags.describe()}; ResNet-18"
            f" width {options.width}, batch {options.batch_size}: {flops / 1e9:.1f} GFLOP a step\n"
        )
        print("| choice | operations, counted | by definition | declared | wall time |")
        print("|---|---|---|---|---|")
        n_off = 0
        for name, choices in all_choices(folder, recipe, manifest).items():
            if options.only and name not in options.only:
                continue
            own = build_runner(replace(recipe, choices=choices), manifest, folder, flags)
            with closing(own.task.feed.pool):
                counted = own.flops() / flops
                own.take(min(options.n_rounds, 1))  # the first steps prepare much
                ratios = []
                for _ in range(options.n_rounds):
                    times = [
                        seconds(partial(runner.take, options.n_steps), device)
                        for runner in (own, plain)
                    ]
                    ratios.append(times[0] / times[1])
            wall = f"{statistics.median(ratios):.2f}" if ratios else "-"
            expected = MULTIPLES.get(name, 1.0)
            is_off = abs(counted / expected - 1) > TOLERANCE
            n_off += is_off
            print(
                f"| `{name}` | {counted:.2f}{' (off)' if is_off else ''} | {expected:.2f} |"
                f" {step_cost(choices):.2f} | {wall} |",
                flush=True,
            )
    print(f"\n{n_off} counts are more than {TOLERANCE:.0%} off")
    return int(n_off > 0)


if __name__ == "__main__":
    main()
