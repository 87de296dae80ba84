"""The scatter: real against ideal at convergence, and the same numbers beside it."""

import csv
import io

import numpy as np
import pytest
from synthetic_runs import configure, record, write_run, write_world

from bootstrap.curves import scalar_spread
from bootstrap.runlog import load_run, load_runs
from bootstrap.scatter import caption, dots_of, plot_scatter, scatter_csv, write_scatter
from bootstrap.series import Series, series_of
from bootstrap.summary import summarise

LONG_GRID = (0, 1, 2, 4, 8, 16, 24, 32, 40, 48)  # N = 40 converges at 40, N = 160 does not


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs"), grid=LONG_GRID)
    recipe = {"batch_size": 10, "n_steps": 48, "model": "mlp(width=8)", "optimizer": "sgd"}
    data = {"name": "toy", "label_source": "conditional"}
    configure(run.path, recipe=recipe, data=data, n_test=500, environment={"hardware": "a CPU"})
    return load_run(run.path)


def rows(dots):
    return list(csv.DictReader(io.StringIO(scatter_csv(dots).decode())))


def test_a_dot_stands_where_the_summary_says_that_the_worlds_are_at_convergence(run):
    converged, _ = dots_of(series_of([run]))
    summary = summarise(run)["n_samples"]["40"]
    assert converged.step == summary["convergence_step"]["mean"] == 40
    for metric in ("error", "soft_error"):
        found, expected = converged.over_seeds(metric, "gap"), summary["gap_at_convergence"][metric]
        assert found.mean == pytest.approx(expected["mean"], rel=1e-12)
        assert [found.low, found.high] == pytest.approx(expected["interval_95"], rel=1e-12)


def test_a_dot_is_the_mean_over_seeds_of_both_worlds(run):
    dot, _ = dots_of(series_of([run]))
    at = run.steps == 40
    for world, curves in (("real", run.real[40]), ("ideal", run.ideal)):
        by_seed = curves.test_soft_error[:, at][:, 0]
        assert dot.over_seeds("soft_error", world).to_json() == scalar_spread(list(by_seed))


def test_a_world_that_has_converged_before_its_first_step_stands_there(tmp_path):
    write_world(tmp_path, None, [record(0, 0.9), record(1, 0.5)])
    run = write_world(tmp_path, 20, [record(0, 0.9, 0.0), record(1, 0.6, 0.0)])
    (at,) = Series("learned before", run, 20).at_convergence
    assert (at.step, at.is_censored) == (0, False)


def test_seeds_converge_at_steps_of_their_own(tmp_path):
    for seed, converges in ((0, 2), (1, 4)):
        for n in (None, 40):
            train = [None if n is None else float(step < converges) for step in (0, 2, 4)]
            errors = [0.9, 0.8, 0.7] if n else [0.9, 0.6, 0.5]
            steps = zip((0, 2, 4), errors, train, strict=True)
            run = write_world(tmp_path, n, [record(*row) for row in steps], seed)
    (dot,) = dots_of(series_of([run]))
    np.testing.assert_array_equal(dot.values["error"]["real"], [0.8, 0.7])
    np.testing.assert_array_equal(dot.values["error"]["ideal"], [0.6, 0.5])
    assert (dot.step, dot.n_converged, dot.is_censored) == (3, 2, False)


def test_what_has_not_converged_is_hollow_at_the_last_step_and_said(run):
    dots = dots_of(series_of([run]))
    assert [dot.is_censored for dot in dots] == [False, True]
    assert dots[1].step == 48
    ax = plot_scatter(dots).axes[0]
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_linestyle() == "None"]
    assert [face == "white" for face in faces] == [False, True]
    assert "Hollow (1 of 2): not every seed has converged" in caption(dots)
    assert "Hollow" not in caption(dots[:1])


