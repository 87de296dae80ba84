"""Test errors by group and by environment, of data that say which an image belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bootstrap.interventions.choice import Choice, Scored, StepContext, WorldClass


@dataclass(frozen=True, kw_only=True)
class ErrorBy(Choice):
    """The error of the images of each value of a column, of their worst, and their plain mean."""

    world_class: ClassVar[WorldClass] = WorldClass.DIAGNOSTIC
    column: ClassVar[str]

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Of the test images."""
        return {f"test_{name}": value for name, value in self.errors(test).items()}

    def measure_probe(self, probe: Scored, context: StepContext) -> dict[str, float]:
        """Of a world's training images."""
        return self.errors(probe)

    def errors(self, scored: Scored) -> dict[str, float]:
        """By value; a value of which there is no image has none."""
        is_wrong = (scored.predicted != scored.labels).double()
        values = scored.columns[self.column]
        found = {int(k): is_wrong[values == k].mean().item() for k in values.unique()}
        return {
            **{f"error_{self.column}_{k}": error for k, error in found.items()},
            f"error_worst_{self.column}": max(found.values()),
            f"error_mean_{self.column}": sum(found.values()) / len(found),
        }


@dataclass(frozen=True, kw_only=True)
class ErrorByGroup(ErrorBy):
    """Errors by the column `group`, of the data set or of `spurious`; `worst` is what robust
    training is judged by (Sagawa et al. 2020)."""

    needs: ClassVar[tuple[str, ...]] = ("group",)
    column: ClassVar[str] = "group"


@dataclass(frozen=True, kw_only=True)
class ErrorByEnvironment(ErrorBy):
    """Errors by the column `environment`, of the data set or of `spurious`."""

    needs: ClassVar[tuple[str, ...]] = ("environment",)
    column: ClassVar[str] = "environment"
