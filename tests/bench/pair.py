"""What does a run cost here, and what as a plain PyTorch loop? `make bench-pair`.

Both do the same recipe on the same images; beside them stands the arithmetic of a step alone.
Nothing is run in full: a step and an evaluation are timed in turns, and multiplied by the plan's
steps and by each schedule's evaluations.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bootstrap.augment import CropFlip
from bootstrap.batch import to_unit_range
from bootstrap.dataset import collect_manifest
from bootstrap.environment import hardware
from bootstrap.execution import (
    Flags,
    Precision,
    Switch,
    has_compiler,
    n_cores,
    resolve_flags,
)
from bootstrap.forks import Control, SeedRun
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD
from bootstrap.plan import Plan
from bootstrap.pool import Pool
from bootstrap.recipe import Recipe
from bootstrap.shards import SPLIT_START, Columns, Manifest, publish_shard
from bootstrap.train import Task, TrainState, train
from bootstrap.worlds import BLOCK
from tests.bench.plain_loop import LR, MOMENTUM, PlainLoop, build_plain_loop, evaluated_steps

N_CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)
N_TOGETHER = 5  # steps timed as one, so that a GPU's queue is not emptied after each
MAX_WAITING = 0.05  # of a training step
Steps = Generator[None, int, None]  # takes as many steps as it is sent


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    width: int | None = None
    """of the ResNet-18; by default 16 on a CPU, 64 on CUDA"""
    batch_size: int = 128
    n_samples: int = 5_000
    n_test: int = 10_000
    n_steps: int = 39_000
    """of the plan; what is measured is below"""
    n_steps_measured: int = 20
    """a round, of each loop, after as many as the loaders prefetch"""
    n_rounds: int = 3
    """one full evaluation of each loop in each"""
    n_workers: int | None = None
    """of the plain loop's loaders; by default a core each, 4 at most as in the published code"""
    device: str = "auto"
    precision: Precision = "auto"
    compile: Switch = "auto"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two loops, and the seconds of its parts."""

    name: str
    execution: str
    steps: Callable[[], Steps]
    evaluate: Callable[[], object]
    n_images_evaluated: int
    n_evaluations: int
    step_times: list[float] = field(default_factory=list)
    evaluation_times: list[float] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """Median seconds of a training step."""
        return statistics.median(self.step_times)

    @property
    def evaluation_s(self) -> float:
        """Median seconds of a full evaluation."""
        return statistics.median(self.evaluation_times)

    def measure(self, n_steps: int, n_prefetched: int, device: torch.device) -> None:
        """Some steps, timed a few at a time, and one evaluation."""
        with closing(self.steps()) as steps:  # closing ends its loader's workers
            next(steps)
            advance(steps, n_prefetched)
            for _ in range(max(1, n_steps // N_TOGETHER)):
                together_s = seconds(partial(advance, steps, N_TOGETHER), device)
                self.step_times.append(together_s / N_TOGETHER)
        if self.n_evaluations:
            self.evaluation_times.append(seconds(self.evaluate, device))


def advance(steps: Steps, n: int) -> None:
    """Train for `n` steps."""
    steps.send(n)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, the device's work included."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def noise_columns(split: str, n: int) -> Columns:
    """Random pixels and labels: no speed here depends on what is in an image."""
    rng = np.random.default_rng(SPLIT_START[split])
    return Columns(
        images=rng.integers(0, 256, (n, *IMAGE_SHAPE), dtype=np.uint8),
        labels=rng.integers(0, N_CLASSES, n),
        ids=SPLIT_START[split] + np.arange(n),
    )


def write_noise(folder: Path, sizes: dict[str, int]) -> Manifest:
    """A data set of noise with one shard a split."""
    for split, n in sizes.items():
        publish_shard(folder, split, 0, noise_columns(split, n), N_CLASSES, {"source": "noise"})
    return collect_manifest(
        folder,
        name="noise",
        image_shape=IMAGE_SHAPE,
        class_names=tuple(f"class {k}" for k in range(N_CLASSES)),
        label_source="conditional",
        generator={"source": "noise"},
    )


def build_plan(options: Options, folder: Path, flags: Flags, width: int) -> Plan:
    """The real world of this recipe, on noise just long enough for it."""
    n_stream = -(-options.n_samples // BLOCK) * BLOCK
    recipe = Recipe(
        model=PreActResNet18(width=width),
        optimizer=SGD(lr=LR, momentum=MOMENTUM),
        augmentation=CropFlip(),
        n_steps=options.n_steps,
        batch_size=options.batch_size,
        n_test_curve=options.n_test,
    )
    return Plan(
        recipe=recipe,
        manifest=write_noise(folder, {"test": options.n_test, "stream": n_stream}),
        data=folder,
        folder=folder / "run",
        pool_n_samples=n_stream,
        n_samples=(options.n_samples,),
        flags=flags,
    )


def engine_side(task: Task, state: TrainState, plan: Plan) -> Side:
    """This engine: `train()` a step at a time, and its evaluation on the grid."""
    never = replace(task, grid=frozenset())

    def steps() -> Steps:
        n = yield
        while True:
            list(train(never, state, until_step=state.step + n))
            n = yield

    def evaluate() -> object:
        here = replace(task, grid=frozenset({state.step}))
        return next(iter(train(here, state, until_step=state.step + 1)))

    assert task.probes is not None
    mode = "compiled" if task.flags.compiled else "eager"
    return Side(
        name="this engine",
        execution=f"{task.flags.precision} {mode}",
        steps=steps,
        evaluate=evaluate,
        n_images_evaluated=len(task.test) + len(task.probes.batch),
        n_evaluations=len(plan.grid),
    )


def plain_side(loop: PlainLoop, plan: Plan) -> Side:
    """The baseline, with cuDNN's own search for fast convolutions as the published code has it."""

    def steps() -> Steps:
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=True)
        with flags, closing(loop.steps()) as one_by_one:
            n = yield
            while True:
                for _ in range(n):
                    next(one_by_one)
                n = yield

    def evaluate() -> object:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return loop.evaluate_all()

    return Side(
        name="plain loop",
        execution="fp32 eager",
        steps=steps,
        evaluate=evaluate,
        n_images_evaluated=loop.n_images_evaluated,
        n_evaluations=len(evaluated_steps(plan.recipe.n_steps)),
    )


