"""A study of choices: pairs on the same seeds, their table, what changes with N, and the map."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from synthetic_runs import GRID, configure, finish, write_run
from test_decompose import approximate
from test_decompose import pair as curves
from tiny_pair import PLAIN, TINY

from bootstrap.choice_map import (
    COLUMNS,
    first_step_at,
    map_caption,
    plot_map,
    point_of,
    points_of,
    write_map,
)
from bootstrap.choice_study import build_sides, with_choice
from bootstrap.choice_table import (
    TABLE_COLUMNS,
    crossover,
    crossover_text,
    effect_lines,
    effect_points,
    limit_n,
    shortened,
    study_json,
    table_csv,
    table_lines,
)
from bootstrap.effect_plot import effect_caption, plot_effects, write_effects
from bootstrap.errors import ConfigurationError
from bootstrap.explanation import explain, n_of_choice
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.mixing import Mixup
from bootstrap.interventions.pruning import RandomPruning
from bootstrap.options import CompareOptions, ExplainOptions
from bootstrap.runlog import load_run
from bootstrap.study_results import folder_name, folder_names, load_choices
from bootstrap.sweep import run_in_turn

N = (20, 160)  # the first converges by step 32, the other never
RECIPE = {"batch_size": 10, "n_steps": GRID[-1]}


def made(root, name, noise=0.004, n_samples=N, seeds=(0, 1, 2), **config):
    """A finished run of formulas in the folder `name`."""
    run = write_run(root / "made", noise=noise, n_samples=n_samples, seeds=seeds)
    shutil.move(run.path, root / name)
    recipe = {**RECIPE, "optimizer": f"sgd(lr={noise})"}
    configure(root / name, recipe=recipe, identity={"data": "same", "n_test": 9}, **config)
    return finish(load_run(root / name))


@pytest.fixture
def baseline(tmp_path):
    return made(tmp_path, "baseline")


@pytest.fixture
def choices(tmp_path):
    names = ("flooding(level=0.05)", "mixup", "augmentation=crop_flip")
    return {name: made(tmp_path, f"c{k}", noise=0.01 * k) for k, name in enumerate(names, start=1)}


@pytest.fixture
def found(baseline, choices):
    return [(text, explain(baseline, run)) for text, run in choices.items()]


# ---------------------------------------------------------------- the table


def test_the_table_has_a_row_per_choice_and_n_with_the_terms_of_explain(found):
    rows = list(csv.DictReader(table_csv(found).decode().splitlines()))
    assert (
        tuple(rows[0])
        == TABLE_COLUMNS
        == (
            *("choice", "n_samples", "n_seeds", "speed", "speed_low", "speed_high"),
            *("time", "time_low", "time_high", "residual", "residual_low", "residual_high"),
        )
    )
    assert [(row["choice"], row["n_samples"]) for row in rows] == [
        (text, str(n)) for text, _ in found for n in N
    ]
    for row in rows:
        told = dict(found)[row["choice"]]["n_samples"][row["n_samples"]]["error"]
        assert int(row["n_seeds"]) == 3
        for term in ("speed", "time", "residual"):
            ends = [told[term]["mean"], *told[term]["interval_95"]]
            assert [float(row[f"{term}{end}"]) for end in ("", "_low", "_high")] == ends


def test_two_seeds_leave_the_ends_of_intervals_empty(tmp_path, baseline):
    two = made(tmp_path, "two", seeds=(0, 1))
    (row, *_) = csv.DictReader(table_csv([("two", explain(baseline, two))]).decode().splitlines())
    assert (row["n_seeds"], row["speed_low"], row["speed_high"]) == ("2", "", "")
    assert row["speed"] != ""


def test_the_printed_table_marks_censored_worlds(found):
    lines = list(table_lines(found))
    assert not any("baseline 3 of 3" in line for line in lines if " 20 " in line)
    assert all("baseline 3 of 3, choice 3 of 3" in line for line in lines if " 160 " in line)


# ---------------------------------------------------------------- as N grows


def test_the_limit_is_where_no_sample_is_used_twice(found, baseline, tmp_path):
    assert limit_n(found[0][1]) == 10 * GRID[-1]
    half = made(tmp_path, "half", n_samples=(10, 80), keep_fraction=0.5)
    assert limit_n(explain(baseline, half)) == 2 * 10 * GRID[-1]
    apart = made(tmp_path, "apart", shares_prefix=False)
    assert limit_n(explain(baseline, apart)) is None


def test_the_change_ends_in_that_of_the_ideal_world(found):
    _, explained = found[0]
    known = effect_points(explained)
    final = explained["n_samples"]["160"]["final"]["error"]
    assert known[-2:] == [(160, final["real"]["mean"]), (320, final["ideal"]["mean"])]


def test_a_crossover_is_on_the_line_in_log_n():
    where = crossover([(100, -0.02), (1_000, -0.01), (100_000, 0.01)])
    assert where.n_samples == pytest.approx(10_000)
    assert (where.between, where.hurts_after) == ((1_000, 100_000), True)


def test_a_choice_that_always_helps_has_no_crossover():
    where = crossover([(100, -0.02), (1_000, -0.01), (10_000, -0.005)])
    assert (where.n_samples, where.between, where.hurts_after) == (None, None, False)


def test_a_change_of_exactly_nothing_is_no_change_of_sign():
    assert crossover([(100, 0.0), (1_000, 0.0)]).n_samples is None
    assert crossover([(100, -0.1), (1_000, 0.0), (10_000, 0.1)]).between == (100, 10_000)


def fail(run, seed, n_samples):
    (run.path / f"seed-{seed}" / f"real-n{n_samples}.failed.json").write_text(
        '{"step": 3, "reason": "nan"}'
    )
    return load_run(run.path)


def test_the_effect_is_told_of_seeds_and_n_that_have_records(baseline, choices):
    run = fail(choices["mixup"], 1, 160)
    found = [("mixup", explain(baseline, run))]
    assert "2 to 3 seeds; Student-t 95 % intervals" in effect_caption(found)
    for seed in (0, 2):
        run = fail(run, seed, 160)
    found = [("mixup", explain(baseline, run))]
    change = run.ideal.test_error[:, -1] - baseline.ideal.test_error[:, -1]
    assert effect_points(found[0][1])[-1] == (320, pytest.approx(change.mean()))
    *_, line = effect_lines(found)
    assert f"- at N = 160; dI = {100 * change.mean():+.2f}" in line
    assert len(plot_effects(found).axes[0].collections) == 2  # at N = 20 and at the limit


@pytest.mark.parametrize(
    ("ends", "is_sure"),
    [((-0.1, 0.1), False), ((0.1, 0.2), True), ((-0.2, -0.1), True), ((0, 0), True)],
)
def test_a_change_of_unsure_sign_is_told(found, ends, is_sure):
    text, explained = found[0]
    for world in ("real", "ideal"):
        told = explained["n_samples"]["160"]["final"]["error"][world]
        told |= {"mean": 0.05, "interval_95": list(ends)}
    *_, line = effect_lines([(text, explained)])
    mark = "" if is_sure else "?"
    assert f"+5.00{mark} at N = 160; dI = +5.00{mark};" in line


def test_captions_say_which_ideal_worlds_are_approximate(baseline, choices):
    for run in choices.values():
        approximate(run, 16)
    runs = {text: load_run(run.path) for text, run in choices.items()}
    maps = [points_of(baseline, runs, 20)]
    found = [(text, explain(baseline, run)) for text, run in runs.items()]
    for said in (map_caption(baseline, runs, maps), effect_caption(found)):
        assert said.count("approximate") == 1
        assert f"({', '.join(runs)})." in said
    assert "(diamond)" not in effect_caption(found)
    many = {f"choice {k}": runs["mixup"] for k in range(9)}
    assert "(9 of 10 runs)." in map_caption(baseline, many, [points_of(baseline, many, 20)])


def test_several_changes_of_sign_are_counted():
    where = crossover([(100, -0.1), (1_000, 0.1), (10_000, -0.1)])
    assert (where.n_turns, where.between, where.hurts_after) == (2, (1_000, 10_000), False)


@pytest.mark.parametrize(
    ("changes", "limit", "words"),
    [
        ((-0.1, -0.1), 1_000, "no crossover, it helps at every N and in the limit"),
        ((0.1, 0.1), 1_000, "no crossover, it hurts at every N and in the limit"),
        ((-0.1, 0.0), 1_000, "it helps at the N that were run and changes nothing in the limit"),
        ((0.0, 0.1), 1_000, "it changes nothing at the N that were run and hurts in the limit"),
        ((0.0, 0.0), 1_000, "it changes nothing at every N and in the limit"),
        ((-0.1, -0.1), None, "it helps at every N that was run; its limit is not known"),
        ((-0.1, 0.1), 1_000, "between 100 and 1,000): it helps below and hurts above"),
        ((0.1, -0.1, 0.1), None, "the last of 2 turns is a crossover at N of about 3,162"),
        ((), None, "no records"),
    ],
)
def test_a_crossover_in_words(changes, limit, words):
    points = [(n, d) for n, d in zip((100, 1_000, 10_000), changes, strict=False)]
    assert words in crossover_text(points, limit)


def test_long_names_of_one_choice_stay_apart_in_a_figure():
    texts = [f"mine.py:Something(first=1, second=2, third={k})" for k in (1, 2)]
    assert len({shortened(text) for text in texts}) == 2
    assert {len(shortened(text)) for text in texts} == {29}


def test_effects_are_told_drawn_and_saved(found, tmp_path):
    assert all("dI = " in line for line in [*effect_lines(found)][2:])
    paths = write_effects(found, tmp_path / "out")
    assert [path.name for path in paths] == ["effect.csv", "effect.png", "effect.svg"]
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert len(rows) == 3 * len(N)
    known = {text.get_text() for text in plot_effects(found).axes[0].texts}
    assert known == {text for text, _ in found}
    assert "which it is exactly where no sample is used twice" in effect_caption(found)
    bars = [bar.get_segments()[0][0, 0] for bar in plot_effects(found).axes[0].collections]
    assert len({*bars}) == len(bars) == 3 * (len(N) + 1)  # none over another
    nearest = [min((*N, 320), key=lambda n: abs(n - x)) for x in bars]
    assert {*nearest} == {*N, 320}  # an interval at each N and at the limit
    assert max(abs(x / n - 1) for x, n in zip(bars, nearest, strict=True)) < 0.13
    assert {*study_json(found)["choices"]} == {text for text, _ in found}


# ---------------------------------------------------------------- pruned runs


def test_a_pruned_run_stands_against_the_n_that_it_was_pruned_from(baseline, tmp_path):
    half = made(tmp_path, "half", n_samples=(10, 80), keep_fraction=0.5)
    assert n_of_choice(baseline, half, 160) == 80
    assert n_of_choice(half, half, 80) == 80
    explained = explain(baseline, half)
    assert [*explained["n_samples"]] == ["20", "160"]
    expected = half.real[80].test_error[:, -1] - baseline.real[160].test_error[:, -1]
    told = explained["n_samples"]["160"]["final"]["error"]["real"]["mean"]
    assert told == pytest.approx(expected.mean())


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_a_pruning_choice_is_run_with_the_n_that_it_is_compared_at(baseline, keep, tmp_path):
    """Also where the baseline prunes: a half must not round one way here and another there."""
    (tmp_path / "mine.py").write_text(
        "from bootstrap.interventions.pruning import RandomPruning\n"
        "class Again(RandomPruning):\n    pass\n"
    )
    sizes = tuple(range(1, 2_000))
    recipe = replace(BASE.recipe, choices=(RandomPruning(keep=0.7),))
    base = replace(BASE, n_samples=sizes, recipe=recipe)
    options = with_choice(base, f"{tmp_path}/mine.py:Again(keep={keep})")
    runs = [
        replace(baseline, config={"keep_fraction": own.recipe.keep_fraction})
        for own in (base, options)
    ]
    assert options.n_samples == tuple(n_of_choice(*runs, n) for n in sizes)


# ---------------------------------------------------------------- the map


def test_a_level_is_reached_on_the_line_between_two_evaluations():
    steps, errors = np.array([0, 10, 20]), np.array([0.9, 0.5, 0.3])
    assert first_step_at(steps, errors, 0.4) == pytest.approx(15)
    assert first_step_at(steps, errors, 0.9) == 0
    assert first_step_at(steps, errors, 0.2) is None


def test_twice_as_fast_is_half_as_many_steps_to_the_baselines_level():
    zero = curves([0.9, 0.5, 0.5, 0.5], [0.9, 0.7, 0.5, 0.4], [0.9, 0.5, 0.0, 0.0])
    fast = curves([0.9, 0.5, 0.5, 0.5], [0.9, 0.5, 0.4, 0.3], [0.9, 0.5, 0.5, 0.0])
    point = point_of("fast", 10, zero, fast)
    assert (point.speed[0], point.step[0]) == (pytest.approx(2), 30)
    assert not (point.speed_is_censored | point.step_is_censored)[0]


def test_what_is_never_reached_is_censored_at_the_last_step():
    zero = curves([0.9] * 4, [0.9, 0.7, 0.5, 0.4], [0.9, 0.5, 0.0, 0.0])
    slow = curves([0.9] * 4, [0.9, 0.8, 0.7, 0.6], [0.9, 0.5, 0.5, 0.5])
    point = point_of("slow", 10, zero, slow)
    assert (point.speed[0], point.step[0]) == (pytest.approx(20 / 30), 30)
    assert (point.speed_is_censored & point.step_is_censored)[0]


def test_a_seed_without_its_last_evaluation_is_no_part_of_a_point():
    train = [[0.9, 0.5, 0.0, 0.0]] * 2
    zero = curves([[0.9, 0.5, 0.5, 0.5]] * 2, [[0.9, 0.7, 0.5, 0.4]] * 2, train)
    real = [[0.9, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, np.nan]]  # converged, then interrupted
    point = point_of("stopped", 10, zero, curves(real, [[0.9, 0.7, 0.5, 0.4]] * 2, train))
    assert len(point.speed) == len(point.final) == 1


def test_an_arrow_starts_where_the_baseline_is_on_the_choices_own_seeds():
    late, soon = [0.9, 0.5, 0.5, 0.0], [0.9, 0.0, 0.0, 0.0]
    real, ideal = [0.9, 0.5, 0.5, 0.5], [0.9, 0.7, 0.5, 0.4]
    zero = curves([real] * 2, [ideal] * 2, [late, soon])
    whole = point_of("baseline", 10, zero, zero)
    zero_of_second, second = curves(real, ideal, soon), curves(real, ideal, late)
    one = point_of("one", 10, zero_of_second, second)
    assert (one.origin_y, one.xy[1]) == (pytest.approx(10), pytest.approx(30))
    assert whole.xy[1] == pytest.approx(np.sqrt(300))
    figure = plot_map([[whole, one]], "")
    (arrow,) = [t for t in figure.axes[0].texts if t.arrow_patch and not t.get_text()]
    assert arrow.xyann[1] == pytest.approx(10)


def test_an_arrow_starts_at_the_edge_where_the_baseline_never_converged(
    baseline, choices, tmp_path
):
    points = points_of(baseline, choices, 160)
    ax = plot_map([points], "").axes[0]
    arrows = [t for t in ax.texts if t.arrow_patch and not t.get_text()]
    assert {arrow.xyann for arrow in arrows} == {(1.0, ax.get_ylim()[1])}
    assert "An arrow starts" not in map_caption(baseline, choices, [points])
    runs = {**choices, "one": made(tmp_path, "one", seeds=(1,))}
    said = map_caption(baseline, runs, [points_of(baseline, runs, 160)])
    assert "An arrow starts where the baseline is on the choice's own seeds." in said


def test_the_baseline_stands_at_speed_1(baseline, choices):
    first, *others = points_of(baseline, choices, 20)
    assert (first.text, first.xy[0]) == ("baseline", pytest.approx(1))
    assert first.row()[COLUMNS.index("d_error_final")] == 0
    assert [point.text for point in others] == [*choices]


def test_the_map_is_a_table_a_figure_and_one_of_each_n(baseline, choices, tmp_path):
    paths = write_map(baseline, choices, tmp_path / "out" / "map")
    each = [f"map-n{n}.{kind}" for n in N for kind in ("png", "svg")]
    assert [path.name for path in paths] == ["map.csv", "map.png", "map.svg", *each]
    assert len({path.read_bytes() for path in paths}) == len(paths)
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [row["choice"] for row in rows] == ["baseline", *choices] * len(N)
    assert {row["n_censored"] for row in rows if row["n_samples"] == "160"} == {"3"}


def overlapping(figure):
    """Pairs of names in the figure that lie over one another, or off it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [t for ax in figure.axes for t in ax.texts if t.get_text()]
    renderer = canvas.get_renderer()
    boxes = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in texts]  # without leaders
    over = [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if p.shrunk(0.95, 0.9).overlaps(q)]
    return over + [(name, "edge") for name, box in boxes if box.x1 > figure.bbox.x1]


