"""Scores of the stream's samples, by which they are pruned: from models that are trained for it.

What the models are trained on is the meaning of the scores:

    shared   the first half of `reference`, used again and again: one set of scores for both worlds
    oracle   `pretrain`, every sample once: what a learner that never repeats a sample finds hard
    own      the first N samples of a seed's order, as the real world; the ideal one comes after

Thresholds are those of other samples of `reference`, so that the stream is filtered by what is
rare in the population and not by what a model has learned by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bootstrap import files
from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.errors import ConfigurationError, DataError, NotEnoughData, NumericError
from bootstrap.example_scores import SCORES
from bootstrap.execution import Flags
from bootstrap.filtered import kept_of
from bootstrap.interventions.by_id import uniforms_by_id
from bootstrap.interventions.pruning import condition_texts
from bootstrap.interventions.scores import MEANINGS, OWN, Scores, read_scores
from bootstrap.plan import Plan
from bootstrap.pool import Pool
from bootstrap.randomness import Stream, torch_seed
from bootstrap.recipe import Recipe
from bootstrap.shards import Columns, Manifest, read_manifest
from bootstrap.worlds import BLOCK, World

FORGETTING = "forgetting_score"
METHODS = (*SCORES, FORGETTING)
CHUNK = 256  # images a forward pass
FIRST_SEED = 1 << 40  # of the scoring models; those of pairs are small
N_EVALUATIONS = 20  # at which forgetting is counted
TIE = 1e-3  # less than two mean counts differ by
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """What is scored, by models of this recipe; its choices are conditions of the data alone."""

    recipe: Recipe
    data: Path
    method: str = "el2n"
    meaning: str = "shared"
    n_runs: int = 4
    n_own: int = 0  # the N of `own`
    seeds: tuple[int, ...] = ()  # of `own`
    flags: Flags

    def __post_init__(self) -> None:
        for what, given, known in (
            ("method", self.method, METHODS),
            ("meaning", self.meaning, MEANINGS),
        ):
            if given not in known:
                raise ConfigurationError(f"--{what} {given}: use one of {', '.join(known)}")
        if self.n_runs < 1:
            raise ConfigurationError(f"--n-runs {self.n_runs}: give at least one")
        if (self.meaning == OWN) != bool(self.n_own and self.seeds):
            raise ConfigurationError(
                "--n-own and --seeds are the N and the seeds of the runs whose own samples are"
                " scored: give both with --meaning own, and neither without it"
            )
        if len(condition_texts(self.recipe)) < len(self.recipe.choices):
            raise ConfigurationError(
                "--choices: scoring models are trained plainly; give conditions of the data only"
            )

    @cached_property
    def manifest(self) -> Manifest:
        """Of the data."""
        return read_manifest(self.data)

    @cached_property
    def plan(self) -> Plan:
        """Where the samples are, under the conditions."""
        return Plan(
            recipe=self.recipe,
            manifest=self.manifest,
            data=self.data,
            folder=Path(),
            pool_n_samples=self.manifest.n_stream,
            n_samples=(self.n_own or 1,),
            flags=self.flags,
        )

    @property
    def n_trained(self) -> int:
        """Samples that are trained on in all."""
        return max(len(self.seeds), 1) * self.n_runs * self.recipe.n_draws


def score_stream(job: ScoringJob, path: Path, say: Say = lambda line: None) -> Scores:
    """Train the scoring models, score the stream, and write the file; returns its content.

    Until then the scores of each model are in a file beside it, from which a stopped call goes on.
    NotEnoughData if a split is too small for the meaning; NumericError if a loss is not finite.
    """
    job.flags.apply()
    reference_ids = _reference(job)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    own = []
    for seed in job.seeds or (None,):
        split, ids = _training_ids(job, seed)
        own.append(ids if job.meaning == OWN else ids[:0])
        first = len(rows) * job.n_runs
        scorers = [
            Scorer(job=job, split=split, ids=ids, number=first + run) for run in range(job.n_runs)
        ]
        rows.append(_mean_scores(scorers, reference_ids, path, say))
    found = Scores(
        scores=np.stack([stream for stream, _ in rows]).astype(np.float32),
        reference=np.stack([sample for _, sample in rows]).astype(np.float32),
        seeds=np.array(job.seeds, dtype=np.int64),
        own_ids=np.stack(own),
        card=_card(job),
    )
    files.replace(path, found.to_bytes())
    for number in range(len(rows) * job.n_runs):
        model_path(path, number).unlink(missing_ok=True)
    return found


def model_path(path: Path, number: int) -> Path:
    """Where the scores of one model are until `path` has those of all."""
    return path.with_name(f"{path.name}.model-{number}")


def _reference(job: ScoringJob) -> Int[np.ndarray, " n"]:
    """The ids of the samples whose scores are thresholds: half of `reference` or all of it."""
    n = job.manifest.n("reference")
    if n < 2:
        raise NotEnoughData(
            f"{job.data}: there is no split `reference`, whose scores are the thresholds; generate"
            " or import one"
        )
    ids = _ids_of(job, "reference")
    return ids[len(ids) // 2 :] if job.meaning == "shared" else ids


def _ids_of(job: ScoringJob, split: str) -> Int[np.ndarray, " n"]:
    """The ids of a split that the conditions leave in it."""
    with closing(Pool(job.data, split, job.manifest)) as pool:
        return pool.start + np.flatnonzero(kept_of(pool, job.recipe.choices, pool.n))


def _training_ids(job: ScoringJob, seed: int | None) -> tuple[str, Int[np.ndarray, " n"]]:
    """The split, and the ids in it, that the models are trained on."""
    if seed is not None:
        return "stream", job.plan.order(seed).ids(np.arange(job.n_own))
    split = {"shared": "reference", "oracle": "pretrain"}[job.meaning]
    ids = _ids_of(job, split) if job.manifest.n(split) else np.zeros(0, dtype=np.int64)
    n, needed = len(ids), job.recipe.n_draws if job.meaning == "oracle" else 2
    if n < needed:
        raise NotEnoughData(
            f"{job.data}: the split {split} holds {n:,} samples, {needed:,} are needed to see each"
            f" once; `deep-bootstrap generate --n-pretrain {-(-needed // BLOCK) * BLOCK}` makes"
            " them, or lower --n-steps"
        )
    return split, ids[: n // 2] if job.meaning == "shared" else ids


def _mean_scores(
    scorers: Sequence[Scorer], reference_ids: Int[np.ndarray, " n"], path: Path, say: Say
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The scores of the stream and of the reference sample, means over models."""
    sums: list[np.ndarray] = []
    for scorer in scorers:
        found = scorer.scores(model_path(path, scorer.number), say)
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    stream, reference = (total / len(scorers) for total in sums)
    with closing(scorers[0].job.plan.pool("reference")) as pool:
        reference = reference[reference_ids - pool.start]
    return stream, reference


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """One model that scores, and the samples of a split that it is trained on."""

    job: ScoringJob
    split: str
    ids: Int[np.ndarray, " n"]
    number: int  # among all of the job

    @property
    def card(self) -> dict[str, Any]:
        """All that its scores depend on."""
        job, own = self.job, self.job.recipe.own_files()
        of_all = {k: v for k, v in _card(job).items() if k not in ("n_runs", "n_trained")}
        return {
            **of_all,
            "number": self.number,
            "ids_sha256": files.sha256_hex(self.ids.tobytes()),
            "shards_sha256": [shard.sha256 for shard in job.manifest.shards],
            "own_files": {name: files.file_sha256(path) for name, path in own.items()},
            "flags": job.flags.to_json(),
        }

    def scores(self, path: Path, say: Say) -> list[Float[np.ndarray, " n"]]:
        """Of the stream and of `reference`: those at `path`, or it is trained and they are put
        there."""
        name, card = f"{self.job.method}, {self.job.meaning}: model {self.number + 1}", self.card
        with suppress(ConfigurationError, DataError):
            known = read_scores(path)
            if known.card == card:
                say(f"{name}, as it was scored before")
                return [known.scores[0], known.reference[0]]
        say(name)
        tallies = [Tally(self.job, split) for split in ("stream", "reference")]
        for model in train_scorer(self.job, self.split, self.ids, FIRST_SEED + self.number):
            for tally in tallies:
                tally.note(model)
        stream, reference = (tally.scores() for tally in tallies)
        content = Scores(scores=stream[None], reference=reference[None], card=card)
        files.replace(path, content.to_bytes())
        return [stream, reference]


