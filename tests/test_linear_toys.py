"""Linear toys: their closed form, their worlds, their figure."""

import numpy as np
import pytest

from bootstrap.linear_toys import LinearToy, run_toy
from bootstrap.linear_toys_plot import caption, plot_toys, toys_csv, write_toys

SMALL = {"n_inputs": 30, "n_samples": 20, "n_steps": 60}
WIDE = {"n_inputs": 200, "n_samples": 20, "n_steps": 60}  # soon fitted
both = pytest.mark.parametrize("target", ["identity", "sign"])


@both
def test_the_error_over_the_distribution_is_that_of_many_samples(target):
    toy = LinearToy(target=target, n_inputs=20, n_samples=200_000)
    w = np.linspace(1.0, -0.5, 20)
    x, y = toy.samples(seed=3, step=0)
    assert toy.test_error(w) == pytest.approx(float(((x @ w - y) ** 2).mean()), rel=0.02)
    np.testing.assert_allclose(x.var(axis=0), toy.variances, rtol=0.03)


@both
def test_the_worlds_are_one_run_until_samples_are_used_again(target):
    curves = run_toy(LinearToy(target=target, **SMALL), seed=0)
    np.testing.assert_array_equal(curves.real[:2], curves.ideal[:2])
    assert curves.real[2] != curves.ideal[2]


@both
def test_every_seed_has_samples_of_its_own(target):
    toy = LinearToy(target=target, **SMALL)
    first, second = (run_toy(toy, seed) for seed in (0, 1))
    assert first.real[1] != second.real[1]
    np.testing.assert_array_equal(first.real, run_toy(toy, 0).real)


def test_fresh_samples_lead_to_the_best_linear_function():
    known = {"n_inputs": 10, "n_samples": 2_000, "n_steps": 200}
    identity, sign = (
        run_toy(LinearToy(target=target, **known), 0).ideal[-1] for target in ("identity", "sign")
    )
    assert identity == pytest.approx(0, abs=1e-3)
    assert sign == pytest.approx(1 - 2 / np.pi, abs=1e-2)


@both
def test_fewer_samples_than_inputs_are_fitted_and_that_step_is_found(target):
    curves = run_toy(LinearToy(target=target, **WIDE), 0)
    step = curves.convergence_step
    assert curves.train[step] <= 0.01 < curves.train[step - 1]
    assert curves.real[-1] > curves.ideal[-1]


def test_samples_that_are_not_fitted_have_no_such_step():
    toy = LinearToy(target="sign", n_inputs=5, n_samples=200, n_steps=20)
    assert run_toy(toy, 0).convergence_step is None
    assert "Not fitted: sign." in caption({toy: [run_toy(toy, 0)]})


def test_the_caption_has_the_gaps_at_the_marks(tmp_path):
    toy = LinearToy(target="sign", seeds=(0, 1), **WIDE)
    curves = [run_toy(toy, seed) for seed in toy.seeds]
    gap = np.mean(
        [one.real[one.convergence_step] - one.ideal[one.convergence_step] for one in curves]
    )
    said = caption({toy: curves}, "About")
    assert f"Gap at the dot, sign: {gap:+.2f}." in said
    assert said.startswith(
        "About. 200 normal inputs, 10 of variance 1 and the others of 0.1; N = 20;"
    )
    (ax,) = plot_toys({toy: curves}).axes
    (dot,) = [line for line in ax.lines if line.get_label() == "fitted (1 %)"]
    assert dot.get_xdata()[0] == np.mean([one.convergence_step for one in curves])


def test_equal_toys_give_equal_files(tmp_path):
    toys = [LinearToy(target=target, **SMALL) for target in ("identity", "sign")]
    first, second = (write_toys(toys, tmp_path / name, "x") for name in ("a", "b"))
    assert [path.suffix for path in first] == [".csv", ".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    rows = toys_csv({toy: [run_toy(toy, 0)] for toy in toys}).decode().splitlines()
    assert len(rows) == 1 + 2 * 61
    assert rows[1].startswith("identity,20,0,0,1.0,1.0,")