def test_no_name_lies_over_another_even_of_forty_choices_that_change_little(baseline):
    many = {f"choice_of_name(strength={k})" + "x" * (k % 12): baseline for k in range(40)}
    maps = [points_of(baseline, many, n) for n in N]
    figure = plot_map(maps, map_caption(baseline, many, maps))
    assert overlapping(figure) == []
    drawn = {t.get_text() for t in figure.axes[0].texts}
    assert {shortened(name) for name in many} <= drawn
    found = [(name, explain(baseline, baseline)) for name in many]
    assert overlapping(plot_effects(found)) == []


def test_the_legend_of_effects_lies_over_nothing_and_in_the_figure(found):
    figure = plot_effects(found)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (ax,) = figure.axes
    box, panel = ax.get_legend().get_window_extent(canvas.get_renderer()), ax.get_window_extent()
    assert box.y0 >= panel.y1 - 1
    assert box.y1 <= figure.bbox.y1
    assert box.x1 <= panel.x1


def test_a_censored_point_is_on_the_edge_with_an_arrow_head(baseline, choices):
    maps = [points_of(baseline, choices, 160)]
    ax = plot_map(maps, "").axes[0]
    heads = [line for line in ax.lines if line.get_marker() == "^"]
    assert len(heads) == 4  # the baseline too
    assert {float(line.get_ydata()[0]) for line in heads} == {float(ax.get_ylim()[1])}
    assert "On the edge, with an arrow head (4)" in map_caption(baseline, choices, maps)


