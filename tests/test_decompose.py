"""A design choice in numbers: speed + time + residual is what it changes, in any two runs."""

import csv
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from synthetic_runs import GRID, configure, finish, record, write_run, write_world

from bootstrap.choice_table import limit_n
from bootstrap.curves import approximate_from
from bootstrap.decompose import PairCurves, decompose, matched, score_at, stopping
from bootstrap.decompose_plot import choice_caption, plot_choice, write_explanation
from bootstrap.errors import ConfigurationError, DataError
from bootstrap.explanation import common, explain, explain_lines
from bootstrap.runlog import load_run

N = (20, 160)  # of synthetic runs: the first converges by step 32, the other never
TERMS = ("speed", "time", "residual", "total")
STEPS = np.array([0, 10, 20, 30])


def pair(real, ideal, train, steps=STEPS):
    rows = [np.atleast_2d(np.array(curve, dtype=np.float64)) for curve in (real, ideal, train)]
    return PairCurves(steps=np.asarray(steps), real=rows[0], ideal=rows[1], train_error=rows[2])


fraction = st.floats(0, 1, allow_subnormal=False)


@st.composite
def pairs(draw):
    """Two pairs of curves of three seeds on one grid, converged or not, soon or late."""
    curve = arrays(np.float64, (3, len(STEPS)), elements=fraction)
    trains = arrays(np.float64, (3, len(STEPS)), elements=st.sampled_from([0.0, 0.01, 0.02, 0.9]))
    return [pair(draw(curve), draw(curve), draw(trains)) for _ in range(2)]


# ---------------------------------------------------------------- the identities


@given(pairs())
@settings(max_examples=200, deadline=None)
def test_the_terms_add_up_to_the_change_of_the_real_error_at_convergence(both):
    baseline, choice = both
    found = decompose(baseline, choice)
    np.testing.assert_allclose(found.speed + found.time + found.residual, found.total, atol=1e-15)
    real = [score_at(p.steps, p.real, stopping(p).steps) for p in both]
    np.testing.assert_array_equal(found.total, real[1] - real[0])


@given(pairs())
@settings(max_examples=200, deadline=None)
def test_the_baseline_against_the_choice_is_the_opposite(both):
    there, back = decompose(*both), decompose(*reversed(both))
    for name in TERMS:
        np.testing.assert_allclose(getattr(there, name), -getattr(back, name), atol=1e-15)


@given(pairs())
@settings(max_examples=200, deadline=None)
def test_at_equal_steps_the_change_is_that_of_the_ideal_error_and_of_the_gap(both):
    found = matched(*both)
    np.testing.assert_array_equal(found.steps, STEPS)
    np.testing.assert_array_equal(found.real, both[1].real - both[0].real)
    np.testing.assert_array_equal(found.ideal, both[1].ideal - both[0].ideal)
    np.testing.assert_allclose(found.ideal + found.gap, found.real, atol=1e-15)


def test_the_terms_are_those_of_a_calculation_by_hand():
    baseline = pair([0.9, 0.5, 0.5, 0.5], [0.9, 0.4, 0.3, 0.2], [0.9, 0.0, 0.0, 0.0])  # tau 10
    choice = pair([0.9, 0.6, 0.3, 0.3], [0.9, 0.3, 0.1, 0.1], [0.9, 0.5, 0.0, 0.0])  # tau 20
    found = decompose(baseline, choice)
    assert found.speed[0] == pytest.approx(((0.3 - 0.4) + (0.1 - 0.3)) / 2)
    assert found.time[0] == pytest.approx(((0.1 - 0.3) + (0.3 - 0.4)) / 2)
    assert found.residual[0] == pytest.approx((0.3 - 0.1) - (0.5 - 0.4))
    assert found.total[0] == pytest.approx(0.3 - 0.5)


def test_a_choice_that_only_learns_faster_from_fresh_samples_is_all_speed():
    baseline = pair([0.9, 0.6, 0.5, 0.5], [0.9, 0.5, 0.4, 0.3], [0.9, 0.5, 0.0, 0.0])
    choice = pair([0.9, 0.5, 0.4, 0.4], [0.9, 0.4, 0.3, 0.2], [0.9, 0.5, 0.0, 0.0])
    found = decompose(baseline, choice)
    assert found.speed[0] == pytest.approx(-0.1)
    assert (found.time[0], found.residual[0]) == (0, pytest.approx(0))


