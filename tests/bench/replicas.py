"""From which size on does stacking models stop to pay? `make bench-replicas`.

For each model: training images/s of one alone and of several stacked, medians of alternating
rounds, and the operations of a step, by which `--replicas auto` decides. Not a test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import tyro
from torch.nn.functional import cross_entropy

from bootstrap.environment import hardware
from bootstrap.execution import Flags, resolve_flags
from bootstrap.models import MODELS as KNOWN
from bootstrap.recipe import Recipe
from bootstrap.replicas import step_flop
from bootstrap.spec import parse_spec
from bootstrap.stacked import Seat, run_stacked

MODELS = (
    *("mlp(width=64, depth=2)", "mlp(width=512, depth=5)", "mcnn(width=8)"),
    *(
        "preresnet18(width=4)",
        "preresnet18(width=8)",
        "preresnet18(width=16)",
        "vit(patch=8, width=96, depth=4, heads=3)",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    models: tuple[str, ...] = MODELS
    replicas: int = 4
    batch_size: int = 64
    n_steps: int = 12
    n_rounds: int = 5
    device: str = "auto"


def train(name: str, n_steps: int, batch_size: int, flags: Flags, seat: Seat | None = None) -> None:
    """A few steps of one model on noise, alone or in its seat."""
    device = flags.torch_device
    model = parse_spec(name, KNOWN, "model").build((32, 32, 3), 10)
    model = model.to(device, memory_format=torch.channels_last)
    if seat is not None:
        seat.take(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % 10
    for _ in range(n_steps):
        if seat is None:
            with flags.autocast():
                logits = model(x)
            cross_entropy(logits.float(), labels).backward()
        else:
            seat.differentiate(model, x, labels)
        optimizer.step()
        optimizer.zero_grad()


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Print a table: rows are models, in order."""
    options = tyro.cli(Options, prog="make bench-replicas")
    flags = replace(resolve_flags(options.device), compiled=False)
    flags.apply()
    n, together = options.n_steps, flags.stacked(options.replicas)
    print(f"{hardware(flags.device)}, torch {torch.__version__}, {flags.describe()}")
    print(
        f"{'model':>24} {'GFLOP/step':>11} {'alone':>8} {f'{options.replicas} stacked':>10}  ratio"
    )
    for name in options.models:
        one = partial(train, name, n, options.batch_size, flags)
        jobs = [lambda seat, one=one: one(seat=seat) for _ in range(options.replicas)]
        one(), run_stacked(jobs, together)
        alone, stacked = [], []
        for _ in range(options.n_rounds):
            alone.append(options.replicas * seconds(one))
            stacked.append(seconds(lambda jobs=jobs: run_stacked(jobs, together)))
        n_images = options.replicas * n * options.batch_size
        a, s = (n_images / statistics.median(times) for times in (alone, stacked))
        recipe = Recipe(model=parse_spec(name, KNOWN, "model"), batch_size=options.batch_size)
        flop = step_flop(recipe, (32, 32, 3), 10)
        print(f"{name:>24} {flop / 1e9:11.2f} {a:8.0f} {s:10.0f} {s / a:6.2f}", flush=True)


if __name__ == "__main__":
    main()
