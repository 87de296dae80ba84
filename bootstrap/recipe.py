"""A recipe: everything about a run except its world and its seed. No torch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

from bootstrap.augment import AUGMENTATIONS, Augmentation, NoAugmentation
from bootstrap.errors import ConfigurationError
from bootstrap.interventions import INTERVENTIONS, Choice, check_choices
from bootstrap.models import MODELS, Model, PreActResNet18
from bootstrap.optimizers import OPTIMIZERS, SCHEDULES, SGD, Cosine, Optimizer, Schedule
from bootstrap.spec import format_spec, parse_spec

TABLES: dict[str, dict[str, type]] = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "augmentation": AUGMENTATIONS,
}
CHOICES = "choices"  # the field whose values are of the table INTERVENTIONS
EVERY_STEP_N = 64  # test images a step in the every-step files
MAX_PROBE_N = 10_000  # training images that a real world is scored on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both worlds of a pair share; errors are refused here, with the remedy."""

    model: Model = field(default_factory=PreActResNet18)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Cosine)
    augmentation: Augmentation = field(default_factory=NoAugmentation)
    n_steps: int = 39_000
    batch_size: int = 128
    n_test_curve: int = 10_000  # test images on the curve; the last step uses the whole test split
    every_step: bool = False  # also score 64 test images at every step
    choices: tuple[Choice, ...] = ()
    """design choices, in the order in which they are put on, e.g. "flooding(level=0.05)" mixup"""

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "n_test_curve"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1")
        if self.optimizer.lr <= 0:
            raise ConfigurationError(f"lr={self.optimizer.lr} must be positive")
        check_choices(self.choices)

    @property
    def n_draws(self) -> int:
        """Samples that a run takes, fresh in the ideal world."""
        return self.n_steps * self.batch_size

    def __reduce__(self) -> tuple[Any, ...]:
        """As its text, so that another process finds classes of a user's own by their file."""
        return Recipe.from_json, (self.to_json(),)

    def lr_at(self, step: int) -> float:
        """The learning rate of the update after `step` updates."""
        return self.optimizer.lr * self.schedule.factor(step, self.n_steps)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of samples that choices need."""
        return tuple(sorted({name for choice in self.choices for name in choice.needs}))

    @property
    def keep_fraction(self) -> float:
        """The share of a set of samples that choices leave in it."""
        return prod(choice.keep_fraction for choice in self.choices)

    @property
    def n_own(self) -> int:
        """The N whose samples references were made from, which longer worlds come after; or 0."""
        return max((choice.n_own for choice in self.choices), default=0)

    def to_json(self) -> dict[str, Any]:
        """Every field; values as the text that names them. Choices only if there are any."""
        value = {
            f.name: format_spec(getattr(self, f.name), TABLES[f.name])
            if f.name in TABLES
            else getattr(self, f.name)
            for f in fields(self)
            if f.name != CHOICES
        }
        texts = [format_spec(choice, INTERVENTIONS) for choice in self.choices]
        return value | ({CHOICES: texts} if texts else {})

    def non_default(self) -> dict[str, Any]:
        """`to_json` without fields at their default: new fields leave old identities alone."""
        default = Recipe().to_json()
        return {name: value for name, value in self.to_json().items() if value != default.get(name)}

    def own_files(self) -> dict[str, Path]:
        """The files of classes that are not the package's, by field: their bytes decide results.

        And those that choices read.
        """
        values = {name: getattr(self, name) for name in TABLES}
        own = {name: type(v) for name, v in values.items() if type(v) not in TABLES[name].values()}
        own |= {
            f"{CHOICES}.{k}": type(choice)
            for k, choice in enumerate(self.choices)
            if type(choice) not in INTERVENTIONS.values()
        }
        read = {
            f"{CHOICES}.{k}.files.{j}": path
            for k, choice in enumerate(self.choices)
            for j, path in enumerate(choice.files)
        }
        return {name: Path(inspect.getfile(cls)) for name, cls in own.items()} | read

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recipe:
        """Read `to_json`; ConfigurationError for an unknown key."""
        unknown = set(value) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigurationError(f"unknown recipe field {sorted(unknown)[0]!r}")
        known = {
            name: parse_spec(v, TABLES[name], name) if name in TABLES else v
            for name, v in value.items()
        }
        if CHOICES in known:
            known[CHOICES] = tuple(parse_spec(t, INTERVENTIONS, "choice") for t in known[CHOICES])
        return cls(**known)


def evaluation_grid(n_steps: int) -> tuple[int, ...]:
    """Steps of evaluation: 0, 1, 2, 4, 8, then ratio 1.15, and the last.

    Never more than n_steps/50 apart (every step below 50).
    A pair adds N // batch_size for each of its N.
    """
    widest = max(1, n_steps // 50)
    grid, step = [0], 1
    while step < n_steps:
        grid.append(step)
        growth = step if step < 8 else round(0.15 * step)
        step += min(growth, widest)
    return (*grid, n_steps)
