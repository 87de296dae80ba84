import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import BATCH_SIZE, configure, finish, record, write_run, write_world

from bootstrap.curves import (
    convergence_step,
    convergence_step_interpolated,
    curve_gap,
    gap,
    spread,
)
from bootstrap.errors import DataError
from bootstrap.runlog import load_run
from bootstrap.summary import summarise

STEPS = np.array([0, 1, 2, 4, 8])


def write_pair(root, real, ideal, n_samples=40, seed=0):
    """A pair from {step: (test error, train error)} and {step: test error}."""
    write_world(root, None, [record(step, error) for step, error in ideal.items()], seed)
    rows = [record(step, *errors) for step, errors in real.items()]
    return write_world(root, n_samples, rows, seed)


def converging_pair(root, seed=0, shift=0.0):
    """Converges at step 4 with a gap of 0.25 + shift after one of -0.5; ends at 0.125 + shift."""
    ideal = {0: 0.75, 2: 0.75, 4: 0.25, 8: 0.25}
    real = {
        **{0: (0.75, 0.9), 2: (0.25, 0.51)},
        **{4: (0.5 + shift, 0.01), 8: (0.375 + shift, 0.0)},
    }
    return write_pair(root, real, ideal, seed=seed)


def only_entry(run):
    (of_n,) = summarise(run)["n_samples"].values()
    (entry,) = of_n["per_seed"].values()
    return entry


def across_seeds(run):
    (of_n,) = summarise(run)["n_samples"].values()
    return of_n


def test_the_gap_is_real_minus_ideal(tmp_path):
    run = write_pair(tmp_path, {0: (0.75, 1.0), 1: (0.25, 1.0)}, {0: 0.5, 1: 0.5})
    assert gap(run).tolist() == [[0.25, -0.25]]


@pytest.mark.parametrize(("metric", "factor"), [("soft_error", 0.5), ("loss", 2.0)])
def test_the_gap_is_of_the_metric_asked_for(tmp_path, metric, factor):
    run = write_pair(tmp_path, {0: (0.75, 1.0)}, {0: 0.5})
    assert gap(run, metric).tolist() == [[factor * 0.25]]


def test_the_gap_is_zero_until_the_first_reuse(tmp_path):
    run = write_run(tmp_path)
    fresh = run.steps <= 160 // BATCH_SIZE
    assert (gap(run, n_samples=160)[:, fresh] == 0).all()
    assert (gap(run, n_samples=160)[:, ~fresh] != 0).all()


def test_curves_of_unequal_steps_are_not_a_pair(tmp_path):
    run = write_pair(tmp_path, {0: (0.75, 1.0), 2: (0.25, 1.0)}, {0: 0.5, 1: 0.5})
    with pytest.raises(DataError, match="one pair"):
        curve_gap(run.real[40], run.ideal)


def test_curves_of_unequal_steps_are_not_subtracted(tmp_path):
    run = finish(write_pair(tmp_path, {0: (0.75, 1.0)}, {0: 0.5, 1: 0.5}))
    with pytest.raises(DataError, match="one pair"):
        curve_gap(run.real[run.n_samples[0]], run.ideal)


def test_a_finished_run_has_no_gap_where_only_the_ideal_world_has_a_record(tmp_path):
    run = finish(write_pair(tmp_path, {0: (0.75, 1.0)}, {0: 0.5, 1: 0.5}))
    np.testing.assert_array_equal(gap(run), [[0.25, np.nan]])


def test_an_unfinished_run_has_a_gap_where_both_worlds_have_records(tmp_path):
    real = {0: (0.75, 1.0), 2: (0.25, 1.0), 3: (0.2, 1.0)}
    run = write_pair(tmp_path, real, {0: 0.5, 1: 0.5, 2: 0.5})
    np.testing.assert_array_equal(gap(run), [[0.25, np.nan, -0.25]])


def test_the_gap_of_several_n_needs_to_know_which(tmp_path):
    with pytest.raises(ValueError, match="40, 160"):
        gap(write_run(tmp_path))


