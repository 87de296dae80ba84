"""Pruning: only the samples that a score calls hard (or easy) are there, in both worlds.

In the ideal world that is a filtered stream: fresh samples are taken as they come, and kept by a
frozen score against a threshold from a sample of the population. N counts what is kept; the test
split stays whole. What the score is made from, and on whose samples, is `bootstrap.scoring`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.interventions.by_id import uniforms_by_id
from bootstrap.interventions.choice import Choice, WorldClass
from bootstrap.interventions.scores import OWN, Scores, read_scores
from bootstrap.randomness import Stream

if TYPE_CHECKING:
    from bootstrap.recipe import Recipe
    from bootstrap.shards import Columns, Manifest

MADE_BY = "`deep-bootstrap score` makes one"
ONCE = "a sample can be pruned by one score"


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Choice):
    """Keeps a share `keep` of all samples, whichever: what any other pruning is compared with.

    By a hash of the id. In the ideal world nothing changes but which samples come.
    """

    keep: float = 0.5
    world_class: ClassVar[WorldClass] = WorldClass.REFERENCE
    looks_at_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("random_pruning", self.keep)

    @property
    def keep_fraction(self) -> float:
        """See `Choice`."""
        return self.keep

    def keeps(self, columns: Columns, n_classes: int) -> Bool[np.ndarray, " n"]:
        """See `Choice`."""
        return uniforms_by_id(Stream.CONDITION, columns.ids, kind=2)[:, 0] < self.keep


def check_share(name: str, keep: float, skip: float = 0.0) -> None:
    """ConfigurationError unless these are shares of a set."""
    if not (0 < keep <= 1 and 0 <= skip < 1 and keep + skip <= 1):
        raise ConfigurationError(
            f"{name}: keep={keep} must be above 0, skip={skip} at least 0, and both together at"
            " most 1"
        )


@dataclass(frozen=True, kw_only=True)
class Pruning(Choice):
    """Keeps a share `keep` of the samples, the hardest by the file `scores`, after `skip` of them.

    The very hardest are often mislabelled: `skip` leaves so large a share of them out. With
    `hardest` False the easiest are kept. `meaning` is the file's: `shared` scores come from models
    that were trained on `reference`, `oracle` ones from models that saw every sample once, `own`
    ones from models trained on the N samples themselves (the worlds then share no step).
    """

    scores: str = ""
    keep: float = 0.5
    skip: float = 0.0
    hardest: bool = True
    meaning: str = "shared"
    world_class: ClassVar[WorldClass] = WorldClass.REFERENCE
    looks_at_images: ClassVar[bool] = False
    method: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_share(self.method, self.keep, self.skip)
        if not self.scores:
            raise ConfigurationError(f"{self.method}: scores='FILE' is missing; {MADE_BY}")

    @property
    def shares_prefix(self) -> bool:  # type: ignore[override]
        """See `Choice`: scores of a world's own samples are looked at before it begins."""
        return self.meaning != OWN

    @property
    def keep_fraction(self) -> float:
        """See `Choice`."""
        return self.keep

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Choice`."""
        return (Path(self.scores),)

    @property
    def found(self) -> Scores:
        """The content of the file."""
        return read_scores(Path(self.scores))

    @property
    def n_own(self) -> int:
        """See `Choice`."""
        return round(self.keep * self.found.own_ids.shape[1]) if self.meaning == OWN else 0

    @property
    def own_seeds(self) -> tuple[int, ...]:
        """See `Choice`."""
        return tuple(self.found.seeds.tolist()) if self.meaning == OWN else ()

    def check_with(self, others: Sequence[Choice]) -> None:
        """See `Choice`."""
        if any(isinstance(other, (Pruning, RandomPruning)) for other in others):
            raise ConfigurationError(f"{self.method}: {ONCE}; give one pruning choice")

    def check_data(self, recipe: Recipe, manifest: Manifest, n_samples: Sequence[int]) -> None:
        """See `Choice`: the scores are of this kind, of these images under these conditions."""
        card = self.found.card
        for name, mine in (("method", self.method), ("meaning", self.meaning)):
            if card.get(name, mine) != mine:
                raise ConfigurationError(
                    f"{self.scores}: these are scores of {name} {card[name]!r}, not {mine!r};"
                    f" say so, or score again"
                )
        shards = [shard.sha256 for shard in manifest.split("stream")]
        scored = card.get("stream_shards_sha256", [])
        if scored != shards[: len(scored)]:
            raise DataError(
                f"{self.scores}: these are scores of other images than {manifest.name}'s; {MADE_BY}"
            )
        conditions = condition_texts(recipe)
        if card.get("conditions", conditions) != conditions:
            raise ConfigurationError(
                f"{self.scores}: scored under the conditions {card['conditions']}, not"
                f" {conditions}; score again with --choices as they are here"
            )
        if self.meaning == OWN and {*n_samples} != {self.n_own}:
            raise ConfigurationError(
                f"{self.scores}: own scores of N = {self.found.own_ids.shape[1]:,} leave"
                f" {self.n_own:,} samples; use --n-samples {self.n_own}"
            )

    def keeps(self, columns: Columns, n_classes: int) -> Bool[np.ndarray, " n"]:
        """See `Choice`."""
        return self.keeps_for(None, columns, n_classes)

    def keeps_for(
        self, seed: int | None, columns: Columns, n_classes: int
    ) -> Bool[np.ndarray, " n"]:
        """See `Choice`; what was not scored is not there."""
        found = self.found
        row = found.row(seed)
        of, sample = found.of_ids(columns.ids, row), found.reference[row]
        is_kept = self.in_window(harder_share(of, sample, self.hardest))
        own = found.own_ids[row] if self.meaning == OWN else np.zeros(0, dtype=np.int64)
        is_own = np.isin(columns.ids, own)
        if is_own.any():
            chosen = own[self.chosen(found.of_ids(own, row))]
            is_kept = np.where(is_own, np.isin(columns.ids, chosen), is_kept)
        return is_kept & np.isfinite(of)

    def in_window(self, share: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether so large a share of the population being harder means that a sample stays."""
        return (share >= self.skip) & (share < self.skip + self.keep)

    def chosen(self, scores: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of a set stay, by their ranks in it: exactly `keep` of them."""
        rank = np.empty(len(scores), dtype=np.int64)
        rank[np.argsort(-scores if self.hardest else scores, kind="stable")] = np.arange(len(rank))
        n_kept = round(self.keep * len(rank))
        first = min(round(self.skip * len(rank)), len(rank) - n_kept)
        return (rank >= first) & (rank < first + n_kept)


def harder_share(
    scores: Float[np.ndarray, " n"], sample: Float[np.ndarray, " n_sample"], hardest: bool = True
) -> Float[np.ndarray, " n"]:
    """The share of a sample of the population that comes before each score; less than 1."""
    ordered = np.sort(sample)
    if hardest:
        n_before = len(ordered) - np.searchsorted(ordered, scores, side="right")
    else:
        n_before = np.searchsorted(ordered, scores, side="left")
    return n_before / (len(ordered) + 1)


def condition_texts(recipe: Recipe) -> list[str]:
    """The choices of a recipe that change which samples there are, but for pruning, as text."""
    texts = recipe.to_json().get("choices", [])
    base = {name: getattr(Choice, name) for name in ("keeps", "wrap_columns")}
    return [
        text
        for text, choice in zip(texts, recipe.choices, strict=True)
        if not isinstance(choice, (Pruning, RandomPruning))
        and any(getattr(type(choice), name) is not seam for name, seam in base.items())
    ]


@dataclass(frozen=True, kw_only=True)
class EL2N(Pruning):
    """Pruning by ||softmax f(x) - onehot y||, of several models early in training.

    Paul et al. 2021 (arXiv 2107.07075).
    """

    method: ClassVar[str] = "el2n"


@dataclass(frozen=True, kw_only=True)
class GraNd(Pruning):
    """Pruning by the norm of the loss's gradient to all weights (Paul et al. 2021)."""

    method: ClassVar[str] = "grand"


@dataclass(frozen=True, kw_only=True)
class GraNdLastLayer(Pruning):
    """Pruning by the norm of the loss's gradient to the last layer: ||p - y|| sqrt(||h||^2 + 1)."""

    method: ClassVar[str] = "grand_last_layer"


@dataclass(frozen=True, kw_only=True)
class ForgettingScore(Pruning):
    """Pruning by how often models forget a sample while they train (Toneva et al. 2019).

    Counted at evaluations of models that never train on the sample, so that a fresh one has it too;
    a sample that is never learned counts as forgotten at all of them.
    """

    method: ClassVar[str] = "forgetting_score"
