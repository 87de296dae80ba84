import csv
import io
import json
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from synthetic_runs import configure, finish, record, write_run, write_world

from bootstrap.curves import gap
from bootstrap.plot import (
    DPI,
    STYLE,
    build_figure,
    caption,
    plot_pair,
    render,
    spread_apart,
    write_figure,
)
from bootstrap.runlog import load_run

RECIPE = {"model": "mlp(width=8)", "batch_size": 10, "n_steps": 32}


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def line_of(ax, n_samples):
    """The drawn mean of a real world: its colour is that of its label's arrow."""
    (label,) = [t for t in ax.texts if t.get_text() == f"real, N = {n_samples:,}"]
    colour = label.arrow_patch.get_edgecolor()
    lines = [one for one in ax.lines if one.get_linewidth() > 1.5 and one.get_linestyle() == "-"]
    (found,) = [one for one in lines if matplotlib.colors.same_color(one.get_color(), colour)]
    return found


def write_unequal(root):
    """The real world has steps that the ideal one lacks, and the other way round."""
    write_world(root, None, [record(step, 0.5) for step in (0, 1, 2, 4)])
    return write_world(root, 40, [record(step, 0.6, 0.5) for step in (0, 2, 3)])


def write_one_point(root):
    write_world(root, None, [record(0, 0.5)])
    return write_world(root, 40, [record(0, 0.5, 0.5)])


def write_missing_values(root):
    run = write_run(root)
    with (run.path / "seed-1" / "real-n40.jsonl").open("a") as file:
        file.write('{"step": 33, "test_error": NaN, "train_error": null}\n')
    return load_run(run.path)


def write_nothing(root):
    (root / "pair.json").write_text("{}")
    return load_run(root)


def write_no_ideal(root):
    return write_world(root, 40, [record(step, 0.6, 0.5) for step in (0, 2, 3)])


def write_two_seeds_of_unequal_length(root):
    write_world(root, None, [record(step, 0.5) for step in (0, 1, 2)], seed=0)
    return write_world(root, None, [record(0, 0.5)], seed=1)


POOR = (
    *(write_unequal, write_one_point, write_missing_values, write_nothing, write_no_ideal),
    write_two_seeds_of_unequal_length,
)


