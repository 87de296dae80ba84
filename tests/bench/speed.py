"""How fast is this machine? Training, evaluation and sampling, images/s: `make bench`.

Each line is the median of several calls after the first (which compiles). Not a test: nothing here
passes or fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.environment import hardware
from bootstrap.evaluate import CHUNK, evaluate
from bootstrap.execution import Flags, resolve_flags
from bootstrap.models import PreActResNet18
from generators.denoiser import DenoiserConfig, build_denoiser
from generators.sample import SAMPLE_BATCH, SamplerConfig, solve


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    width: int = 16
    batch_size: int = 64
    n_calls: int = 12
    weights: Path | None = None
    device: str = "auto"


def median_s(call: Callable[[], object], n_calls: int) -> float:
    """Seconds of one call, after two to warm up."""
    times = []
    for _ in range(n_calls + 2):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def random_batch(n: int, device: torch.device) -> Batch:
    """Noise images with random labels."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)).to(device)
    labels = torch.from_numpy(rng.integers(0, 10, n)).to(device)
    return Batch(images=images, labels=labels, ids=np.arange(n))


def bench_classifier(options: Options, flags: Flags) -> tuple[float, float]:
    """Training and evaluation of a ResNet, images/s."""
    device = flags.torch_device
    torch._dynamo.reset()
    model = PreActResNet18(width=options.width).build((32, 32, 3), 10)
    model = model.to(device, memory_format=torch.channels_last)
    if flags.compiled:
        model.compile(dynamic=False)
    normalise = Normalisation.of((0.5,) * 3, (0.25,) * 3, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch, test = random_batch(options.batch_size, device), random_batch(CHUNK, device)

    def step() -> None:
        with flags.autocast():
            logits = model(normalise(to_unit_range(batch.images)))
        torch.nn.functional.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    train_s = median_s(step, options.n_calls)
    test_s = median_s(lambda: evaluate(model, test, normalise, flags), options.n_calls // 2)
    return options.batch_size / train_s, CHUNK / test_s


def bench_sampler(options: Options, flags: Flags) -> float:
    """Function evaluations of the denoiser, images/s (its cost does not depend on its weights)."""
    device = flags.torch_device
    torch._dynamo.reset()
    denoiser = build_denoiser(DenoiserConfig(), seed=0).to(device).eval()
    if flags.compiled:
        denoiser.compile(dynamic=False)
    config = SamplerConfig(solver="dpm++", n_steps=4)
    noise = torch.randn(SAMPLE_BATCH, 3, 32, 32, device=device)
    labels = torch.zeros(SAMPLE_BATCH, dtype=torch.int64, device=device)
    seconds = median_s(lambda: solve(denoiser, noise, labels, config, flags), options.n_calls // 3)
    return SAMPLE_BATCH * config.nfe / seconds


def main() -> None:
    """Print a table: rows are ways to execute, columns are images/s."""
    options = tyro.cli(Options, prog="make bench")
    base = resolve_flags(options.device, "auto", "on")
    base.apply()
    print(f"{hardware(base.device)}, torch {torch.__version__}, {base.n_threads} threads")
    print(
        f"ResNet-18 width {options.width}, batch {options.batch_size};"
        f" denoiser {DenoiserConfig().widths}"
    )
    print(f"{'execution':>16} {'train':>8} {'evaluate':>9} {'denoise':>8}   images/s")
    ways = [replace(base, compiled=False), base, replace(base, precision="fp32", compiled=False)]
    for flags in dict.fromkeys(ways):
        train, test = bench_classifier(options, flags)
        denoise = bench_sampler(options, flags)
        name = f"{flags.precision} {'compiled' if flags.compiled else 'eager'}"
        print(f"{name:>16} {train:8.0f} {test:9.0f} {denoise:8.0f}", flush=True)


if __name__ == "__main__":
    main()
