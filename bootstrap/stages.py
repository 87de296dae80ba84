"""What a figure needs before its pairs: weights to start from, learning rates.

Weights go to `<out>/pretrained/<method>-<hash>.safetensors`, named after all that decides them, so
that figures share them and none is in another's way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from bootstrap.cost import duration, si
from bootstrap.errors import Interrupted, NotEnoughData
from bootstrap.execution import Flags
from bootstrap.explanation import lr_line
from bootstrap.files import canonical_json, sha256_hex
from bootstrap.grid import Sweep, Words, build_options
from bootstrap.locks import Held
from bootstrap.options import CompareOptions, SweepRun
from bootstrap.pick_lr import Picking, pick_lr
from bootstrap.plan import Plan
from bootstrap.presets.figure import Figure, Point, Pretraining
from bootstrap.pretexts import METHODS
from bootstrap.pretrained import read_pretrained
from bootstrap.pretraining import Corpus, Step, Watch, pretrain
from bootstrap.pretraining import Job as PretrainingJob
from bootstrap.probe import probe
from bootstrap.progress import bar_settings
from bootstrap.shards import read_manifest
from bootstrap.signals import deadline_of
from bootstrap.spec import parse_spec
from bootstrap.sweep import Job, build_jobs, default_words

IsStopped = Callable[[], bool]
UNNAMED = Path("weights-to-come")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What comes before a point's pairs."""

    point: Point
    options: SweepRun

    @property
    def words(self) -> Words:
        """Those of the point, on the defaults of the sweep."""
        return {**default_words(self.options), **self.point.words}

    @cached_property
    def asked(self) -> CompareOptions:
        """The pair as it is without this stage."""
        return build_options(self.words)

    @cached_property
    def flags(self) -> Flags:
        """How the pair is executed."""
        return self.asked.execution.resolve("classifier", self.asked.recipe.n_draws)

    @cached_property
    def pretraining(self) -> PretrainingJob:
        """What makes the weights."""
        init = self.point.init
        assert init is not None, "the point starts from scratch"
        asked = build_options({**self.words, **init.words})
        return PretrainingJob(
            recipe=asked.recipe,
            method=parse_spec(init.method, METHODS, "method", may_import=False),
            corpus=Corpus(data=asked.data_folder, n_samples=init.n_images),
            flags=asked.execution.resolve("classifier", asked.recipe.n_draws),
        )

    @cached_property
    def weights(self) -> Path | None:
        """Where they are, or will be; None for a point from scratch."""
        if self.point.init is None:
            return None
        card = canonical_json(self.pretraining.card(self.point.init.n_images))
        name = f"{self.point.init.method.partition('(')[0]}-{sha256_hex(card.encode())[:8]}"
        return self.options.out / "pretrained" / f"{name}.safetensors"

    @property
    def is_made(self) -> bool:
        """Whether the weights are there, or none are needed."""
        try:
            return self.weights is None or self.weights.exists()
        except NotEnoughData:  # nor are the images that they are made from
            return False

    @property
    def n_pick_steps(self) -> int:
        """How long a learning rate is tried, as by `compare --pick-lr`."""
        return max(self.asked.recipe.n_steps // 4, 1)

    def picking(self) -> Picking:
        """What is tried to find the learning rate; the weights must be there."""
        asked, weights = self.asked, self.weights
        return Picking(
            recipe=asked.recipe,
            data=asked.data_folder,
            values=self.point.pick_lr,
            n_samples=max(asked.n_samples),
            n_steps=self.n_pick_steps,
            flags=self.flags,
            init=read_pretrained(weights) if weights else None,
        )

    def ready(self, lr: float | None) -> Point:
        """The point as words that say all."""
        init = {"init": str(self.weights)} if self.weights else {}
        rate = {} if lr is None else {"optimizer.lr": lr}
        return Point(label=self.point.label, words={**self.point.words, **init, **rate})


def prepared(
    figure: Figure, options: SweepRun, is_stopped: IsStopped
) -> Generator[str, None, Figure]:
    """Make the weights and pick the rates that a figure's points ask for; yields lines for people.

    Returns the figure with points that have them. What is there is not made again; Interrupted
    when asked to stop, and the same call goes on.
    """
    deadline = deadline_of(options.max_minutes)

    def is_over() -> bool:
        return is_stopped() or time.monotonic() > deadline

    points = []
    for point in figure.points:
        stage = Stage(point=point, options=options)
        if stage.weights is not None and not stage.is_made:
            _pretrain(stage, is_over)
            yield f"{stage.weights}: made"
        lr = None
        if point.pick_lr:
            picking = stage.picking()
            pick = picking.read(options.out) or pick_lr(picking, options.out, is_over)
            yield f"{point.label}: {lr_line(pick)}"
            lr = pick["lr"]
        points.append(stage.ready(lr))
    return replace(figure, points=tuple(points))


def _pretrain(stage: Stage, is_over: IsStopped) -> None:
    job = stage.pretraining
    assert stage.weights is not None, "the point starts from scratch"
    with tqdm(total=job.recipe.n_steps, unit="steps", **bar_settings()) as bar:

        def on_step(step: Step) -> None:
            bar.update(step.step + 1 - bar.n)

        try:
            pretrain(job, stage.weights, Watch(on_step=on_step, is_interrupted=is_over))
        except Held as error:  # another part of a job array
            raise Interrupted(f"the same command goes on once they are made: {error}") from None


# ---------------------------------------------------------------- what it takes


class Unnamed(Job):
    """A pair whose name depends on weights or a learning rate that are still to come."""

    @cached_property
    def plan(self) -> Plan:
        """As of the pair from scratch."""
        return replace(super().plan, folder=UNNAMED)


def expected_jobs(figure: Figure, options: SweepRun) -> tuple[Job, ...]:
    """The pairs of a figure as far as they can be known before its stages are run."""
    ready: list[Point] = []
    rest: list[Point] = []
    for point in figure.points:
        stage = Stage(point=point, options=options)
        lr = None
        if stage.is_made and point.pick_lr:
            lr = (stage.picking().read(options.out) or {}).get("lr")
        is_known = stage.is_made and (lr is not None or not point.pick_lr)
        (ready if is_known else rest).append(stage.ready(lr) if is_known else point)
    jobs = build_jobs(Sweep(points=tuple(point.words for point in ready)), options)
    for point in rest:
        found = build_jobs(Sweep(points=(point.words,)), options)
        jobs += tuple(Unnamed(options=job.options, flags=job.flags) for job in found)
    return jobs


def stage_lines(figure: Figure, options: SweepRun) -> Iterator[str]:
    """What comes before the pairs, with operations and time as those of training steps."""
    told: list[Pretraining] = []
    for point in figure.points:
        stage = Stage(point=point, options=options)
        job = Unnamed(options=replace(stage.asked, out=options.out), flags=stage.flags)
        if point.init is not None and not stage.is_made and point.init not in told:
            n_there = read_manifest(stage.asked.data_folder).n("pretrain")
            if n_there < point.init.n_images and not told:
                yield f"{point.init.n_images:,} images of the split `pretrain` are drawn first"
            told.append(point.init)
            recipe = build_options({**stage.words, **point.init.words}).recipe
            yield _cost_line(f"pre-training, {point.label}", recipe.n_draws, job)
        if point.pick_lr and not (stage.is_made and stage.picking().read(options.out)):
            n = len(point.pick_lr) * stage.n_pick_steps * stage.asked.recipe.batch_size
            yield _cost_line(f"picking a learning rate, {point.label}", n, job)


def _cost_line(what: str, n: int, job: Job) -> str:
    found = probe(job.plan, job.seeds[0])
    return (
        f"{what}: {n:,} samples, about {si(n * found.train_flop)} FLOP,"
        f" {duration(n * found.train_s)}; before the pairs"
    )
