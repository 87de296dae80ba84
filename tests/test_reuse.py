"""The reuse rate and its law, on curves for which both are known."""

import json
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from synthetic_runs import BATCH_SIZE, configure, record, write_run, write_world

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.reuse import (
    across_horizons,
    fit_law,
    reuse_of,
    samples_to_reach,
    score_at,
    worth_of_repetition,
)
from bootstrap.reuse_plot import plot_reuse, write_reuse_figure
from bootstrap.runlog import load_run, load_runs
from bootstrap.summary import summarise

STEPS = (0, *(2**i for i in range(11)))  # at BATCH_SIZE 10, samples are 10 times these
FINE = (0, *np.unique(np.geomspace(1, 4096, 400).round().astype(int)).tolist())
NO_LIMIT = dict.fromkeys((10, 20, 40, 80), 1e9)


def log_line(samples):
    """Falls on a straight line in log samples, so that interpolation is exact."""
    return 0.9 - 0.05 * math.log(max(samples, 1))


def power_law(samples):
    return 0.1 + 0.8 * max(samples, 1) ** -0.3


def repeating(n_samples, r_star):
    """Fresh samples that a real world's samples are worth by the law of repetition."""
    return lambda samples: (
        samples
        if samples <= n_samples
        else n_samples * float(worth_of_repetition(samples / n_samples - 1, r_star))
    )


def write_pair(root, worth, score=log_line, steps=STEPS, seed=0, ideal_steps=None, lr=None):
    """Every real world, a function from its samples to the fresh ones that they are worth, by N."""
    lr = lr or (lambda step: 0.1)

    def rows(of_steps, fresh):
        values = {step: score(fresh(step * BATCH_SIZE)) for step in of_steps}
        return [replace(record(step, value), lr=lr(step)) for step, value in values.items()]

    run = write_world(root, None, rows(ideal_steps or steps, float), seed)
    for n, fresh in worth.items():
        run = write_world(root, n, rows(steps, fresh), seed)
    return run


def rates(run, n_samples, metric="soft_error", seed=0):
    """E by passes."""
    of_seed = summarise(run)["n_samples"][str(n_samples)]["per_seed"][str(seed)]["reuse_rate"]
    return {int(k): by_metric[metric] for k, by_metric in of_seed.items()}


def law_rates(r_star, n_samples=(10, 20, 40), passes=(1, 2, 4, 8)):
    return {n: {k: float(worth_of_repetition(k - 1, r_star)) for k in passes} for n in n_samples}


# ---------------------------------------------------------------- one curve


def test_the_samples_to_reach_a_score_are_interpolated_in_log_samples():
    samples, scores = np.array([0.0, 10, 1000]), np.array([1.0, 0.5, 0.3])
    assert samples_to_reach(samples, scores, 0.4) == pytest.approx(100)


def test_a_score_between_records_is_interpolated_in_log_samples():
    samples, scores = np.array([0.0, 10, 1000]), np.array([1.0, 0.5, 0.3])
    assert score_at(samples, scores, 100) == pytest.approx(0.4)


def test_a_level_is_reached_the_first_time():
    samples, scores = np.array([0.0, 10, 20, 40, 80]), np.array([1.0, 0.5, 0.7, 0.4, 0.3])
    assert samples_to_reach(samples, scores, 0.5) == 10


def test_a_level_that_is_never_reached_is_infinity():
    assert samples_to_reach(np.array([0.0, 10]), np.array([1.0, 0.5]), 0.4) == math.inf


def test_what_an_untrained_model_reaches_takes_no_samples():
    assert samples_to_reach(np.array([0.0, 10]), np.array([0.9, 0.5]), 0.95) == 0


def test_a_level_above_the_first_of_several_horizons_is_unknown():
    assert math.isnan(samples_to_reach(np.array([10.0, 20]), np.array([0.9, 0.5]), 0.95))


def test_missing_records_are_passed_over():
    samples, scores = np.array([0, 10, np.nan, 1000]), np.array([1.0, 0.5, 0.1, 0.3])
    assert samples_to_reach(samples, scores, 0.4) == pytest.approx(100)
    assert score_at(samples, scores, 100) == pytest.approx(0.4)


# ---------------------------------------------------------------- the rate


def test_a_world_that_never_repeats_has_e_equal_to_k(tmp_path):
    found = rates(write_pair(tmp_path, {80: float}), 80)
    assert found == pytest.approx({1: 1, 2: 2, 4: 4, 8: 8, 16: 16, 32: 32, 64: 64, 128: 128})