def test_the_gap_of_an_n_that_was_not_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no N = 41"):
        gap(write_run(tmp_path), n_samples=41)


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="soft_error"):
        gap(write_run(tmp_path), "accuracy", 40)


def test_convergence_is_the_first_evaluated_step_at_the_threshold():
    assert convergence_step(STEPS, np.array([0.9, 0.02, 0.01, 0.5, 0.0])) == 2


def test_a_missing_train_error_is_not_convergence():
    assert convergence_step(STEPS, np.array([np.nan, 0.5, np.nan, 0.0, 0.0])) == 4


def test_a_run_above_the_threshold_never_converges():
    assert convergence_step(STEPS, np.full(5, 0.0101)) is None
    assert convergence_step_interpolated(STEPS, np.full(5, 0.0101)) is None


def test_interpolated_convergence_is_where_the_line_crosses_the_threshold():
    train = np.array([0.9, 0.5, 0.03, 0.005, 0.0])  # 0.02 of a fall of 0.025, from step 2 to 4
    assert convergence_step_interpolated(STEPS, train) == pytest.approx(3.6)


def test_interpolation_skips_missing_evaluations():
    train = np.array([0.9, 0.03, np.nan, 0.0, 0.0])  # two thirds of the way from step 1 to 4
    assert convergence_step_interpolated(STEPS, train) == pytest.approx(3.0)


def test_a_run_converged_at_its_first_evaluation_is_not_interpolated():
    assert convergence_step_interpolated(STEPS, np.zeros(5)) == 0.0


def test_the_interval_is_student_t_by_hand():
    found = spread(np.array([1.0, 2.0, 3.0]))  # t(0.975, 2) = 4.302653, standard error 1 / sqrt(3)
    assert float(found.high) == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert float(found.low) == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)


def test_the_interval_agrees_with_scipy_at_every_step():
    values = np.random.default_rng(0).standard_normal((5, 4))
    found = spread(values)
    low, high = stats.t.interval(0.95, 4, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)


def test_missing_values_do_not_count_as_seeds():
    found = spread(np.array([[1.0, 1.0], [2.0, np.nan], [3.0, np.nan], [6.0, np.nan]]))
    assert found.n_seeds.tolist() == [4, 1]
    assert found.mean.tolist() == [3.0, 1.0]


def test_fewer_than_three_seeds_have_a_null_interval():
    assert spread(np.array([1.0, 3.0])).to_json() == {
        "mean": 2.0,
        "interval_95": None,
        "n_seeds": 2,
    }


def test_the_summary_has_the_gap_at_convergence(tmp_path):
    entry = only_entry(converging_pair(tmp_path))
    assert (entry["convergence_step"], entry["censored"]) == (4, False)
    assert entry["gap_at_convergence"] == {"error": 0.25, "soft_error": 0.125, "loss": 0.5}


def test_the_largest_gap_is_taken_until_convergence_and_without_its_sign(tmp_path):
    run = converging_pair(tmp_path, shift=0.0)
    assert only_entry(run)["max_abs_gap_until_convergence"]["error"] == 0.5
    with (run.path / "seed-0" / "ideal.jsonl").open("a") as ideal:
        ideal.write('{"step": 9, "test_error": 0.0}\n')
    with (run.path / "seed-0" / "real-n40.jsonl").open("a") as real:
        real.write('{"step": 9, "test_error": 1.0, "train_error": 0.0}\n')
    assert only_entry(load_run(run.path))["max_abs_gap_until_convergence"]["error"] == 0.5


def test_final_scores_are_of_the_last_step_that_both_worlds_have(tmp_path):
    real = {0: (0.75, 1.0), 1: (0.25, 0.5), 2: (0.2, 0.5)}
    entry = only_entry(write_pair(tmp_path, real, {0: 0.5, 1: 0.5}))
    assert entry["final_step"] == 1
    assert entry["final_real"] == {"error": 0.25, "soft_error": 0.125, "loss": 0.5}
    assert entry["final_ideal"] == {"error": 0.5, "soft_error": 0.25, "loss": 1.0}
    assert entry["final_gap"] == {"error": -0.25, "soft_error": -0.125, "loss": -0.5}