def test_a_choice_that_only_converges_later_is_all_time():
    ideal = [0.9, 0.5, 0.4, 0.3]
    baseline = pair([0.9, 0.6, 0.6, 0.6], ideal, [0.9, 0.0, 0.0, 0.0])
    choice = pair([0.9, 0.6, 0.5, 0.4], ideal, [0.9, 0.5, 0.5, 0.0])
    found = decompose(baseline, choice)
    assert found.time[0] == pytest.approx(0.3 - 0.5)
    assert (found.speed[0], found.residual[0]) == (0, pytest.approx(0))


def test_a_run_against_itself_changes_nothing(tmp_path):
    run = write_run(tmp_path)
    found = explain(run, run)["n_samples"]["40"]
    assert {found["error"][name]["mean"] for name in TERMS} == {0.0}


# ---------------------------------------------------------------- convergence


def test_a_world_that_never_converges_is_censored_at_the_last_step():
    found = stopping(pair([[0.5] * 4] * 2, [[0.5] * 4] * 2, [[0.9, 0.5, 0.02, 0.011], [0.01] * 4]))
    np.testing.assert_array_equal(found.steps, [30, 0])
    np.testing.assert_array_equal(found.is_censored, [True, False])


def test_a_world_that_converges_at_the_last_step_is_not_censored():
    found = stopping(pair([0.5] * 4, [0.5] * 4, [0.9, 0.5, 0.02, 0.01]))
    assert (found.steps[0], found.is_censored[0]) == (30, False)


def test_censoring_is_told_by_run_and_seed(tmp_path):
    run = write_run(tmp_path, n_samples=N)
    found = explain(run, run)["n_samples"]
    assert found["160"]["convergence"]["choice"]["n_censored"] == 3
    assert found["160"]["convergence"]["choice"]["step"]["mean"] is None
    assert found["160"]["per_seed"]["0"]["convergence"]["choice"] == {
        "step": GRID[-1],
        "censored": True,
    }
    assert found["20"]["convergence"]["choice"]["n_censored"] == 0
    assert "never converges (censored: the last step stands for it)" in "\n".join(
        explain_lines(explain(run, run))
    )


def test_between_two_evaluations_a_score_is_on_the_line_through_them():
    values = np.array([[1.0, 0.5, np.nan, 0.2], [np.nan, 0.5, 0.4, np.nan]])
    found = score_at(STEPS, values, np.array([5, 20]))
    np.testing.assert_allclose(found, [0.75, 0.4])
    np.testing.assert_allclose(score_at(STEPS, values, np.array([20, 25])), [0.35, np.nan])


def test_a_baseline_may_converge_at_a_step_at_which_the_choice_was_not_evaluated():
    baseline = pair([0.9, 0.5, 0.4, 0.3], [0.9, 0.5, 0.4, 0.3], [0.9, 0.0, 0.0, 0.0])
    choice = pair([0.9, 0.2, 0.2], [0.9, 0.1, 0.1], [0.9, 0.0, 0.0], steps=[0, 20, 30])
    found = decompose(baseline, choice)
    assert found.speed[0] == pytest.approx(((0.5 - 0.5) + (0.1 - 0.4)) / 2)
    np.testing.assert_array_equal(matched(baseline, choice).steps, [0, 20, 30])


def test_runs_of_different_length_are_refused():
    short = pair([0.9, 0.5], [0.9, 0.5], [0.9, 0.0], steps=[0, 10])
    long = pair([0.9] * 4, [0.9] * 4, [0.9] * 4)
    with pytest.raises(DataError, match=r"ends at step 10, the choice at step 30.*--n-steps"):
        decompose(short, long)


def test_a_seed_without_all_records_counts_in_no_term():
    zero = pair([[0.9, 0.5, 0.5, 0.5]] * 2, [[0.9, 0.6, 0.5, 0.4]] * 2, [[0.9, 0.5, 0.5, 0.5]] * 2)
    real = [[0.9, 0.5, 0.4, 0.3], [0.9, 0.5, np.nan, np.nan]]  # the second was interrupted
    choice = pair(real, [[0.9, 0.4, 0.3, 0.2]] * 2, [[0.9, 0.5, 0.5, 0.5]] * 2)
    found = decompose(zero, choice)
    for name in TERMS:
        assert [*np.isfinite(getattr(found, name))] == [True, False], name


