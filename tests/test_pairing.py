"""A gap is between the two worlds of one pair; of worlds that are none, nothing is subtracted."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import write_run
from test_paired import FLAGS
from tiny_pair import TINY

from bootstrap.augment import CropFlip
from bootstrap.curves import curve_gap, gap
from bootstrap.errors import DataError
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.pairing import first_disagreement, identity_differences
from bootstrap.plot import caption, plot_pair
from bootstrap.progress import summary_lines
from bootstrap.runlog import load_run
from bootstrap.summary import summarise
from bootstrap.verify_run import verify_run

CHANGED = {"lr": 0.04, "ids_hash": "ab" * 32, "test_loss": 2.5}
FORK = 3  # 48 // 16


@pytest.fixture(scope="module")
def pair(toy_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return run_pair(TINY, toy_data, out, n_samples=(48, 96), flags=FLAGS)


def change(path, step, **values):
    """Edit the row of one step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | values if row["step"] == step else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=[*((f, "real-n48") for f in CHANGED), ("lr", "ideal")], ids=" in ".join)
def no_pair(request, pair, tmp_path):
    """A copy of the pair with one field of one world changed before the fork; and the field."""
    name, world = request.param
    folder = shutil.copytree(pair, tmp_path / pair.name)
    change(folder / "seed-0" / f"{world}.jsonl", 2, **{name: CHANGED[name]})
    return folder, name


def test_a_pair_that_was_trained_is_one(pair):
    assert load_run(pair).unpaired == {}
    assert verify_run(pair).problems == ()


def test_verify_exits_3_and_names_field_and_step(no_pair, deep_bootstrap):
    folder, name = no_pair
    code, _, err = deep_bootstrap("verify", folder)
    assert code == 3
    assert f"seed-0/real-n48.jsonl row 3: no pair with ideal.jsonl ({name} at step 2 is" in err


def test_the_gap_of_worlds_that_are_no_pair_is_refused(no_pair):
    folder, name = no_pair
    with pytest.raises(DataError, match=f"N = 48, seed 0: no pair: {name} at step 2 is .*, in the"):
        gap(load_run(folder), n_samples=48)


def test_the_figure_and_the_summary_of_worlds_that_are_no_pair_have_a_note_and_no_gap(
    no_pair, deep_bootstrap
):
    folder, name = no_pair
    assert deep_bootstrap("plot", folder)[0] == 0
    run, summary = load_run(folder), json.loads((folder / "summary.json").read_bytes())
    assert f"No gap for N = 48, seed 0: no pair: {name} at step 2 is" in caption(run)
    below = plot_pair(run).figure.axes[1]
    drawn = [line for line in below.lines if line.get_linewidth() > 1.5 and len(line.get_xdata())]
    assert len(drawn) == len({48, 96} - {n for _, n in run.unpaired})
    assert summary["no_gap"][0]["why"] == run.unpaired[0, 48]
    assert summary["n_samples"]["48"]["final_gap"]["error"]["mean"] is None


@pytest.mark.usefixtures("no_figure")
def test_compare_prints_why_there_is_no_gap(no_pair, toy_data):
    folder, name = no_pair
    run_pair(TINY, toy_data, folder.parent, n_samples=(48, 96), flags=FLAGS)
    lines = list(summary_lines(folder))
    assert any(f"no gap for N = 48, seed 0: no pair: {name} at step 2" in line for line in lines)


def test_a_world_that_is_no_pair_leaves_the_gaps_of_the_others(pair, tmp_path):
    folder = shutil.copytree(pair, tmp_path / "run")
    change(folder / "seed-0" / "real-n48.jsonl", 2, lr=0.04)
    run = load_run(folder)
    assert np.isfinite(gap(run, n_samples=96)).all()
    assert summarise(run)["n_samples"]["96"]["final_gap"]["error"]["mean"] is not None


@pytest.mark.parametrize(("field", "is_pair"), [("lr", False), ("ids_hash", True)])
def test_after_the_first_reuse_only_what_worlds_share_must_agree(pair, tmp_path, field, is_pair):
    folder = shutil.copytree(pair, tmp_path / "run")
    change(folder / "seed-0" / "real-n48.jsonl", FORK + 1, **{field: CHANGED[field]})
    assert (load_run(folder).unpaired == {}) is is_pair


def test_an_accelerator_may_round_but_not_start_elsewhere():
    config = {"recipe": {"batch_size": 16}, "identity": {"flags": {"device": "cuda"}}}

    def rows(at_start, later):
        return [{"step": 0, "test_loss": at_start}, {"step": 1, "test_loss": later}]

    assert first_disagreement(rows(2.3, 2.2), rows(2.3001, 2.1), config, 48) is None
    found = first_disagreement(rows(2.3, 2.2), rows(2.4, 2.2), config, 48)
    assert str(found) == "test_loss at step 0 is 2.3, in the ideal world 2.4"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": SGD(lr=0.2, momentum=0.9)}, r"recipe\.optimizer \(sgd.*and sgd\(lr=0\.2"),
        ({"augmentation": CropFlip(padding_px=1)}, r"recipe\.augmentation "),
        ({"n_test_curve": 32}, "n_test_curve"),
        ({"batch_size": 8}, r"recipe\.batch_size "),
    ],
    ids=["learning rate", "augmentation", "evaluation set", "batch size"],
)
def test_curves_of_runs_with_other_identities_are_not_subtracted_and_the_fields_are_named(
    toy_data, pair, tmp_path, change, named
):
    recipe = replace(TINY, **change)
    other = load_run(run_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS))
    run = load_run(pair)
    with pytest.raises(DataError, match=f"they differ in .*{named}"):
        curve_gap(run.real[48], other.ideal)
    assert np.isfinite(curve_gap(run.real[48], run.ideal)).all()


def test_curves_of_other_seeds_are_not_subtracted(tmp_path):
    one, two = write_run(tmp_path / "a", seeds=(0, 1)), write_run(tmp_path / "b", seeds=(0, 2))
    with pytest.raises(DataError, match=r"seeds \(\[0, 1\] and \[0, 2\]\)"):
        curve_gap(one.real[40], two.ideal)


def test_differing_fields_are_named_at_any_depth():
    one = {"data": "x" * 64, "recipe": {"model": "mlp()"}, "flags": {"n_threads": 1}}
    other = {"data": "x" * 64, "recipe": {}, "flags": {"n_threads": 2}}
    assert identity_differences(one, other) == [
        "flags.n_threads (1 and 2)",
        "recipe.model (mlp() and default)",
    ]
