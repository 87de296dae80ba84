"""`plot` over a folder of poor runs: a figure and a summary for each, whatever they lack."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from synthetic_runs import write_run
from test_plot import POOR, rows_of

from bootstrap.runlog import load_runs

SUMMARY = {"schema", "run", "status", "seeds", "no_gap", "n_samples"}


def write_torn(root):
    """Its last row was cut off by a kill."""
    run = write_run(root)
    with (run.path / "seed-0" / "ideal.jsonl").open("a") as file:
        file.write('{"step": 33, "test_er')


def write_failed(root):
    run = write_run(root)
    (run.path / "seed-1" / "real-n40.failed.json").write_text('{"step": 9, "reason": "NaN"}')


WRITERS = {write.__name__: write for write in (*POOR, write_torn, write_failed)}


@pytest.fixture(scope="module")
def plotted(tmp_path_factory):
    """What `plot` says and leaves behind over a folder that holds one run of each kind."""
    from bootstrap.cli import main

    root = tmp_path_factory.mktemp("runs")
    for name, write in WRITERS.items():
        (root / name).mkdir()
        write(root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["deep-bootstrap", "plot", str(root)])
        main()  # exits 0
    return {run.path.relative_to(root).parts[0]: run.path for run in load_runs(root)}


def test_every_poor_run_was_drawn(plotted):
    assert plotted.keys() == WRITERS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_the_summary_of_a_poor_run_is_valid_json_without_nan(plotted, name):
    summary = json.loads((plotted[name] / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary.keys() >= SUMMARY
    assert summary["status"] == ("failed" if name == "write_failed" else "partial")


def has_ink(path: Path, rows: slice) -> bool:
    """Whether the picture holds anything but white in these rows, as fractions of its height."""
    pixels = matplotlib.image.imread(path)[..., :3]
    height = len(pixels)
    return bool((pixels[int(rows.start * height) : int(rows.stop * height)] < 0.99).any())


@pytest.mark.parametrize("name", WRITERS)
def test_the_figure_of_a_poor_run_is_not_empty(plotted, name):
    assert has_ink(plotted[name] / "curves.png", slice(0.1, 0.5))
    assert has_ink(plotted[name] / "curves.png", slice(0.9, 1.0))  # the caption
    assert len((plotted[name] / "curves.svg").read_bytes()) > 10_000
    assert (plotted[name] / "curves.csv").read_text().startswith("seed,world,n_samples,step")


def test_the_torn_row_is_left_out_and_all_others_are_there(plotted):
    ideal = [row for row in rows_of(plotted["write_torn"] / "curves.csv") if not row["n_samples"]]
    assert len(ideal) == 3 * 7


def test_the_failed_seed_alone_has_no_gap(plotted):
    rows = [row for row in rows_of(plotted["write_failed"] / "curves.csv") if row["n_samples"]]
    without = {(row["seed"], row["n_samples"]) for row in rows if not row["gap_error"]}
    assert without == {("1", "40")}
    summary = json.loads((plotted["write_failed"] / "summary.json").read_bytes())
    assert summary["n_samples"]["40"]["n_seeds"] == 2
    assert np.isfinite(summary["n_samples"]["40"]["final_gap"]["error"]["mean"])