def test_bars_are_the_intervals_of_three_seeds(run):
    (dot, *_) = dots_of(series_of([run]))
    ax = plot_scatter([dot]).axes[0]
    ideal, real = (dot.over_seeds("soft_error", world) for world in ("ideal", "real"))
    _, horizontal, vertical, _ = ax.lines
    np.testing.assert_array_equal(horizontal.get_xdata(), [ideal.low, ideal.high])
    np.testing.assert_array_equal(vertical.get_ydata(), [real.low, real.high])


def test_equal_labels_have_one_colour_and_one_name_in_the_legend(run):
    series = [Series("ResNet", run, 40), Series("MLP", run, 160), Series("ResNet", run, 160)]
    ax = plot_scatter(dots_of(series)).axes[0]
    colours = [line.get_color() for line in ax.lines if line.get_linestyle() == "None"]
    assert colours[0] == colours[2] != colours[1]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["ResNet", "MLP", "y = x: no gap", "not converged"]


def test_both_axes_have_one_range_that_holds_every_mean(run):
    dots = dots_of(series_of([run]))
    ax = plot_scatter(dots).axes[0]
    assert ax.get_xlim() == ax.get_ylim()
    means = [
        dot.over_seeds("soft_error", world).mean for dot in dots for world in ("real", "ideal")
    ]
    assert ax.get_xlim()[0] < min(means) < max(means) < ax.get_xlim()[1]


def test_the_caption_says_data_n_steps_seeds_test_images_and_hardware(run):
    said = caption(dots_of(series_of([run])), "What for")
    for part in (
        "What for. ",
        "Data: toy (labels: conditional).",
        "N = 40 and 160, 48 SGD steps of batch 10.",
        "Mean of 3 seeds; Student-t 95 % interval across seeds.",
        "500 test images.",
        "Trained on a CPU.",
    ):
        assert part in said


def test_the_table_has_a_row_for_every_dot(run):
    found = rows(dots_of(series_of([run])))
    assert [(row["n_samples"], row["n_converged"]) for row in found] == [("40", "3"), ("160", "0")]
    assert {row["model"] for row in found} == {"mlp(width=8)"}
    gap = float(found[0]["real_soft_error"]) - float(found[0]["ideal_soft_error"])
    assert float(found[0]["gap_soft_error"]) == pytest.approx(gap)


def test_a_table_of_two_seeds_has_no_interval(run):
    (row,) = rows(dots_of([Series("MLP", run, 40, (0, 2))]))
    assert (row["n_seeds"], row["gap_error_low"], row["gap_error_high"]) == ("2", "", "")


def test_only_the_seeds_that_are_asked_for_count(run):
    (dot,) = dots_of([Series("MLP", run, 40, (2, 7))])
    assert [one.seed for one in dot.series.at_convergence] == [2]


def test_a_world_that_failed_makes_no_dot(tmp_path):
    run = write_run(tmp_path, n_samples=(40,), seeds=(0,))
    (run.path / "seed-0" / "real-n40.failed.json").write_text('{"step": 3, "reason": "NaN"}')
    assert dots_of(series_of([load_run(run.path)])) == []


def test_no_runs_make_an_empty_figure(tmp_path):
    for path in write_scatter([], tmp_path / "scatter"):
        assert path.stat().st_size > 0
    assert len(rows([])) == 0


def test_equal_runs_give_equal_files(run, tmp_path):
    first = [path.read_bytes() for path in write_scatter(series_of([run]), tmp_path / "a")]
    assert [p.read_bytes() for p in write_scatter(series_of([run]), tmp_path / "b")] == first


def test_plot_draws_the_scatter_of_all_runs_below_a_folder(run, deep_bootstrap, tmp_path):
    write_run(tmp_path / "first", n_samples=(40,))
    write_run(tmp_path / "second", n_samples=(40,))
    code, out, _ = deep_bootstrap("plot", tmp_path, "--scatter")
    assert code == 0
    assert out.splitlines()[-3:] == [
        str(tmp_path / f"scatter.{end}") for end in ("csv", "png", "svg")
    ]
    assert len((tmp_path / "scatter.csv").read_text().splitlines()) == 1 + len(load_runs(tmp_path))
