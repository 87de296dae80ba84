"""Trains on two ranks: `torchrun --nproc-per-node=2 ranks_child.py DATA OUT`.

Pairs go to OUT/global, OUT/local, OUT/stopped and OUT/nan; OUT/<rank>.json says what a rank saw.
"""

import json
import sys
from collections import deque
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load

import bootstrap.pair
from bootstrap.augment import CropFlip
from bootstrap.checkpoint import tensor_bytes
from bootstrap.errors import BootstrapError
from bootstrap.execution import Flags
from bootstrap.files import sha256_hex
from bootstrap.follow import follow
from bootstrap.forks import Control, SeedRun
from bootstrap.models import MLP, PreActResNet18
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.pool import Pool
from bootstrap.ranks import Ranks, joined
from bootstrap.recipe import Recipe
from bootstrap.train import train

FLAGS = Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)
RECIPE = Recipe(
    model=PreActResNet18(width=8),
    optimizer=SGD(lr=0.02, momentum=0.9),
    augmentation=CropFlip(padding_px=2),
    n_steps=20,
    batch_size=32,
    n_test_curve=65,  # not even, so that one rank scores more images
    every_step=True,
)
EXPLODING = replace(RECIPE, optimizer=SGD(lr=1e30), model=MLP(width=8, depth=1, batch_norm=False))
N = (1, 200)  # fewer than there are ranks; and no multiple of the batch


def after(n_calls):
    """Asks for a stop from so many questions on."""
    asked = []

    def is_interrupted():
        asked.append(None)
        return len(asked) > n_calls

    return is_interrupted


def pair(recipe, data, out, flags, ranks, is_interrupted=lambda: False):
    """A pair as the command line runs it; what stopped the first rank, if anything did."""
    if not ranks.is_first:
        return follow(recipe, data, flags=flags, ranks=ranks, is_interrupted=is_interrupted)
    control = Control(is_interrupted=is_interrupted)
    try:
        run_pair(recipe, data, out, n_samples=N, flags=flags, control=control, ranks=ranks)
    except BootstrapError as error:
        return f"{type(error).__name__}: {error}"
    return None


def state_hashes(data, out, flags, ranks):
    """What this rank's state is after ten steps, and after ten more from a state handed over."""
    plan = plan_pair(RECIPE, data, out, n_samples=N, flags=flags)
    with closing(Pool(data, "stream", plan.manifest)) as pool:
        run = SeedRun(plan=plan, seed=0, pool=pool, control=Control(), ranks=ranks)
        task, state = run.task(200, (200,)), run.state()
        deque(train(task, state, until_step=10))
        yield sha256_hex(tensor_bytes(state.tensors()))
        if not ranks.is_first:
            state = run.state((load(tensor_bytes(state.tensors())), {"state": state.meta()}))
        deque(train(task, state, until_step=20))
        yield sha256_hex(tensor_bytes(state.tensors()))


def main(data: Path, out: Path) -> None:
    with joined(FLAGS) as (ranks, flags):
        seen = {}
        local = replace(flags, bn="local")
        seen["global"] = pair(RECIPE, data, out / "global", flags, ranks)
        seen["local"] = pair(RECIPE, data, out / "local", local, ranks)
        for rank in (0, 1):
            is_interrupted = after(7) if ranks == Ranks(rank, 2) else lambda: False
            stopped = pair(RECIPE, data, out / "stopped", flags, ranks, is_interrupted)
            seen[f"stopped by {rank}"] = stopped
        seen["went on"] = pair(RECIPE, data, out / "stopped", flags, ranks)
        seen["nan"] = pair(EXPLODING, data, out / "nan", flags, ranks)
        seen["global states"] = list(state_hashes(data, out / "global", flags, ranks))
        seen["local states"] = list(state_hashes(data, out / "local", local, ranks))
        (out / f"{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    bootstrap.pair.write_figure = lambda run: ()  # the slowest part of a small pair
    main(Path(sys.argv[1]), Path(sys.argv[2]))