# ---------------------------------------------------------------- what is asked for


BASE = CompareOptions.of_preset("smoke")


def test_a_choice_is_an_intervention_an_option_or_several():
    assert with_choice(BASE, "flooding(level=0.1)").recipe.choices == (Flooding(level=0.1),)
    both = with_choice(BASE, "flooding + mixup").recipe.choices
    assert both == (Flooding(), Mixup())
    assert with_choice(BASE, "optimizer.lr=0.2").recipe.optimizer.lr == 0.2
    assert "CropFlip" in repr(with_choice(BASE, "augmentation=crop_flip").recipe.augmentation)
    assert with_choice(BASE, "init=weights/a.safetensors").init.name == "a.safetensors"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("floding", "did you mean 'flooding'"),
        ("n_steps=3", "is no option that can be a choice"),
        ("modell=mlp", "did you mean 'model'"),
    ],
)
def test_what_is_no_choice_is_refused(text, why):
    with pytest.raises(ConfigurationError, match=why):
        with_choice(BASE, text)


def test_a_folder_has_a_name_that_any_disk_takes():
    assert folder_name("mine.py:Flat(strength=1) + mixup") == "mine.py_Flat_strength=1_+_mixup"
    one, other = (folder_name("mixup + " * 12 + f"cutout(size_px={k})") for k in (7, 8))
    assert one != other
    assert len(one) == len(other) == 80