def train_scorer(
    job: ScoringJob, split: str, ids: Int[np.ndarray, " n"], seed: int
) -> Iterator[nn.Module]:
    """A model that is trained on these samples; yields it, in eval mode, when it is to be asked."""
    recipe, manifest, device = job.recipe, job.manifest, job.flags.torch_device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.INIT))
        model = recipe.model.build(manifest.image_shape, manifest.n_classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = recipe.optimizer.build(model.parameters())
    normalise = Normalisation.of(manifest.mean, manifest.deviation, device)
    world, ask_at = World(n_samples=len(ids), seed=seed), evaluations(job)
    with closing(job.plan.pool(split)) as pool:
        pool.keep(len(ids))
        for step in range(recipe.n_steps):
            columns = pool.rows(ids[world.positions(step, recipe.batch_size)])
            batch = Batch.from_columns(columns, device)
            x = to_unit_range(batch.images)
            x = normalise(recipe.augmentation.apply(x, normalise.mean, seed, step))
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            with job.flags.autocast():
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), batch.labels)
            if not torch.isfinite(loss):
                raise NumericError(
                    f"step {step}: the loss of a scoring model is {loss.item()}; lower the learning"
                    " rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step + 1 in ask_at:
                model.eval()
                yield model
                model.train()


def evaluations(job: ScoringJob) -> set[int]:
    """The steps after which a model is asked: the last one, or several to count forgetting."""
    n_steps = job.recipe.n_steps
    if job.method != FORGETTING:
        return {n_steps}
    return {*np.unique(np.linspace(1, n_steps, min(N_EVALUATIONS, n_steps)).astype(int)).tolist()}


class Tally:
    """What one model makes of all samples of a split, over the times that it is asked."""

    def __init__(self, job: ScoringJob, split: str) -> None:
        self.job, self.split, n = job, split, job.manifest.n(split)
        n = job.manifest.n_stream if split == "stream" else n
        self.n, self.n_asked = n, 0
        self.sums = np.zeros(n)  # of scores, or of how often a sample was forgotten
        self.was_right, self.is_learned = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)

    def note(self, model: nn.Module) -> None:
        """Ask the model about every sample."""
        job = self.job
        self.n_asked += 1
        with closing(job.plan.pool(self.split)) as pool:
            for start in range(0, self.n, CHUNK):
                columns = pool.read(start, min(start + CHUNK, self.n))
                rows = slice(start, start + len(columns))
                x, labels = self.prepared(columns)
                if job.method == FORGETTING:
                    self.count(rows, model, x, labels)
                else:
                    found = SCORES[job.method](model, x, labels)
                    self.sums[rows] = found.cpu().numpy()

    def prepared(self, columns: Columns) -> tuple[Tensor, Tensor]:
        """Images as the model takes them, un-augmented, and labels."""
        device, manifest = self.job.flags.torch_device, self.job.manifest
        batch = Batch.from_columns(columns, device)
        normalise = Normalisation.of(manifest.mean, manifest.deviation, device)
        return normalise(to_unit_range(batch.images)), batch.labels

    @torch.no_grad()
    def count(self, rows: slice, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Note which samples were right at last and are wrong now."""
        right = (model(x).argmax(dim=1) == labels).cpu().numpy()
        self.sums[rows] += self.was_right[rows] & ~right
        self.was_right[rows] = right
        self.is_learned[rows] |= right

    def scores(self) -> Float[np.ndarray, " n"]:
        """The score of each sample; of forgetting the never learned come last, ties are drawn."""
        if self.job.method != FORGETTING:
            return self.sums
        with closing(self.job.plan.pool(self.split)) as pool:
            ids = pool.start + np.arange(self.n)
        draws = uniforms_by_id(Stream.CONDITION, ids, kind=3)[:, 0]
        return np.where(self.is_learned, self.sums, self.n_asked) + TIE * draws


def _card(job: ScoringJob) -> dict[str, Any]:
    recipe = replace(job.recipe, choices=()).to_json()
    names = ("model", "optimizer", "schedule", "augmentation", "n_steps", "batch_size")
    return {
        "method": job.method,
        "meaning": job.meaning,
        "n_runs": job.n_runs,
        "n_trained": job.n_trained,
        "recipe": {name: recipe[name] for name in names},
        "conditions": condition_texts(job.recipe),
        "data": job.manifest.name,
        "stream_shards_sha256": [shard.sha256 for shard in job.manifest.split("stream")],
    }


def score_lines(found: Scores, path: Path) -> Sequence[str]:
    """What a person is told of a file of scores."""
    card, ends = found.card, np.quantile(found.reference, (0.05, 0.5, 0.95))
    return (
        f"{path}: {card['method']} of {found.scores.shape[1]:,} stream samples, {card['meaning']}",
        f"{card['n_runs']} models{' a seed' if len(found.seeds) else ''},"
        f" {card['n_trained']:,} training samples in all",
        "5 %, half and 95 % of the population are at or below "
        + ", ".join(f"{end:.3f}" for end in ends),
    )
