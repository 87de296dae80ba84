"""Linear regression in two worlds: gradient descent on N samples, or on N fresh ones a step.

    y = target(x_1),  x ~ N(0, V),  V = diag(1, ..., 1, 1/10, ..., 1/10)

As recalled from the paper's appendix; N and the steps are this project's. The squared error over
the whole distribution is known in closed form, so there is no test set. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import pi, sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float

from bootstrap.randomness import Stream, normals

FITTED = 0.01  # the squared error on the N samples at which the real world counts as converged

Vector = Float[np.ndarray, " n_inputs"]
Curve = Float[np.ndarray, " n_evaluations"]


@dataclass(frozen=True, kw_only=True)
class LinearToy:
    """A target, the sizes, and the step size of descent on half the mean squared error."""

    target: Literal["identity", "sign"]
    n_inputs: int = 1_000
    n_large: int = 10  # inputs of variance 1
    small_variance: float = 0.1  # of the others
    n_samples: int = 100
    n_steps: int = 128
    step_size: float = 0.1
    seeds: tuple[int, ...] = (0,)

    @cached_property
    def variances(self) -> Vector:
        """The diagonal of V."""
        return np.where(np.arange(self.n_inputs) < self.n_large, 1.0, self.small_variance)

    def samples(
        self, seed: int, step: int
    ) -> tuple[Float[np.ndarray, "n_samples n_inputs"], Float[np.ndarray, " n_samples"]]:
        """What the ideal world sees at `step`; the real world sees what is there at step 0."""
        draws = normals(seed, Stream.LINEAR_TOY, step, n=self.n_samples * self.n_inputs)
        x = draws.reshape(self.n_samples, -1) * np.sqrt(self.variances)
        return x, np.sign(x[:, 0]) if self.target == "sign" else x[:, 0]

    def test_error(self, w: Vector) -> float:
        """E (w x - y)^2 = w V w - 2 w_1 E x_1 y + E y^2, with E |x_1| = sqrt(2 / pi)."""
        of_xy = sqrt(2 / pi) if self.target == "sign" else 1.0  # E x_1 y; E y^2 is 1 for both
        return float((w**2 * self.variances).sum() - 2 * w[0] * of_xy + 1)


@dataclass(frozen=True, kw_only=True)
class ToyCurves:
    """Squared errors before each step and after the last: both worlds' over the distribution, and
    the real world's on its samples."""

    real: Curve
    ideal: Curve
    train: Curve

    @property
    def convergence_step(self) -> int | None:
        """The first step at which the samples are fitted."""
        fitted = np.flatnonzero(self.train <= FITTED)
        return int(fitted[0]) if len(fitted) else None


def run_toy(toy: LinearToy, seed: int) -> ToyCurves:
    """Both worlds from zero weights; until the first step is done they are one run."""
    own_x, own_y = toy.samples(seed, 0)
    real, ideal = np.zeros(toy.n_inputs), np.zeros(toy.n_inputs)
    rows = []
    for step in range(toy.n_steps + 1):
        train = float(((own_x @ real - own_y) ** 2).mean())
        rows.append((toy.test_error(real), toy.test_error(ideal), train))
        x, y = (own_x, own_y) if step == 0 else toy.samples(seed, step)
        real = real - toy.step_size * own_x.T @ (own_x @ real - own_y) / len(own_y)
        ideal = ideal - toy.step_size * x.T @ (x @ ideal - y) / len(y)
    on_real, on_ideal, on_samples = np.array(rows).T
    return ToyCurves(real=on_real, ideal=on_ideal, train=on_samples)
