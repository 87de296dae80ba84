"""What a run keeps besides its records, on request: scores per test image, weights on the way.

It is asked for when a run begins and changes no bit of it, so it is no part of the run's identity.
No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bootstrap.errors import ConfigurationError
from bootstrap.recipe import evaluation_grid
from bootstrap.spec import format_spec, parse_spec


class CheckpointRule(Protocol):
    """Which evaluations of a world are kept as weights.

    Only steps of `evaluation_grid(n_steps)` count, which is the same whatever the N of the pair.
    """

    def is_due(self, step: int, error: float, lowest_before: float, n_steps: int) -> bool:
        """Whether to keep the weights that had this test error, after `lowest_before` or more."""
        ...

    def most(self, from_step: int, n_steps: int) -> int:
        """How many a world can keep from a step on."""
        ...


@dataclass(frozen=True, kw_only=True)
class _AtSteps:
    n: int = 10

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigurationError(f"n={self.n}: keep at least one checkpoint")

    def targets(self, n_steps: int) -> list[float]:
        """The steps that are aimed at; each becomes the evaluated step nearest to it."""
        raise NotImplementedError

    def steps(self, n_steps: int) -> tuple[int, ...]:
        """The steps that are kept, at most `n`: those of targets that fall together are one."""
        grid = evaluation_grid(n_steps)[1:]
        distances = [[abs(step - target) for step in grid] for target in self.targets(n_steps)]
        return tuple(sorted({grid[row.index(min(row))] for row in distances}))

    def is_due(self, step: int, error: float, lowest_before: float, n_steps: int) -> bool:
        """See `CheckpointRule`."""
        return step in self.steps(n_steps)

    def most(self, from_step: int, n_steps: int) -> int:
        """See `CheckpointRule`."""
        return sum(step >= from_step for step in self.steps(n_steps))


class Evenly(_AtSteps):
    """`n` checkpoints, equally many steps apart; the last is the last step."""

    def targets(self, n_steps: int) -> list[float]:
        """See `_AtSteps`."""
        return [n_steps * k / self.n for k in range(1, self.n + 1)]


class LogSpaced(_AtSteps):
    """`n` checkpoints from step 1 to the last, in equal ratios."""

    def targets(self, n_steps: int) -> list[float]:
        """See `_AtSteps`."""
        return [n_steps ** (1 - k / max(self.n - 1, 1)) for k in range(self.n)]


@dataclass(frozen=True, kw_only=True)
class AtErrors:
    """The first evaluation whose test error is at or below each level: both worlds, matched."""

    levels: tuple[float, ...] = (0.5, 0.3, 0.2)

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ConfigurationError(f"levels={self.levels}: give fractions between 0 and 1")

    def is_due(self, step: int, error: float, lowest_before: float, n_steps: int) -> bool:
        """See `CheckpointRule`."""
        return any(error <= level < lowest_before for level in self.levels)

    def most(self, from_step: int, n_steps: int) -> int:
        """See `CheckpointRule`."""
        return len({*self.levels})


RULES: dict[str, type] = {"evenly": Evenly, "log": LogSpaced, "at_errors": AtErrors}


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What a run keeps besides its records."""

    test_results: bool = False
    checkpoints: CheckpointRule | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of pair.json; none for what is not kept."""
        rule = self.checkpoints and format_spec(self.checkpoints, RULES)
        return {
            **({"save_test_results": True} if self.test_results else {}),
            **({"keep_checkpoints": rule} if rule else {}),
        }


def parse_rule(text: str) -> CheckpointRule | None:
    """`evenly(n=10)`, `log(n=10)`, `at_errors(levels=(0.5, 0.3))` -> a value; nothing -> None."""
    return parse_spec(text, RULES, "rule for checkpoints", may_import=False) if text else None


def agree(folder: Path, asked: Keep) -> Keep:
    """What the run in `folder` keeps: what it was begun with, or what is asked for if it is new.

    ConfigurationError if more is asked for, or something else: its evaluations are not made again.
    """
    path = folder / "pair.json"
    if not path.exists() or not any(folder.glob("seed-*/*.jsonl")):
        return asked
    known = json.loads(path.read_bytes())
    for key, value in asked.to_json().items():
        if known.get(key) != value:
            option, before = f"--{key.replace('_', '-')}", known.get(key)
            how = f"with {option} {before!r}" if before else f"without {option}"
            raise ConfigurationError(
                f"{folder}: the run was begun {how}, and its evaluations are not made again;"
                " add --overwrite to make the whole run again, or choose another --out"
            )
    return Keep(
        test_results=known.get("save_test_results", False),
        checkpoints=parse_rule(known.get("keep_checkpoints", "")),
    )