def test_repetition_that_is_worth_nothing_has_e_1(tmp_path):
    found = rates(write_pair(tmp_path, {80: lambda samples: min(samples, 80)}), 80)
    assert found == pytest.approx(dict.fromkeys(found, 1))


def test_repetition_that_is_worth_half_has_half_of_the_further_passes(tmp_path):
    run = write_pair(tmp_path, {80: lambda s: s if s <= 80 else 80 + (s - 80) / 2})
    assert rates(run, 80) == pytest.approx({k: 1 + (k - 1) / 2 for k in rates(run, 80)})


def test_repetition_that_harms_has_e_below_1(tmp_path):
    run = write_pair(tmp_path, {80: lambda s: s if s <= 80 else 80 * 80 / s})
    assert rates(run, 80)[4] == pytest.approx(1 / 4)


def test_repetition_that_beats_fresh_samples_has_e_above_k(tmp_path):
    run = write_pair(tmp_path, {80: lambda s: s if s <= 80 else 2 * s})
    assert rates(run, 80)[4] == pytest.approx(8)


@pytest.mark.parametrize("metric", ["error", "soft_error", "loss"])
def test_a_world_that_follows_the_law_has_its_e_in_every_metric(tmp_path, metric):
    run = write_pair(tmp_path, {640: repeating(640, 5.0)}, power_law, FINE)
    found = rates(run, 640, metric)
    assert found == pytest.approx({k: worth_of_repetition(k - 1, 5.0) for k in found}, rel=2e-3)
    assert {1, 2, 4, 8, 16, 32, 64} == set(found)


def test_passes_are_powers_of_two_and_the_last_whole_one(tmp_path):
    assert list(rates(write_pair(tmp_path, {100: float}, steps=(0, 5, 10, 77)), 100)) == [
        1,
        2,
        4,
        7,
    ]


def test_an_n_that_is_never_repeated_has_one_pass_or_none(tmp_path):
    run = write_pair(tmp_path, {10_240: float, 10_241: float})
    assert rates(run, 10_240) == pytest.approx({1: 1})
    assert rates(run, 10_241) == {}


def test_e_is_the_same_whatever_the_score(tmp_path):
    worth = {80: repeating(80, 3.0)}
    straight = rates(write_pair(tmp_path / "a", worth, log_line, FINE), 80)
    power = rates(write_pair(tmp_path / "b", worth, power_law, FINE), 80)
    assert straight == pytest.approx(power, rel=5e-3)


# ---------------------------------------------------------------- not reached


def test_what_is_not_reached_is_null_with_the_samples_of_the_ideal_world_as_its_bound(tmp_path):
    run = write_pair(tmp_path, {80: lambda s: 2 * s}, ideal_steps=(0, 8, 16, 32))
    of_n = summarise(run)["n_samples"]["80"]
    entry = of_n["per_seed"]["0"]
    assert rates(run, 80) == {1: pytest.approx(2), 2: pytest.approx(4)} | dict.fromkeys(
        (4, 8, 16, 32, 64, 128)
    )
    assert entry["reuse_rate_limit"] == 320 / 80
    assert of_n["reuse_rate"]["4"]["loss"] == {
        **{"mean": None, "interval_95": None, "n_seeds": 1, "lower_bound": 4.0}
    }
    assert of_n["reuse_rate"]["2"]["loss"]["lower_bound"] is None


def test_a_seed_that_is_not_reached_leaves_a_bound_and_no_mean(tmp_path):
    write_pair(tmp_path, {80: lambda s: s if s <= 80 else 80 + (s - 80) / 3}, seed=0)
    run = write_pair(tmp_path, {80: float}, seed=1, ideal_steps=(0, 8, 16))
    at_4 = summarise(run)["n_samples"]["80"]["reuse_rate"]["4"]["error"]
    assert at_4["mean"] is None
    assert at_4["n_seeds"] == 2
    assert at_4["lower_bound"] == pytest.approx((2 + 2) / 2)  # E = 2, and above 2


def test_the_interval_is_student_t_over_seeds(tmp_path):
    for seed, worth in enumerate((1.0, 2.0, 3.0)):
        fresh = {80: lambda s, worth=worth: s if s <= 80 else worth * s}
        run = write_pair(tmp_path, fresh, seed=seed)
    at_2 = summarise(run)["n_samples"]["80"]["reuse_rate"]["2"]["soft_error"]
    half = 4.302653 * 2 / math.sqrt(3)  # of 2, 4 and 6; t(0.975, 2)
    assert at_2["mean"] == pytest.approx(4)
    assert at_2["interval_95"] == pytest.approx([4 - half, 4 + half], abs=1e-5)


