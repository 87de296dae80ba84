"""Several pairs in one figure: every real world beside its own ideal one."""

import csv
import io

import numpy as np
import pytest
from synthetic_runs import configure, write_run

from bootstrap.overlay import DASHES, caption, plot_overlay, write_overlay
from bootstrap.plot import IDEAL_COLOUR
from bootstrap.runlog import load_run
from bootstrap.series import Series, series_csv

GRID = (0, 1, 2, 4, 8, 16, 24, 32, 40, 48)  # N = 40 converges at 40, N = 160 does not


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = []
    for name in ("first", "second"):
        run = write_run(tmp_path_factory.mktemp(name), grid=GRID)
        configure(run.path, data={"name": "toy"}, environment={"hardware": "a CPU"})
        found.append(load_run(run.path))
    return found


def curves(figure):
    """Colour, whether dashed, and the values of each line of the first panel that is a curve."""
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    return [(line.get_color(), line.is_dashed(), line.get_ydata()) for line in lines]


def test_a_real_world_is_solid_and_its_ideal_one_dashed_in_the_same_colour(runs):
    series = [Series("ResNet", runs[0], 40), Series("MLP", runs[1], 40)]
    found = curves(plot_overlay(series, ("soft_error",)))
    assert [is_dashed for _, is_dashed, _ in found] == [True, False, True, False]
    assert found[0][0] == found[1][0] != found[2][0] == found[3][0]
    expected = runs[0].real[40].test_soft_error[:, 1:].mean(axis=0)
    np.testing.assert_allclose(found[1][2], expected, rtol=1e-12)


def test_several_n_of_one_run_share_one_ideal_curve(runs):
    series = [Series(f"N = {n}", runs[0], n) for n in (40, 160)]
    found = curves(plot_overlay(series, ("soft_error",)))
    assert [is_dashed for _, is_dashed, _ in found] == [True, False, False]
    assert found[0][0] == IDEAL_COLOUR


@pytest.mark.parametrize("name", ["ResNet of width 16, crop and flip", "mlp(width=1024,depth=5)"])
def test_a_long_label_stays_inside_the_figure(runs, name):
    figure = plot_overlay([Series(name, runs[0], 40), Series("MLP", runs[1], 40)], ("error",))
    figure.canvas.draw()
    box = figure.axes[0].get_legend().get_window_extent()
    assert box.x1 <= figure.bbox.x1


def test_every_metric_has_a_panel(runs):
    figure = plot_overlay([Series("ResNet", runs[0], 40)], ("error", "soft_error", "loss"))
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["test error", "test soft-error", "test loss (nats)"]


def test_convergence_is_marked_on_the_curve_of_the_world_that_converged(runs):
    series = [Series(f"N = {n}", runs[0], n) for n in (40, 160)]
    marks = [m for m in plot_overlay(series, ("error",)).axes[0].lines if m.get_marker() == "o"]
    assert [mark.get_xdata() for mark in marks] == [[40]]
    assert "Not converged: N = 160." in caption(series)


def test_the_caption_says_what_is_missing(runs):
    series = [Series("ResNet", runs[0], 40), Series("ViT", runs[1], 77)]
    assert "No records: ViT." in caption(series)
    assert "Data: toy. N = 40, 48 SGD steps of batch 10. Mean of 3 seeds" in caption(series)


def test_nothing_to_draw_makes_a_figure_that_says_so(runs, tmp_path):
    assert caption([]) == "No records yet."
    for path in write_overlay([Series("ViT", runs[1], 77)], tmp_path / "none", ("error",)):
        assert path.exists()


def test_the_table_holds_both_worlds_of_every_seed(runs):
    table = csv.DictReader(io.StringIO(series_csv([Series("ResNet", runs[0], 40)]).decode()))
    found = list(table)
    assert len(found) == 2 * 3 * len(GRID)
    first = runs[0].real[40].test_error[0, 0]
    assert (found[0]["world"], float(found[0]["test_error"])) == ("real", first)


def test_dashes_are_those_of_a_pairs_figure():
    assert DASHES == (0, (4, 2))
