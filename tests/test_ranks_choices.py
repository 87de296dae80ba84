"""Design choices on two processes: they see the batch of both, and draw for all of its slots."""

from pathlib import Path

import numpy as np
import pytest
from choices_ranks_child import CHOSEN, TWICE
from ranks_child import FLAGS, N
from test_ranks_pair import numbers, only_run, torchrun

from bootstrap.pair import run_pair
from bootstrap.runlog import load_run

CHILD = Path(__file__).with_name("choices_ranks_child.py")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_figure")]


@pytest.fixture(scope="module")
def two(toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    result = torchrun(2, CHILD, toy_data, folder, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(("name", "recipe"), [("chosen", CHOSEN), ("twice", TWICE)])
def test_two_ranks_learn_with_choices_what_one_does(toy_data, two, tmp_path, name, recipe):
    alone = load_run(run_pair(recipe, toy_data, tmp_path, n_samples=N, flags=FLAGS))
    run = only_run(two / name)
    for world in ("ideal", "real-n200"):
        for key in ("test_loss", "test_soft_error"):
            found, known = (numbers(r, world, key) for r in (run, alone))
            np.testing.assert_allclose(found, known, atol=1e-3, rtol=1e-3)
        found, known = (numbers(r, f"{world}-every-step", "batch_loss") for r in (run, alone))
        np.testing.assert_allclose(found, known, atol=1e-3, rtol=1e-3)


def test_flooding_is_by_the_mean_over_all_ranks(toy_data, two, tmp_path):
    """A share of the batch is below the level in steps at which the whole is not, and otherwise."""
    alone = load_run(run_pair(CHOSEN, toy_data, tmp_path, n_samples=N, flags=FLAGS))
    fractions = [
        [row["extra"]["flooded_fraction"] for row in run.rows(0, "ideal")]
        for run in (only_run(two / "chosen"), alone)
    ]
    assert fractions[0] == fractions[1]
    assert 0 < fractions[0][-1] < 1


def test_forgetting_is_counted_over_all_ranks(toy_data, two, tmp_path):
    alone = load_run(run_pair(CHOSEN, toy_data, tmp_path, n_samples=N, flags=FLAGS))
    found, known = (
        [row["extra"]["forgetting_events"] for row in run.rows(0, "real-n200")]
        for run in (only_run(two / "chosen"), alone)
    )
    np.testing.assert_allclose(found, known, atol=0.02)
    assert found[-1] > 0