def test_a_seed_that_has_not_come_so_far_does_not_count(tmp_path):
    write_pair(tmp_path, {80: float}, seed=0)
    run = write_pair(tmp_path, {80: float}, seed=1, steps=(0, 8, 16))
    of_k = summarise(run)["n_samples"]["80"]["reuse_rate"]
    assert [of_k[k]["error"]["n_seeds"] for k in ("2", "4")] == [2, 1]


# ---------------------------------------------------------------- what it is called


@pytest.mark.parametrize(
    ("lr", "name"),
    [
        (lambda step: 0.1, "reuse_rate"),
        (lambda step: 0.1 * min(1, step / 64), "reuse_rate"),
        (lambda step: 0.1 * (1 - step / 1024), "reuse_rate_on_trajectory"),
        (lambda step: 0.1 if step < 1024 else 0.02, "reuse_rate_on_trajectory"),
    ],
    ids=["constant", "warm-up, then stable", "decaying", "falling at the end"],
)
def test_only_a_learning_rate_that_never_falls_gives_e(tmp_path, lr, name):
    summary = summarise(write_pair(tmp_path, {80: float}, lr=lr))
    of_n = summary["n_samples"]["80"]
    assert {key for key in of_n if key.startswith("reuse")} == {name}
    assert {key for key in summary if key.startswith("reuse")} == {f"{name}_law"}
    assert of_n[name]["4"]["loss"]["mean"] == pytest.approx(4)


def write_horizons(root, worth, horizons=STEPS[3:]):
    """One run per horizon: only the last step of each says anything."""
    for horizon in horizons:
        folder = root / str(horizon)
        for n, fresh in {None: float, **worth}.items():
            end = log_line(fresh(horizon * BATCH_SIZE))
            steps = {0: 0.9, horizon // 2: 0.0, horizon: end}  # on the way it says nothing
            write_world(folder, n, [record(step, score) for step, score in steps.items()])
        configure(folder / "run", recipe={"n_steps": horizon, "schedule": "cosine"})
    return load_runs(root)


def test_one_run_per_horizon_gives_e_from_last_steps_alone(tmp_path):
    runs = write_horizons(tmp_path, {80: repeating(80, 5.0)})
    found = across_horizons(runs)
    assert found.name == "reuse_rate"
    means = {int(k): by["soft_error"]["mean"] for k, by in found.across(80).items()}
    assert means == pytest.approx({k: worth_of_repetition(k - 1, 5.0) for k in means})
    assert set(means) == {1, 2, 4, 8, 16, 32, 64, 128}


def test_the_order_of_horizons_does_not_matter(tmp_path):
    runs = write_horizons(tmp_path, {80: repeating(80, 5.0)})
    assert across_horizons(runs[::-1]).to_json() == across_horizons(runs).to_json()


def test_a_run_that_has_not_come_to_its_last_step_is_no_horizon(tmp_path):
    runs = write_horizons(tmp_path, {80: float})
    (last,) = [run for run in runs if run.config["recipe"]["n_steps"] == 1024]
    configure(last.path, recipe={"n_steps": 1025, "schedule": "cosine"})
    assert max(across_horizons(load_runs(tmp_path)).rates[80]) == 64


def test_a_horizon_past_the_streams_end_does_not_count(tmp_path):
    runs = write_horizons(tmp_path, {80: float})
    (last,) = [run for run in runs if run.config["recipe"]["n_steps"] == 1024]
    path = last.path / "seed-0" / "ideal.jsonl"
    *rows, end = [json.loads(line) for line in path.read_text().splitlines()]
    end["extra"] = {"approximate": 1.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, end)))
    (limit,) = across_horizons(load_runs(tmp_path)).limits[80]
    assert limit == 512 * BATCH_SIZE / 80


def test_a_horizon_with_a_failed_world_does_not_count(tmp_path):
    runs = write_horizons(tmp_path, {80: float})
    (last,) = [run for run in runs if run.config["recipe"]["n_steps"] == 1024]
    (last.path / "seed-0" / "real-n80.failed.json").write_text('{"step": 1024, "reason": "nan"}')
    assert max(across_horizons(load_runs(tmp_path)).rates[80]) == 64


