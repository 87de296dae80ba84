"""A design choice: a frozen value that wraps parts of training, with explicit tensor state.

Every seam takes a thing and returns one of its kind; what a choice does not override stays as it
is. Choices compose in the order given: of functions, the first one wraps innermost. Draws come
from a step's coordinates (`StepContext`), so that a choice leaves every other stream alone.
No torch is imported before a seam is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from bootstrap.randomness import Stream, torch_seed, uniforms

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bootstrap.batch import Normalisation
    from bootstrap.ranks import Ranks
    from bootstrap.recipe import Recipe
    from bootstrap.shards import Columns, Manifest


class WorldClass(Enum):
    """What a choice needs, hence what it means where no sample is seen twice."""

    STRICT = "a function of the batch, the model and the optimiser: the same code in both worlds"
    ANNOTATED = "needs a column (environment, group) that both worlds' samples carry"
    REFERENCE = "needs a model or statistic computed before the run"
    IDENTITY = "needs to see a sample again: it can only measure"
    DIAGNOSTIC = "touches no training"
    SOURCE = "replaces the distribution itself"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known when a run begins."""

    image_shape: tuple[int, int, int]
    n_classes: int
    pool_n_samples: int
    n_steps: int
    batch_size: int  # of one process
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the model learns from at a step: x (n, channel, height, width), normalised, and targets.

    `targets` (n, classes) are the shares of the classes, of `labels` (n,) one-hot at first; `ids`,
    `index` (in the pool, from 0) and `columns` are those of the samples in these rows.
    """

    x: Tensor
    targets: Tensor
    labels: Tensor
    ids: Int[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: slice) -> Inputs:
        """The rows of `index`."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return replace(
            self,
            x=self.x[index],
            targets=self.targets[index],
            labels=self.labels[index],
            ids=self.ids[index],
            index=self.index[index],
            columns=columns,
        )


@dataclass(frozen=True)
class Gradient:
    """What taking a gradient says; the gradient itself is left in the parameters.

    `loss` is what was differentiated, `logits` (n, classes) are those of the first forward pass.
    """

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Images of a fixed set, uint8 (n, height, width, channel), and what the model said of them."""

    images: Tensor
    labels: Tensor
    logits: Tensor  # (n, classes)
    predicted: Tensor  # classes
    ids: Int[np.ndarray, " n"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def first(self, n: int) -> Scored:
        """The first `n` images."""
        columns = {name: column[:n] for name, column in self.columns.items()}
        return replace(
            self,
            images=self.images[:n],
            labels=self.labels[:n],
            logits=self.logits[:n],
            predicted=self.predicted[:n],
            ids=self.ids[:n],
            columns=columns,
        )


Forward = Callable[["Tensor"], "Tensor"]  # normalised images -> logits, float32
SampleLossFn = Callable[[Forward, Inputs], "Tensor"]  # (n,) nats
LossFn = Callable[[Forward, Inputs], "Tensor"]  # the mean over the batch of all ranks
GradientFn = Callable[[Inputs], Gradient]
UpdateFn = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where in a run a choice is asked, its own state and its own draws."""

    step: int
    n_steps: int
    seed: int
    lr: float
    name: str  # of the choice's class: draws do not depend on which other choices there are
    state: dict[str, Tensor]  # changed in place
    model: nn.Module
    normalise: Normalisation
    ranks: Ranks
    device: torch.device

    @property
    def deviation(self) -> Tensor:
        """One [0, 1] pixel unit, per channel, is 1 / this in `Inputs.x`; (channel, 1, 1)."""
        return self.normalise.deviation[:, None, None]

    def uniforms(self, *shape: int, kind: int = 0) -> Float[np.ndarray, "*shape"]:
        """Draws from [0, 1) at (seed, purpose, step, choice); each `kind` has draws of its own.

        Of a whole batch, that is of all ranks, the row is the slot.
        """
        n = int(np.prod(shape))
        return uniforms(self.seed, Stream.CHOICE, self.step, word_of(self.name), kind, n=n).reshape(
            shape
        )

    def generator(self, kind: int = 0) -> torch.Generator:
        """A generator at the same coordinates, on the run's device, for whole batches of noise."""
        import torch

        seed = torch_seed(self.seed, Stream.CHOICE, self.step, word_of(self.name), kind)
        return torch.Generator(self.device).manual_seed(seed)


