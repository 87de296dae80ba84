"""results/explore.ipynb runs from its first cell to its last on saved runs, and is kept clean."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest
from synthetic_runs import finish, write_run

PATH = Path(__file__).resolve().parent.parent / "results" / "explore.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run on a finished and an unfinished pair."""
    root = tmp_path_factory.mktemp("results")
    finish(write_run(root / "finished", n_samples=(10, 40), grid=(0, 1, 2, 4, 8, 16, 32, 64)))
    write_run(root / "unfinished", seeds=(0,))
    notebook = nbformat.read(PATH, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEP_BOOTSTRAP_RESULTS", str(root))
        patch.setenv("PYTHONPATH", str(PATH.parent.parent))
        nbclient.NotebookClient(notebook, timeout=60).execute(cwd=str(root))
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell, kind):
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def test_it_is_kept_without_outputs():
    cells = code_cells(nbformat.read(PATH, as_version=4))
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)
    nbformat.validate(json.loads(PATH.read_text()))


def test_it_asks_for_no_torch():
    assert "torch" not in "".join(cell.source for cell in code_cells(nbformat.read(PATH, 4)))


def test_it_draws_a_pair_an_overlay_a_scatter_plot_and_the_reuse_rate(executed):
    assert sum(bool(shown(cell, "image/png")) for cell in code_cells(executed)) == 4


def test_it_shows_every_run_in_its_tables(executed):
    first, *_, last = [cell for cell in code_cells(executed) if shown(cell, "text/html")]
    for n_rows, cell in ((2, first), (4, last)):
        (table,) = shown(cell, "text/html")
        assert table.count("<tr>") == n_rows


def test_nothing_is_said_on_stderr(executed):
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
