"""What a run keeps besides its records, as it is trained: scores per test image, and weights.

Weights go to `seed-<k>/kept/<world>-<step>.safetensors`. What they are of stands in the file
itself, so that one file is enough to go on with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bootstrap.errors import DataError
from bootstrap.files import canonical_json, remove_leftovers, replace
from bootstrap.image_results import ResultsWriter, results_path
from bootstrap.plan import Plan
from bootstrap.recipe import evaluation_grid
from bootstrap.records import Record
from bootstrap.runlog import kept_path, kept_steps, read_rows

KEY = "kept"  # one key only: safetensors writes several in any order
UNFIT = (SafetensorError, LookupError, TypeError, ValueError, OSError)


class Keeping:
    """Keeps what a plan asks for of worlds that go on at a step, as if they had not been further.

    Their records must have been cut off there. Weights are on disk at once, results with `save`.
    """

    def __init__(self, plan: Plan, seed: int, worlds: Sequence[str], step: int) -> None:
        self._plan, self._folder = plan, plan.folder / f"seed-{seed}"
        n_test = plan.manifest.n("test")
        self._meta = {
            "run": plan.folder.name,
            "seed": seed,
            "model": plan.recipe.to_json()["model"],
            "image_shape": plan.manifest.image_shape,
            "n_classes": plan.manifest.n_classes,
            "mean": plan.manifest.mean,
            "deviation": plan.manifest.deviation,
        }
        self._results: dict[str, ResultsWriter] = {}
        self._lowest: dict[str, float] = {}  # test error so far
        for world in worlds:
            path = self._folder / f"{world}.jsonl"
            rows = read_rows(path) if path.exists() else []
            if plan.keep.test_results:
                before, target = [row["step"] for row in rows], results_path(self._folder, world)
                self._results[world] = ResultsWriter(target, n_test, before)
            if plan.keep.checkpoints:
                self._lowest[world] = lowest_error(rows, plan.recipe.n_steps)
                remove_kept(self._folder, world, step)

    def take(self, world: str, record: Record, model: nn.Module) -> None:
        """Keep of an evaluation of this model what is asked for."""
        if world in self._results and record.test_images is not None:
            self._results[world].add(record.step, record.test_images)
        if world in self._lowest and self._is_due(world, record):
            meta = {"world": world, "step": record.step, "test_error": record.test.error}
            path = kept_path(self._folder, world, record.step)
            replace(path, kept_bytes(model.state_dict(), self._meta | meta))

    def _is_due(self, world: str, record: Record) -> bool:
        rule, n_steps, error = (
            self._plan.keep.checkpoints,
            self._plan.recipe.n_steps,
            record.test.error,
        )
        if rule is None or record.step not in evaluation_grid(n_steps):
            return False
        lowest, self._lowest[world] = self._lowest[world], min(self._lowest[world], error)
        is_own = record.step >= self._plan.own_from(world)
        return is_own and rule.is_due(record.step, error, lowest, n_steps)

    def save(self) -> None:
        """Put all results on disk."""
        for writer in self._results.values():
            writer.save()

    def __enter__(self) -> Keeping:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.save()


def lowest_error(rows: Sequence[dict[str, Any]], n_steps: int) -> float:
    """The lowest test error of a world's records on the grid that rules count on."""
    grid = evaluation_grid(n_steps)
    return min((row["test_error"] for row in rows if row["step"] in grid), default=float("inf"))


def remove_kept(folder: Path, world: str, from_step: int) -> None:
    """Delete what a world kept at a step or later, and what a killed writer left."""
    remove_leftovers(folder / "kept")
    for step, path in kept_steps(folder, world).items():
        if step >= from_step:
            path.unlink()


def kept_bytes(weights: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """A file of weights and what they are of; equal values, equal bytes."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    return save(tensors, metadata={KEY: canonical_json(meta)})


def load_kept(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a kept checkpoint, and what they are of; DataError if it is none.

    meta: `run`, `seed`, `world`, `step`, `test_error`, `model` (its text in the recipe),
    `image_shape`, `n_classes`, and `mean` and `deviation`, with which images are normalised.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads(file.metadata()[KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except UNFIT as error:
        raise DataError(f"{path}: not a kept checkpoint ({error})") from error