def test_the_figure_is_written_as_csv_png_and_svg(tmp_path):
    paths = write_figure(write_run(tmp_path))
    assert [path.name for path in paths] == ["curves.csv", "curves.png", "curves.svg"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_bytes().startswith(b"<?xml")


def test_the_png_looks_as_the_figure_does_in_few_colours(tmp_path):
    figure = build_figure(write_run(tmp_path, n_every_step=32))
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    with Image.open(io.BytesIO(render(figure, "png"))) as image:
        assert image.mode == "P"
        assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
        shown = np.asarray(image.convert("RGB")).astype(int)
    far = np.abs(shown - drawn).max(axis=-1)
    assert (far > 8).mean() < 0.01
    assert far.max() < 64
    assert (shown[drawn.min(axis=-1) == 255] == 255).all()


def test_equal_runs_give_equal_bytes(tmp_path):
    first = [p.read_bytes() for p in write_figure(write_run(tmp_path / "a", n_every_step=32))]
    again = [p.read_bytes() for p in write_figure(write_run(tmp_path / "b", n_every_step=32))]
    assert first == again


def test_per_step_points_are_pixels_in_the_svg(tmp_path):
    without = write_figure(write_run(tmp_path / "a"))[2].read_text()
    points = write_figure(write_run(tmp_path / "b", n_every_step=32))[2].read_text()
    assert "<image" not in without
    assert "<image" in points


def test_the_csv_has_the_promised_columns(tmp_path):
    path = write_figure(write_run(tmp_path))[0]
    assert path.read_text().splitlines()[0] == (
        "seed,world,n_samples,step,test_error,test_soft_error,test_loss,"
        "train_error,gap_error,gap_soft_error,gap_loss"
    )


def test_the_csv_holds_the_numbers_of_the_run(tmp_path):
    run = write_run(tmp_path)
    rows = [r for r in rows_of(write_figure(run)[0]) if (r["seed"], r["n_samples"]) == ("2", "160")]
    assert [int(row["step"]) for row in rows] == run.steps.tolist()
    assert [float(r["test_error"]) for r in rows] == run.real[160].test_error[2].tolist()
    assert [float(r["gap_loss"]) for r in rows] == gap(run, "loss", 160)[2].tolist()


def test_ideal_rows_of_the_csv_have_no_gap(tmp_path):
    rows = rows_of(write_figure(write_run(tmp_path))[0])
    ideal = [row for row in rows if row["world"] == "ideal"]
    assert len(ideal) == 3 * 7
    assert {(row["n_samples"], row["gap_error"], row["train_error"]) for row in ideal} == {
        ("", "", "")
    }


def test_the_curve_is_the_mean_over_seeds_without_step_0(tmp_path):
    run = write_run(tmp_path)
    line = line_of(plot_pair(run), 160)
    np.testing.assert_array_equal(line.get_xdata(), run.steps[1:])
    np.testing.assert_allclose(line.get_ydata(), run.real[160].test_error.mean(axis=0)[1:])


def test_the_ideal_world_is_dashed(tmp_path):
    dashed = [line for line in plot_pair(write_run(tmp_path)).lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(
        dashed[0].get_ydata(), load_run(tmp_path / "run").ideal.test_error.mean(axis=0)[1:]
    )
    assert len(dashed) == 1


@pytest.mark.parametrize(("seeds", "n_bands"), [((0, 1), 0), ((0, 1, 2), 3)])
def test_bands_are_drawn_from_three_seeds_on(tmp_path, seeds, n_bands):
    assert len(plot_pair(write_run(tmp_path, seeds=seeds)).collections) == n_bands


def test_two_seeds_are_each_drawn(tmp_path):
    ax = plot_pair(write_run(tmp_path, n_samples=(40,), seeds=(0, 1)))
    assert len([line for line in ax.lines if line.get_linewidth() < 1]) == 2 * 2


def test_the_first_reuse_is_marked_on_the_curve(tmp_path):
    ax = plot_pair(write_run(tmp_path, n_samples=(40, 160)))
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    assert [line.get_xdata()[0] for line in ticks] == [4, 16]


def test_convergence_is_marked_where_the_train_error_reaches_the_threshold(tmp_path):
    ax = plot_pair(write_run(tmp_path, n_samples=(10, 160), grid=(0, 1, 2, 4, 8, 16, 32)))
    marks = [line for line in ax.lines if line.get_marker() == "o"]  # 0.9 exp(-16 / 2) < 0.01
    assert [line.get_xdata()[0] for line in marks] == [16]


def test_the_gap_panel_shows_the_gap_below(tmp_path):
    run = write_run(tmp_path, n_samples=(40,), seeds=(0,))
    below = plot_pair(run).figure.axes[1]
    drawn = [line.get_ydata() for line in below.lines if line.get_linewidth() > 1.5]
    np.testing.assert_allclose(drawn[0], gap(run)[0, 1:])


def test_a_given_axes_is_drawn_on_and_returned(tmp_path):
    ax = Figure().subplots()
    assert plot_pair(write_run(tmp_path), ax) is ax
    assert ax.get_xscale() == "log"
    assert ax.lines


def test_labels_do_not_overlap_each_other(tmp_path):
    ns = (10, 20, 40, 80, 160, 320, 400, 640)
    ax = plot_pair(write_run(tmp_path, n_samples=ns, seeds=(0,)))
    ax.figure.canvas.draw()  # places the labels
    renderer = ax.figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in ax.texts]  # without its arrow
    assert len(boxes) == 9
    assert not any(a.y0 < b.y1 and b.y0 < a.y1 for a, b in combinations(boxes, 2))


def test_no_text_is_cut_off(tmp_path):
    run = write_run(tmp_path, n_samples=(40, 5_000_000))
    configure(run.path, recipe=RECIPE, data={"name": "toy", "label_source": "agree"}, n_test=5)
    figure = plot_pair(load_run(run.path)).figure
    page, inside = figure.bbox, figure.get_tightbbox(figure.canvas.get_renderer())
    box = inside.transformed(figure.dpi_scale_trans)
    assert page.x0 <= box.x0
    assert page.y0 <= box.y0
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1


def test_crowded_places_are_moved_apart_evenly():
    np.testing.assert_allclose(spread_apart(np.array([0.5, 0.5, 0.1]), 0.2), [0.4, 0.6, 0.1])


def test_places_stay_inside_the_panel():
    np.testing.assert_allclose(spread_apart(np.array([1.0, 0.99, 0.0]), 0.2), [1.0, 0.8, 0.0])


def test_too_many_places_are_spaced_evenly():
    np.testing.assert_allclose(spread_apart(np.zeros(5), 0.5), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("write", POOR)
def test_a_poor_run_still_makes_a_figure(tmp_path, write):
    assert all(path.stat().st_size for path in write_figure(write(tmp_path)))


def test_unequal_steps_are_drawn_in_common_and_noted(tmp_path):
    run = write_unequal(tmp_path)
    below = plot_pair(run).figure.axes[1]
    drawn = [line for line in below.lines if line.get_linewidth() > 1.5]
    assert drawn[0].get_xdata().tolist() == [2]
    assert "common steps" in caption(run)


def test_missing_values_are_noted(tmp_path):
    assert "lack steps" in caption(write_missing_values(tmp_path))


def test_the_caption_says_what_was_measured(tmp_path):
    run = finish(write_run(tmp_path))
    data = {"name": "toy", "label_source": "agree"}
    configure(run.path, recipe=RECIPE, data=data, n_test=10_000, n_test_curve=2_000)
    assert caption(load_run(run.path)) == (
        "Data: toy (labels: agree). mlp(width=8), N = 40 and 160, 32 SGD steps of batch 10."
        " Mean of 3 seeds, band: Student-t 95 % interval across seeds."
        " 2,000 test images on the curve, 10,000 at the last step."
        " Not converged: N = 40 and 160."
    )


def test_the_caption_of_a_foreign_run_says_what_is_known(tmp_path):
    write_world(tmp_path, None, [record(0, 0.5), record(8, 0.5)])
    run = write_world(tmp_path, 40, [record(0, 0.5), record(8, 0.5)])
    assert json.loads((run.path / "pair.json").read_text()).keys() == {"schema", "run"}
    assert caption(run) == "N = 40, 8 SGD steps. 1 seed; no interval. Status: partial."


def test_the_caption_says_how_many_seeds_converged(tmp_path):
    for seed, train in enumerate((0.0, 0.5)):
        write_world(tmp_path, None, [record(1, 0.5)], seed)
        run = write_world(tmp_path, 40, [record(1, 0.5, train)], seed)
    assert "N = 40: 1 of 2 seeds converged" in caption(run)


def test_global_settings_stay_as_they_are(tmp_path):
    before = dict(matplotlib.rcParams)
    write_figure(write_run(tmp_path))
    assert dict(matplotlib.rcParams) == before