# ---------------------------------------------------------------- two runs


@pytest.fixture
def runs(tmp_path):
    """A baseline and a choice of three seeds; the choice is better by its own noise only."""
    found = []
    for name, noise in (("slow", 0.004), ("fast", 0.02)):
        run = write_run(tmp_path / "made", n_samples=N, noise=noise)
        path = tmp_path / name
        shutil.move(run.path, path)
        recipe = {"batch_size": 10, "n_steps": GRID[-1], "optimizer": f"sgd(lr={noise})"}
        configure(path, recipe=recipe, identity={"data": "same", "n_test": 9})
        found.append(finish(load_run(path)))
    return found


def test_an_interval_is_that_of_the_differences_within_seeds(runs):
    found = explain(*runs)["n_samples"]["20"]
    totals = [found["per_seed"][str(seed)]["error"]["total"] for seed in (0, 1, 2)]
    half = stats.t.ppf(0.975, 2) * np.std(totals, ddof=1) / np.sqrt(3)
    ends = [np.mean(totals) - half, np.mean(totals) + half]
    assert found["error"]["total"]["interval_95"] == pytest.approx(ends)
    assert found["error"]["total"]["n_seeds"] == 3


def test_two_seeds_have_no_interval(runs):
    shutil.rmtree(runs[0].path / "seed-2")
    found = explain(load_run(runs[0].path), runs[1])
    assert found["seeds"] == [0, 1]
    assert found["n_samples"]["20"]["error"]["speed"]["interval_95"] is None
    assert "none (2 seeds)" in "\n".join(explain_lines(found))


def test_the_terms_of_two_runs_add_up_for_every_score(runs):
    for found in explain(*runs)["n_samples"].values():
        for metric in ("error", "soft_error", "loss"):
            *terms, total = (found[metric][name]["mean"] for name in TERMS)
            assert sum(terms) == pytest.approx(total, abs=1e-15)
            final = found["final"][metric]
            parts = final["ideal"]["mean"] + final["gap"]["mean"]
            assert parts == pytest.approx(final["real"]["mean"], abs=1e-15)