def test_a_world_that_never_converges_is_censored(tmp_path):
    entry = only_entry(write_pair(tmp_path, {0: (0.75, 0.5)}, {0: 0.5}))
    assert entry["censored"] is True
    assert entry["convergence_step"] is entry["convergence_step_interpolated"] is None
    assert entry["gap_at_convergence"] == {"error": None, "soft_error": None, "loss": None}
    assert entry["max_abs_gap_until_convergence"]["error"] == 0.25


def test_the_first_reuse_is_n_over_the_batch(tmp_path):
    by_n = summarise(write_run(tmp_path, n_samples=(45, 160), seeds=(0,)))["n_samples"]
    assert [of_n["first_reuse_step"] for of_n in by_n.values()] == [4, 16]


def test_a_foreign_run_has_no_known_first_reuse(tmp_path):
    assert across_seeds(converging_pair(tmp_path))["first_reuse_step"] is None


def test_seeds_are_summarised_by_mean_and_interval(tmp_path):
    for seed, shift in enumerate((0.0, 0.25, 0.5)):
        run = converging_pair(tmp_path, seed=seed, shift=shift)
    across = across_seeds(run)
    final = across["final_gap"]["error"]
    half = 4.302653 * 0.25 / math.sqrt(3)
    assert (final["mean"], final["n_seeds"]) == (0.375, 3)
    assert final["interval_95"] == pytest.approx([0.375 - half, 0.375 + half], abs=1e-6)


def test_convergence_means_say_how_many_seeds_converged(tmp_path):
    converging_pair(tmp_path, seed=0)
    converging_pair(tmp_path, seed=1)
    never = {0: (0.75, 0.9), 8: (0.5, 0.5)}
    run = write_pair(tmp_path, never, {0: 0.75, 8: 0.5}, seed=2)
    across = across_seeds(run)
    assert (across["n_seeds"], across["n_converged"]) == (3, 2)
    assert across["convergence_step"] == {"mean": 4.0, "interval_95": None, "n_seeds": 2}


def test_a_seed_that_stopped_early_is_not_in_the_final_mean(tmp_path):
    converging_pair(tmp_path, seed=0)
    run = write_pair(tmp_path, {0: (0.75, 0.9)}, {0: 0.0}, seed=1)
    across = across_seeds(run)
    assert across["final_step"] == 8
    assert across["final_gap"]["error"] == {"mean": 0.125, "interval_95": None, "n_seeds": 1}


def test_a_seed_without_this_n_has_no_entry(tmp_path):
    converging_pair(tmp_path, seed=0)
    run = write_world(tmp_path, None, [record(0, 0.5)], seed=1)
    assert list(across_seeds(run)["per_seed"]) == ["0"]


def test_the_summary_repeats_the_state_of_the_run(tmp_path):
    run = write_run(tmp_path)
    configure(run.path, n_test=10_000)
    summary = summarise(finish(run))
    assert (summary["run"], summary["status"]) == ("run", "complete")
    assert summary["seeds"] == [0, 1, 2]
    assert summary["n_test"] == 10_000


def test_every_seed_and_n_has_an_entry(tmp_path):
    by_n = summarise(write_run(tmp_path))["n_samples"]
    found = {n: list(of_n["per_seed"]) for n, of_n in by_n.items()}
    assert found == {"40": ["0", "1", "2"], "160": ["0", "1", "2"]}


@pytest.mark.parametrize("real", [{}, {0: (math.nan, math.nan)}, {3: (0.5, 0.0)}], ids=str)
def test_the_summary_of_a_poor_run_is_json(tmp_path, real):
    write_world(tmp_path, None, [record(0, 0.5), record(1, 0.5)])
    folder = write_world(tmp_path, 40, []).path / "seed-0"
    rows = [{"step": s, "test_error": e, "train_error": t} for s, (e, t) in real.items()]
    (folder / "real-n40.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = json.dumps(summarise(load_run(folder.parent)), allow_nan=False)
    assert list(json.loads(text)["n_samples"]) == ["40"]


def test_torch_is_not_imported():
    check = "import sys, bootstrap.plot, bootstrap.curves; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