def test_a_baseline_is_a_preset_a_run_or_a_file(tmp_path):
    assert ExplainOptions.of_baseline("smoke").recipe == BASE.recipe
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps({"n_steps": 7}))
    assert ExplainOptions.of_baseline(str(recipe)).recipe.n_steps == 7
    (tmp_path / "run").mkdir()
    known = {"recipe": {"n_steps": 9}, "preset": "smoke", "seeds": [3], "n_samples": [40]}
    (tmp_path / "run" / "pair.json").write_text(json.dumps(known))
    options = ExplainOptions.of_baseline(str(tmp_path / "run"))
    assert (options.recipe.n_steps, options.seeds, options.n_samples) == (9, "3", (40,))
    with pytest.raises(ConfigurationError, match="unknown preset"):
        ExplainOptions.of_baseline("smokee")


SMALL = ("--model", "mlp(width=8, depth=1)", "--no-every-step", "--n-test-curve", "64")
STUDY = (
    *("explain", "--baseline", "smoke", *SMALL, "--n-steps", "40", "--batch-size", "16", *PLAIN),
    *("--n-samples", "32", "64", "--seeds", "0-2"),
)


def test_the_command_runs_the_pairs_once_and_writes_everything(
    toy_data, tmp_path, deep_bootstrap, no_figure
):
    words = (*STUDY, "--data", toy_data, "--results", tmp_path, "--out", tmp_path / "out")
    words = (*words, "--choice", "flooding(level=0.05)", "--choice", "optimizer.lr=0.1")
    code, out, err = deep_bootstrap(*words)
    assert code == 0, err
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    own = {f"explain-n{n}.{kind}" for n in (32, 64) for kind in ("png", "svg")}
    own |= {"explain.json", "explain.csv"}
    assert {name for name in names if "/" not in name} >= {
        *("table.csv", "study.json", "effect.csv", "effect.png", "effect.svg"),
        *("map.csv", "map.png", "map.svg"),
    }
    assert {f"flooding_level=0.05/{name}" for name in own} <= names
    assert "crossover" in out
    assert "3 pairs, 0 of them done" in out
    assert len(list(tmp_path.glob("smoke-*"))) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("smoke-*/seed-*/*.jsonl")}
    code, again, _ = deep_bootstrap(*words)
    assert code == 0
    assert "3 pairs, 3 of them done" in again
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_saved_runs_of_several_choices_are_a_study_of_what_each_has(
    baseline, choices, tmp_path, deep_bootstrap
):
    one = made(tmp_path, "one seed", seeds=(1,), n_samples=(20,))
    runs = [baseline.path, *(run.path for run in choices.values()), one.path]
    code, out, err = deep_bootstrap("explain", *runs, "--out", tmp_path / "out")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    told = {(row["choice"], row["n_samples"]): row["n_seeds"] for row in rows}
    assert told == {(f"c{k}", str(n)): "3" for k in (1, 2, 3) for n in N} | {
        ("one seed", "20"): "1"
    }
    assert (tmp_path / "out" / "one_seed" / "explain.json").exists()
    assert str(tmp_path / "out" / "map.png") in out
    text = "1 to 3 seeds"
    assert text in effect_caption([(p.name, explain(baseline, load_run(p))) for p in runs[1:]])