def bare_side(plan: Plan, flags: Flags) -> Side:
    """The arithmetic of a training step alone: the same images each time, nothing else."""
    device = flags.torch_device
    model = plan.recipe.model.build(IMAGE_SHAPE, N_CLASSES)
    model = model.to(device).to(memory_format=torch.channels_last)
    if flags.compiled:
        model.compile(dynamic=False)
    optimizer = plan.recipe.optimizer.build(model.parameters())
    shape = (plan.recipe.batch_size, IMAGE_SHAPE[2], *IMAGE_SHAPE[:2])
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(x), device=device) % N_CLASSES

    def steps() -> Steps:
        n = yield
        while True:
            for _ in range(n):
                with flags.autocast():
                    logits = model(x)
                cross_entropy(logits.float(), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
            n = yield

    return Side(
        name="bare step",
        execution=f"{flags.precision} {'compiled' if flags.compiled else 'eager'}",
        steps=steps,
        evaluate=lambda: None,
        n_images_evaluated=0,
        n_evaluations=0,
    )


def input_s(task: Task, pool: Pool, n_steps: int) -> tuple[float, float]:
    """Mean seconds a step waits for its images, reading of files included, and to augment them."""
    device, mean, apply = (
        task.flags.torch_device,
        task.normalise.mean,
        task.recipe.augmentation.apply,
    )
    feed = replace(task.feed, pool=pool)  # without reading ahead
    waiting = [seconds(partial(feed.batch, step), device) for step in range(n_steps)]
    x = to_unit_range(feed.batch(0).images)
    augmenting = [seconds(partial(apply, x, mean, 0, step), device) for step in range(n_steps)]
    return statistics.mean(waiting), statistics.mean(augmenting)


def forward_flops(width: int) -> int:
    """Floating-point operations of the network on one image; a multiply-add counts as two."""
    model = PreActResNet18(width=width).build(IMAGE_SHAPE, N_CLASSES).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, IMAGE_SHAPE[2], *IMAGE_SHAPE[:2]))
    return counter.get_total_flops()


def peak_tflops(device: torch.device) -> float:
    """The best of several bf16 matrix products, TFLOP/s."""
    best = 0.0
    for side in (4_096, 8_192) if device.type == "cuda" else (1_024, 2_048):
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        times = [seconds(partial(torch.matmul, a, b), device) for _ in range(8)]
        best = max(best, 2 * side**3 / min(times) / 1e12)
    return best


def show(side: Side, options: Options, flops: int, peak: float) -> None:
    """Two lines of the table: training and evaluation."""
    kinds = [("train", side.step_s, options.batch_size, 3 * flops, options.n_steps)]
    if side.n_evaluations:
        n_images = side.n_images_evaluated
        kinds.append(("evaluate", side.evaluation_s, n_images, flops, side.n_evaluations))
    for kind, call_s, n_images, flops_per_image, n_calls in kinds:
        tflops = n_images * flops_per_image / call_s / 1e12
        print(
            f"{side.name:12} {side.execution:14} {kind:9} {call_s:9.4f} {n_images / call_s:9.0f}"
            f" {tflops:8.3f} {tflops / peak:6.0%} {n_calls:8,} {n_calls * call_s / 3600:8.2f}",
            flush=True,
        )