def test_horizons_of_different_recipes_are_refused(tmp_path):
    runs = write_horizons(tmp_path, {80: float})
    configure(runs[0].path, recipe={"n_steps": 9, "schedule": "constant"})
    with pytest.raises(DataError, match="differ in schedule"):
        across_horizons(load_runs(tmp_path))


def test_one_horizon_is_not_enough(tmp_path):
    runs = write_horizons(tmp_path, {80: float}, horizons=(8,))
    with pytest.raises(DataError, match="one run per horizon"):
        across_horizons(runs)


# ---------------------------------------------------------------- the law


def test_the_first_repetitions_are_worth_fresh_passes():
    assert worth_of_repetition(1e-6, 5.0) - 1 == pytest.approx(1e-6, rel=1e-5)


def test_repetitions_without_end_are_worth_r_star_passes():
    assert worth_of_repetition(1e6, 5.0) == pytest.approx(1 + 5)


def test_the_worth_of_one_repetition_by_hand():
    assert worth_of_repetition(1, 2.0) == pytest.approx(1 + 2 * (1 - math.exp(-0.5)))


@pytest.mark.parametrize("r_star", [0.2, 5.0, 40.0])
def test_the_fit_finds_the_r_star_that_made_the_rates(r_star):
    law = fit_law(law_rates(r_star), NO_LIMIT)
    assert law.r_star == pytest.approx(r_star, rel=1e-4)
    assert law.rms_log_residual < 1e-6


def test_a_rate_that_was_not_reached_only_bounds_the_law():
    rates_by_n = law_rates(5.0, n_samples=(10, 20, 40, 80))
    rates_by_n[80] |= {4: math.inf, 8: math.inf}
    at_4, at_8 = (float(worth_of_repetition(k - 1, 5.0)) for k in (4, 8))
    assert fit_law(rates_by_n, NO_LIMIT | {80: at_4 - 0.1}).r_star == pytest.approx(5, rel=1e-4)
    assert fit_law(rates_by_n, NO_LIMIT | {80: at_8 + 1}).r_star > 5.1


def test_without_decay_there_is_no_r_star():
    law = fit_law({n: {k: k for k in (1, 2, 4, 8)} for n in (10, 20, 40)}, NO_LIMIT)
    assert law.r_star == math.inf


@pytest.mark.parametrize(
    ("rates_by_n", "why"),
    [
        ({}, "there is none"),
        (law_rates(5.0, n_samples=(10, 20)), "N = 10 has 4, N = 20 has 4"),
        (law_rates(5.0, passes=(1, 2, 4)), "N = 10 has 3, N = 20 has 3, N = 40 has 3"),
        (
            law_rates(5.0) | {40: {1: 1.0, 2: 1.9, 4: math.inf, 8: math.inf}},
            "N = 10 has 4, N = 20 has 4, N = 40 has 2",
        ),
    ],
    ids=["nothing", "2 N", "3 passes", "not reached"],
)
def test_too_few_rates_are_refused_in_one_line(rates_by_n, why):
    with pytest.raises(ConfigurationError) as refused:
        fit_law(rates_by_n, NO_LIMIT)
    assert why in str(refused.value)
    assert "4 numbers of passes for each of 3 N" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_summary_has_the_law(tmp_path):
    worth = {n: repeating(n, 5.0) for n in (160, 320, 640)}
    for seed in range(3):
        run = write_pair(tmp_path, worth, power_law, FINE, seed)
    law = summarise(run)["reuse_rate_law"]["soft_error"]
    assert law["r_star"]["mean"] == pytest.approx(5, rel=5e-3)
    assert law["r_star"]["n_seeds"] == 3
    assert law["rms_log_residual"] < 1e-2


def test_the_summary_bounds_an_r_star_that_cannot_be_seen(tmp_path):
    run = write_pair(tmp_path, dict.fromkeys((80, 160, 320), float))
    r_star = summarise(run)["reuse_rate_law"]["loss"]["r_star"]
    assert r_star["mean"] is None
    assert r_star["lower_bound"] == pytest.approx(100 * 127)


def test_the_summary_says_why_there_is_no_law(tmp_path):
    law = summarise(write_pair(tmp_path, {80: float}))["reuse_rate_law"]["error"]
    assert law["r_star"] is None
    assert "N = 80 has 8" in law["refused"]