def word_of(name: str) -> int:
    """A coordinate for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A design choice; a frozen, keyword-only dataclass that overrides the seams it needs.

    `world_class` must be declared. `needs` are columns of samples, of the data set or of a choice
    that `provides` them. With `shares_prefix` False the worlds are trained apart from step 0. Where
    no choice `looks_at_images`, those of samples that are filtered have no pixels: none is read.
    """

    world_class: ClassVar[WorldClass]
    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    shares_prefix: ClassVar[bool] = True
    looks_at_images: ClassVar[bool] = True  # `keeps` and `wrap_columns` do
    differentiates_twice: ClassVar[bool] = False  # which a compiled model cannot
    not_with: ClassVar[tuple[tuple[str, str], ...]] = ()  # (name of another choice, why)

    @property
    def cost(self) -> float:
        """A step's operations as a multiple of a plain step's: forward 1, backward 1 to the
        activations and 1 to the weights, of 3."""
        return 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that it reads (scores, weights of a reference): their bytes decide results."""
        return ()

    @property
    def keep_fraction(self) -> float:
        """The share of a set of samples that pruning leaves in it; 1 where it is another source."""
        return 1.0

    @property
    def n_own(self) -> int:
        """How many of a world's samples its reference was made from; longer worlds come after."""
        return 0

    @property
    def own_seeds(self) -> tuple[int, ...]:
        """The seeds whose samples its references were made from."""
        return ()

    def check_with(self, others: Sequence[Choice]) -> None:
        """ConfigurationError if it contradicts another choice of the recipe."""

    def check_data(self, recipe: Recipe, manifest: Manifest, n_samples: Sequence[int]) -> None:
        """ConfigurationError or DataError unless what it reads fits model, data and every N."""

    def evaluation_sets(self) -> tuple[str, ...]:
        """Further sets to score on the grid, made of the test images: their scores stand under
        `extra.test_<score>_<name>`. This choice's `wrap_columns` is told `test/<name>`."""
        return ()

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """Tensors that are saved, forked and handed over with the model, by name."""
        return {}

    def keeps(self, columns: Columns, n_classes: int) -> Bool[np.ndarray, " n"]:
        """Which samples of the stream there are, as a function of their ids and columns."""
        return np.ones(len(columns), dtype=bool)

    def keeps_for(
        self, seed: int | None, columns: Columns, n_classes: int
    ) -> Bool[np.ndarray, " n"]:
        """The same for a seed, where it depends on it: see `own_seeds`."""
        return self.keeps(columns, n_classes)

    def wrap_columns(self, columns: Columns, split: str, n_classes: int) -> Columns:
        """Other labels, images or columns for samples, as functions of their ids alone."""
        return columns

    def wrap_inputs(self, inputs: Inputs, context: StepContext) -> Inputs:
        """Another batch, of all ranks together, after augmentation and normalisation."""
        return inputs

    def wrap_model(self, model: nn.Module, setting: Setting) -> nn.Module:
        """Another model, when it is built; the names of its weights must stay."""
        return model

    def wrap_sample_loss(self, losses: SampleLossFn, context: StepContext) -> SampleLossFn:
        """Another loss of each sample of this rank's share."""
        return losses

    def wrap_loss(self, loss: LossFn, context: StepContext) -> LossFn:
        """Another loss of the whole batch, of all ranks together."""
        return loss

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """Another gradient, the same on all ranks; or something to do before and after it."""
        return gradient

    def wrap_update(self, update: UpdateFn, context: StepContext) -> UpdateFn:
        """Another update of the weights from their gradient."""
        return update

    def wrap_prediction(self, forward: Forward, split: str, context: StepContext) -> Forward:
        """Other logits in evaluation, of the images of `train` or `test`."""
        return forward

    def observe(self, test: Scored, probe: Scored | None, context: StepContext) -> None:
        """Note an evaluation in the state, at steps that do not depend on the N of the pair."""

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """What records of every world get under `extra`."""
        return {}

    def measure_probe(self, probe: Scored, context: StepContext) -> dict[str, float]:
        """What records of a world get for its own training images, under `extra.train_<name>`."""
        return {}
