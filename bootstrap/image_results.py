"""Scores per test image and evaluation, `seed-<k>/<world>-test.npz`: what agreement and calibration
are computed from. No torch.

The file is replaced as a whole whenever a state is saved, so it always holds all rows up to there.
"""

from __future__ import annotations

import io
import zipfile
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int

from bootstrap.errors import DataError
from bootstrap.files import replace
from bootstrap.records import ImageScores

Row = tuple[int, ImageScores]
UNFIT = (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class ImageResults:
    """One world's test images at each evaluation; column j is the test image with id j.

    An evaluation of fewer images scores the first `n_scored`; beyond, `probability` is NaN and
    `correct` False.
    """

    step: Int[np.ndarray, " n_evaluations"]
    n_scored: Int[np.ndarray, " n_evaluations"]
    probability: Float16[np.ndarray, "n_evaluations n_test"]  # of the label
    correct: Bool[np.ndarray, "n_evaluations n_test"]

    def rows(self) -> list[Row]:
        """Each evaluation by itself, with the images that it scored."""
        return [
            (
                int(self.step[i]),
                ImageScores(probability=self.probability[i, :n], correct=self.correct[i, :n]),
            )
            for i, n in enumerate(self.n_scored)
        ]


def results_path(folder: Path, world: str) -> Path:
    """Where a seed's folder holds the results of a world."""
    return folder / f"{world}-test.npz"


def read_results(path: Path) -> ImageResults:
    """The results in a file; DataError if it is not there or not whole."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            names = ("step", "n_scored", "probability", "correct")
            return ImageResults(**{name: arrays[name] for name in names})
    except FileNotFoundError:
        remedy = "runs have it that were begun with --save-test-results"
        raise DataError(f"{path}: there is no such file; {remedy}") from None
    except UNFIT as error:
        remedy = "run the same compare command with --overwrite"
        raise DataError(f"{path}: not results per test image ({error}); {remedy}") from error


def write_results(path: Path, rows: Sequence[Row], n_test: int) -> None:
    """Replace the file by these rows; equal rows, equal bytes."""
    probability = np.full((len(rows), n_test), np.nan, dtype=np.float16)
    correct = np.zeros((len(rows), n_test), dtype=bool)
    for i, (_, scores) in enumerate(rows):
        probability[i, : len(scores.correct)] = scores.probability
        correct[i, : len(scores.correct)] = scores.correct
    body = io.BytesIO()
    np.savez(
        body,
        step=np.array([step for step, _ in rows], dtype=np.int64),
        n_scored=np.array([len(scores.correct) for _, scores in rows], dtype=np.int64),
        probability=probability,
        correct=correct,
    )
    replace(path, body.getvalue())


def insert_evaluation(folder: Path, world: str, source: str, step: int) -> None:
    """Give the results of `world` the evaluation of `step` from those of `source`, in its place."""
    results = read_results(results_path(folder, world))
    rows = results.rows()
    if step not in results.step:
        found = read_results(results_path(folder, source)).rows()
        insort(rows, next(row for row in found if row[0] == step), key=lambda row: row[0])
        write_results(results_path(folder, world), rows, results.correct.shape[1])


class ResultsWriter:
    """Collects the results of a world that goes on after the evaluations `before`.

    DataError if the file does not hold them; what it has from later ones is dropped.
    """

    def __init__(self, path: Path, n_test: int, before: Sequence[int]) -> None:
        self._path, self._n_test = path, n_test
        known, rows = {*before}, read_results(path).rows() if before else []
        self._rows = [row for row in rows if row[0] in known]
        if [step for step, _ in self._rows] != [*before]:
            raise DataError(
                f"{path}: does not hold the evaluations that the records have; run the same"
                " compare command with --overwrite"
            )
        self._is_saved = False
        self.save()  # before the world's first record: who has records has results

    def add(self, step: int, scores: ImageScores) -> None:
        """Take one evaluation."""
        self._rows.append((step, scores))
        self._is_saved = False

    def save(self) -> None:
        """Put all of them on disk."""
        if not self._is_saved:
            write_results(self._path, self._rows, self._n_test)
            self._is_saved = True