# ---------------------------------------------------------------- the figure


def test_the_figure_shows_e_by_passes(tmp_path):
    run = write_pair(tmp_path, {80: repeating(80, 5.0), 160: float})
    left = plot_reuse(reuse_of(run)).axes[0]
    (line,) = [line for line in left.lines if line.get_label() == "N = 80"]
    found = rates(run, 80)
    np.testing.assert_allclose(line.get_ydata(), list(found.values()))
    np.testing.assert_allclose(line.get_xdata(), list(found), rtol=0.06)  # moved aside a little


def test_what_was_not_reached_is_a_hollow_mark_at_its_bound(tmp_path):
    run = write_pair(tmp_path, {80: lambda s: 2 * s}, ideal_steps=(0, 8, 16, 32))
    left = plot_reuse(reuse_of(run)).axes[0]
    (hollow,) = [line for line in left.lines if line.get_marker() == "^"]
    assert list(hollow.get_ydata()) == [4.0] * 6
    assert matplotlib.colors.to_rgba(hollow.get_markerfacecolor())[3] == 0


def test_the_law_is_drawn_where_there_is_one(tmp_path):
    def labels(run):
        return [line.get_label() for line in plot_reuse(reuse_of(run)).axes[0].lines]

    worth = {n: repeating(n, 5.0) for n in (80, 160, 320)}
    assert "law of repetition" in labels(write_pair(tmp_path / "a", worth))
    assert "law of repetition" not in labels(write_pair(tmp_path / "b", {80: float}))


def test_an_r_star_that_cannot_be_seen_is_bounded_in_words(tmp_path):
    figure = plot_reuse(reuse_of(write_pair(tmp_path, dict.fromkeys((80, 160, 320), float))))
    assert "R* is above 12,700" in figure.texts[-1].get_text().replace("\n", " ")
    assert "law of repetition" not in [line.get_label() for line in figure.axes[0].lines]


def test_the_text_stands_below_the_axes(tmp_path):
    figure = plot_reuse(reuse_of(write_pair(tmp_path, {80: float})), about="As it was. " * 30)
    figure.canvas.draw()
    foot = figure.texts[-1].get_window_extent().y1
    assert foot < min(ax.xaxis.label.get_window_extent().y0 for ax in figure.axes)


def test_no_text_of_the_figure_is_cut_off(tmp_path):
    run = write_run(tmp_path, n_samples=(40, 5_000_000))
    recipe = {"model": "mlp(width=8)", "batch_size": 10, "n_steps": 32}
    configure(run.path, recipe=recipe, data={"name": "toy", "label_source": "agree"}, n_test=5)
    run = load_run(run.path)
    figure = plot_reuse(reuse_of(run), heading="mlp(width=8) on toy", about="As it was. " * 30)
    inside = figure.get_tightbbox(figure.canvas.get_renderer())
    assert min(inside.x0, inside.y0) >= 0
    assert inside.x1 <= figure.get_size_inches()[0]
    assert inside.y1 <= figure.get_size_inches()[1]


def test_equal_runs_give_equal_figures(tmp_path):
    first = write_reuse_figure(write_pair(tmp_path / "a", {80: float}))
    again = write_reuse_figure(write_pair(tmp_path / "b", {80: float}))
    assert [path.name for path in first] == ["reuse.png", "reuse.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


@pytest.mark.parametrize("rows", [[], [record(0, 0.5)]], ids=["no record", "one record"])
def test_a_poor_run_still_has_a_figure_and_a_summary(tmp_path, rows):
    write_world(tmp_path, None, rows)
    run = write_world(tmp_path, 40, rows)
    assert all(path.stat().st_size for path in write_reuse_figure(run))
    json.dumps(summarise(run), allow_nan=False)


def test_plot_draws_it_on_request(deep_bootstrap, tmp_path):
    write_pair(tmp_path, {80: float})
    code, out, _ = deep_bootstrap("plot", tmp_path, "--reuse")
    assert code == 0
    assert out.splitlines()[-2:] == [
        str(tmp_path / "run" / f"reuse.{kind}") for kind in ("png", "svg")
    ]
    assert (tmp_path / "run" / "reuse.png").stat().st_size


def test_plot_does_not_draw_it_unasked(deep_bootstrap, tmp_path):
    write_pair(tmp_path, {80: float})
    assert deep_bootstrap("plot", tmp_path)[0] == 0
    assert not (tmp_path / "run" / "reuse.png").exists()