def test_a_study_is_explained_whole_or_not_at_all(baseline, choices, tmp_path, deep_bootstrap):
    other = made(tmp_path, "other", seeds=(7,))
    runs = [baseline.path, *(run.path for run in choices.values()), other.path]
    code, _, err = deep_bootstrap("explain", *runs, "--out", tmp_path / "out")
    assert (code, "other: baseline and other have no seed in common" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_choice_that_would_pass_for_the_baseline_is_refused(
    baseline, choices, tmp_path, deep_bootstrap
):
    (tmp_path / "deep").mkdir()
    shutil.copytree(baseline.path, tmp_path / "deep" / "baseline")
    runs = [choices["mixup"].path, tmp_path / "deep" / "baseline", baseline.path.parent / "c1"]
    code, _, err = deep_bootstrap("explain", *runs)
    assert (code, "a choice's folder is called 'baseline'" in err) == (2, True)


def test_a_run_is_called_by_its_folder_however_that_is_given(baseline, choices, monkeypatch):
    monkeypatch.chdir(choices["mixup"].path)
    (linked := baseline.path.parent / "linked").symlink_to(baseline.path)
    assert [*load_choices([Path("."), linked, Path("../c1/../c3")])] == ["c2", "linked", "c3"]


def test_no_two_choices_share_a_folder():
    texts = ["one seed", "one_seed", "ONE_seed", "..", "(é)", "init=a/b", "init=a_b"]
    names = folder_names(texts)
    assert len({name.lower() for name in names.values()}) == len(texts)
    assert all(name.strip(".") for name in names.values())
    assert folder_names(["mixup", "cutout"]) == {"mixup": "mixup", "cutout": "cutout"}


def test_choices_in_folders_of_one_name_are_refused(baseline, tmp_path, deep_bootstrap):
    code, _, err = deep_bootstrap("explain", *[baseline.path] * 3)
    assert (code, "have one name; rename one" in err) == (2, True)


@pytest.mark.usefixtures("no_figure")
def test_pairs_of_a_study_run_on_ray_if_asked(toy_data, tmp_path, deep_bootstrap, monkeypatch):
    asked = []

    def run_all(self, jobs, watch):
        asked.append((self.address, len(jobs)))
        return run_in_turn(jobs, watch)

    monkeypatch.setattr("bootstrap.sweep_ray.RayPairs.run_all", run_all)
    words = (*STUDY, "--seeds", "0", "--data", toy_data, "--results", tmp_path)
    code, _, err = deep_bootstrap(*words, "--choice", "mixup", "--ray", "local")
    assert code == 0, err
    assert asked == [("local", 2)]


def test_the_command_refuses_neither_runs_nor_choices(deep_bootstrap):
    code, _, err = deep_bootstrap("explain")
    assert (code, err.count("\n")) == (2, 1)
    assert "two saved runs, `explain BASELINE CHOICE`, or" in err


def test_a_choice_that_is_the_baseline_is_refused(toy_data, tmp_path, flags):
    options = ExplainOptions(
        choice=("optimizer.lr=0.05",),
        preset="smoke",
        n_samples=(64,),
        data=toy_data,
        results=tmp_path,
        recipe=TINY,
    )
    with pytest.raises(ConfigurationError, match="is the same run as 'baseline'"):
        build_sides(options)