def show_ratios(plain: Side, ours: Side, n_steps: int) -> None:
    """How many times less time this engine takes."""
    rates = [s.n_images_evaluated / s.evaluation_s for s in (plain, ours)]
    training = [n_steps * s.step_s for s in (plain, ours)]
    evaluating = [s.n_evaluations * s.evaluation_s for s in (plain, ours)]
    both = [a + b for a, b in zip(training, evaluating, strict=True)]
    print(f"training: {training[0] / training[1]:.2f}x the images/s")
    print(
        f"evaluation: {evaluating[0] / evaluating[1]:.1f}x"
        f" ({rates[1] / rates[0]:.2f}x the images/s, {plain.n_evaluations} evaluations"
        f" against {ours.n_evaluations})"
    )
    shares = [e / b for e, b in zip(evaluating, both, strict=True)]
    print(
        f"a whole run: {both[0] / both[1]:.1f}x"
        f" (evaluation is {shares[0]:.0%} of the plain loop, {shares[1]:.0%} of this engine)"
    )


def main() -> None:
    """Print the table, the ratios and how long training waits for data."""
    options = tyro.cli(Options, prog="make bench-pair")
    flags = resolve_flags(
        options.device,
        options.precision,
        options.compile,
        n_images=options.n_steps * options.batch_size,
    )
    flags.apply()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, flags, Path(folder))


def measure(options: Options, flags: Flags, folder: Path) -> None:
    """Both loops on one data set, in turns."""
    started, device = time.perf_counter(), flags.torch_device
    width = options.width or (64 if device.type == "cuda" else 16)
    n_workers = min(4, n_cores()) if options.n_workers is None else options.n_workers
    plan = build_plan(options, folder, flags, width)
    with closing(Pool(folder, "stream", plan.manifest)) as pool:
        run = SeedRun(plan=plan, seed=0, pool=pool, control=Control())
        task, state = run.task(options.n_samples, (options.n_samples,)), run.state()
        train_ids = task.feed.order.ids(np.arange(options.n_samples))
        loop = build_plain_loop(
            plan.recipe.model.build(IMAGE_SHAPE, N_CLASSES),
            pool.rows(train_ids),
            Pool(folder, "test", plan.manifest).first(options.n_test),
            plan.manifest,
            device,
            n_steps=options.n_steps,
            batch_size=options.batch_size,
            n_workers=n_workers,
        )
        plain, ours = plain_side(loop, plan), engine_side(task, state, plan)
        peak, flops = peak_tflops(device), forward_flops(width)
        print(
            f"{hardware(flags.device)}, torch {torch.__version__}, {flags.n_threads} threads,"
            f" {n_workers} loader workers; best bf16 matrix product {peak:.2f} TFLOP/s"
        )
        print(
            f"ResNet-18 width {width}, {flops / 1e9:.3f} GFLOP forward, batch {options.batch_size},"
            f" crop and flip, N = {options.n_samples:,}, {options.n_test:,} test images"
        )
        bare = [
            bare_side(plan, replace(flags, compiled=c)) for c in (False, True)[: 1 + has_compiler()]
        ]
        loop.evaluate(islice(loop.test_loader, 2))  # first calls are slower
        ours.evaluate()
        for _ in range(options.n_rounds):
            for side in (plain, ours, *bare):
                side.measure(options.n_steps_measured, 1 + 2 * n_workers, device)
    with closing(Pool(folder, "stream", plan.manifest)) as cold:
        waiting_s, augmenting_s = input_s(task, cold, options.n_steps_measured)
    print(
        f"{'loop':12} {'execution':14} {'part':9} {'s a call':>9} {'images/s':>9}"
        f" {'TFLOP/s':>8} {'peak':>6} {'calls':>8} {'hours':>8}"
    )
    for side in (plain, ours, *bare):
        show(side, options, flops, peak)
    show_ratios(plain, ours, options.n_steps)
    of_bare = ", ".join(f"{b.step_s / ours.step_s:.2f}x the {b.execution}" for b in bare)
    print(f"training against the bare step: {of_bare} one")
    print(
        f"of a training step of this engine, {waiting_s / ours.step_s:.2%} waits for data"
        f" ({'below' if waiting_s < MAX_WAITING * ours.step_s else 'NOT below'}"
        f" {MAX_WAITING:.0%}), {augmenting_s / ours.step_s:.1%} augments"
    )
    print(f"measured in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