def with_calibration(run, ece):
    """The run with what `calibration` measures: this error, and a tenth of the test error."""
    for path in run.path.glob("seed-*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            extra = {"test_ece": ece + row["test_error"] / 10, "test_scaled_loss": 1.0}
            row["extra"] = extra | {"test_scaled_soft_error": row["test_error"] / 4}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_run(run.path)


def test_measures_of_calibration_are_told_of_both_worlds_at_the_last_step(runs):
    found = explain(with_calibration(runs[0], 0.3), with_calibration(runs[1], 0.1))
    final, lines = found["n_samples"]["160"]["final"], "\n".join(explain_lines(found))
    for world in ("real", "ideal"):
        error = final["error"][world]["mean"]
        assert final["ece"][world]["mean"] == pytest.approx(error / 10 - 0.2)
        assert final["scaled_soft_error"][world]["mean"] == pytest.approx(error / 4)
        assert final["scaled_loss"][world] == {
            "mean": 0.0,
            "interval_95": [0.0, 0.0],
            "n_seeds": 3,
        }
        told = final["ece"][world]
        low, high = told["interval_95"]
        assert f"{told['mean']:+.4f}" in lines
        assert f"{low:+.4f} to {high:+.4f}" in lines
    assert lines.count(" ECE ") == lines.count("scaled soft-error") == len(N)


@pytest.mark.parametrize("measured", [(), (0,), (1,)])
def test_nothing_is_said_of_calibration_that_a_run_did_not_measure(runs, measured):
    both = [with_calibration(run, 0.1) if k in measured else run for k, run in enumerate(runs)]
    found = explain(*both)
    assert {*found["n_samples"]["20"]["final"]} == {"step", "error", "soft_error", "loss"}
    assert "ECE" not in "\n".join(explain_lines(found))


def test_it_is_said_in_what_the_two_runs_differ(runs):
    assert explain(*runs)["differences"] == ["recipe.optimizer (sgd(lr=0.004) and sgd(lr=0.02))"]


def test_runs_on_other_data_are_refused(runs):
    configure(runs[1].path, identity={"data": "other", "n_test": 9})
    with pytest.raises(DataError, match="cannot be compared, they differ in data"):
        explain(runs[0], load_run(runs[1].path))


def test_runs_with_other_test_images_on_the_curve_are_refused(runs):
    configure(runs[0].path, n_test_curve=64)
    configure(runs[1].path, n_test_curve=65)
    with pytest.raises(DataError, match="they differ in n_test_curve"):
        explain(load_run(runs[0].path), load_run(runs[1].path))


@pytest.mark.parametrize(
    ("what", "options"), [("seed", {"seeds": (7,)}), ("N", {"n_samples": [8]})]
)
def test_runs_without_a_seed_or_n_in_common_are_refused(runs, tmp_path, what, options):
    other = write_run(tmp_path / "other", **options)
    with pytest.raises(ConfigurationError, match=f"have no {what} in common"):
        common(runs[0], other)


def test_a_seed_without_its_last_records_is_left_out_and_said(runs):
    path = runs[1].path / "seed-1" / "ideal.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    found = explain(runs[0], load_run(runs[1].path))["n_samples"]["20"]
    assert (found["left_out"], [*found["per_seed"]]) == ([1], ["0", "2"])
    assert found["error"]["total"]["n_seeds"] == 2


def test_a_failed_world_is_left_out(runs):
    (runs[1].path / "seed-1" / "real-n20.failed.json").write_text('{"step": 3, "reason": "nan"}')
    found = explain(runs[0], load_run(runs[1].path))["n_samples"]
    assert (found["20"]["left_out"], found["160"]["left_out"]) == ([1], [])


def test_the_figure_leaves_out_a_failed_seed_and_says_so(runs):
    (runs[1].path / "seed-1" / "real-n20.failed.json").write_text('{"step": 3, "reason": "nan"}')
    both = runs[0], load_run(runs[1].path)
    said = choice_caption(*both, 20)
    assert "2 seeds, a dot each; no interval." in said
    assert "Left out, a world has no record or failed: seed 1." in said
    assert "never converged" not in said
    below = plot_choice(*both, 20).axes[1]
    assert {len(line.get_xdata()) for line in below.lines if line.get_marker() == "o"} == {2}


def test_where_all_seeds_failed_nothing_is_compared_and_that_is_said(runs):
    for seed in (0, 1, 2):
        path = runs[1].path / f"seed-{seed}" / "real-n160.failed.json"
        path.write_text('{"step": 3, "reason": "nan"}')
    both = runs[0], load_run(runs[1].path)
    said = choice_caption(*both, 160)
    assert "No seed has all records of both runs, so nothing is compared." in said
    assert "never converged" not in said
    assert "seeds; bands" not in said
    lines = "\n".join(explain_lines(explain(*both)))
    assert "left out, a world has no record or failed: seeds [0, 1, 2]" in lines
    assert lines.count("never converges") == 0


def test_all_numbers_of_a_choice_are_over_the_same_seeds(runs):
    path = runs[1].path / "seed-1" / "real-n20.jsonl"  # converged, then interrupted
    *rows, converged, _ = [json.loads(line) for line in path.read_text().splitlines()]
    rows.append(converged | {"train_error": 0.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = runs[0], load_run(runs[1].path)
    told = explain(*both)["n_samples"]["20"]
    assert told["left_out"] == [1]
    assert {told["error"][term]["n_seeds"] for term in TERMS} == {2}
    assert {told["final"]["loss"][world]["n_seeds"] for world in ("real", "ideal", "gap")} == {2}
    assert "2 seeds, a dot each" in choice_caption(*both, 20)


def test_a_run_without_any_common_step_is_named(runs):
    for path in runs[1].path.glob("seed-*/ideal.jsonl"):
        path.write_text("")
    with pytest.raises(DataError, match="fast: no step at which both worlds were evaluated"):
        explain(runs[0], load_run(runs[1].path))


def test_the_gap_at_convergence_is_over_seeds_that_converge(runs):
    for name in ("baseline", "choice"):
        told = [
            f["gap_at_convergence"][name]["error"] for f in explain(*runs)["n_samples"].values()
        ]
        assert [gap["n_seeds"] for gap in told] == [3, 0]  # N = 160 never does
        assert told[1]["mean"] is None


def approximate(run, step, **config):
    """The run with an ideal world whose samples are used again after a step."""
    for path in run.path.glob("seed-*/ideal.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row["step"] > step:
                row["extra"] = {"approximate": 1.0}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    configure(run.path, pool_n_samples=10 * step, **config)
    return load_run(run.path)


def test_an_approximate_ideal_world_is_told_and_has_no_limit(runs):
    runs[1] = approximate(runs[1], 16)
    found = explain(*runs)
    note = "from step 16 on the ideal world is approximate (choice)."
    assert note in "\n".join(explain_lines(found))
    assert note in choice_caption(*runs, 20)
    assert "(baseline)." not in choice_caption(*runs, 20)
    assert (limit_n(explain(runs[0], runs[0])), limit_n(found)) == (320, None)


def test_a_pruned_stream_ends_earlier(runs):
    assert approximate_from(approximate(runs[0], 16, n_kept=80)) == 8
    assert approximate_from(approximate(runs[0], 16, n_kept=80, n_own=30)) == 5


def test_a_pair_without_any_record_in_common_does_not_crash(tmp_path):
    runs = []
    for name in ("a", "b"):
        write_world(tmp_path / name, None, [record(0, 0.9)])
        runs.append(write_world(tmp_path / name, 20, [record(0, 0.9, 0.9)]))
    assert explain(*runs)["n_samples"]["20"]["error"]["total"]["mean"] == 0
    assert plot_choice(*runs, 20).axes


# ---------------------------------------------------------------- files and figure


def test_the_table_holds_the_four_curves_and_their_differences(runs, tmp_path):
    write_explanation(*runs, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "explain.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * len(GRID) * 3  # N, seeds, steps, scores
    for row in rows:
        real = float(row["choice_real"]) - float(row["baseline_real"])
        assert float(row["d_real"]) == real
        assert float(row["d_ideal"]) + float(row["d_gap"]) == pytest.approx(real, abs=1e-12)


def test_the_figure_names_its_four_curves_and_terms(runs):
    above, below = plot_choice(*runs, 20).axes
    names = {text.get_text() for text in above.texts}
    assert names >= {f"{w}, {r}" for w in ("real", "ideal") for r in ("baseline", "choice")}
    assert [t.get_text() for t in below.get_yticklabels()] == [*TERMS, "last step"]
    assert len(below.patches) == 5


def test_the_figure_marks_convergence_on_both_worlds_of_both_runs(runs):
    above = plot_choice(*runs, 20).axes[0]
    marks = [
        line for line in above.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1
    ]
    assert len(marks) == 4
    never = plot_choice(*runs, 160).axes[0]
    assert sum(line.get_marker() == ">" for line in never.lines) == 4
    assert "The choice never converged: the last step stands for it." in choice_caption(*runs, 160)


def test_equal_runs_give_equal_files(runs, tmp_path):
    _, first = write_explanation(*runs, tmp_path / "one")
    _, second = write_explanation(*runs, tmp_path / "two")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# ---------------------------------------------------------------- command line


def test_the_command_prints_saves_and_draws(runs, deep_bootstrap):
    code, out, err = deep_bootstrap("explain", runs[0].path, runs[1].path)
    assert code == 0, err
    folder = runs[1].path / "explain" / "slow"
    found = json.loads((folder / "explain.json").read_bytes())
    assert {path.name for path in folder.iterdir()} == {
        *("explain.json", "explain.csv"),
        *(f"explain-n{n}.{kind}" for n in N for kind in ("png", "svg")),
    }
    total = found["n_samples"]["20"]["error"]["total"]["mean"]
    assert f"{total:+.4f}" in out
    assert str(folder / "explain-n20.png") in out


def test_the_command_says_in_one_line_what_is_no_run(runs, deep_bootstrap, tmp_path):
    code, _, err = deep_bootstrap("explain", runs[0].path, tmp_path / "none")
    assert (code, err.count("\n")) == (3, 1)
    assert "no pair.json, so this is not a run" in err
