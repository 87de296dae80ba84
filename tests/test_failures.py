"""A loss or gradient that is no number stops its world before the update and makes no gap."""

import csv
import json

import numpy as np
import pytest
import torch
from synthetic_runs import write_run
from test_paired import FLAGS, content
from tiny_pair import COMPARE, TINY
from torch.nn.functional import cross_entropy

from bootstrap.checkpoint import checkpoint_steps, read_latest
from bootstrap.curves import gap
from bootstrap.errors import NumericError
from bootstrap.forks import Control
from bootstrap.pair import run_pair
from bootstrap.plot import caption, plot_pair
from bootstrap.reuse import reuse_of
from bootstrap.runlog import load_run
from bootstrap.shards import read_manifest
from bootstrap.train import build_state


class InfiniteGradient(torch.autograd.Function):
    """A loss that is finite and whose gradient is not."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


SPOILT = {
    "the training loss is nan": lambda loss: loss * float("nan"),
    "the gradient is not finite": InfiniteGradient.apply,
}


def spoil(patch, loss_of, call):
    """Spoil the training loss at one call, counted from 0."""
    calls = iter(range(1_000_000))

    def spoilt(logits, labels):
        loss = cross_entropy(logits, labels)
        return loss_of(loss) if next(calls) == call else loss

    patch.setattr("bootstrap.objective.cross_entropy", spoilt)


def run_tiny(data, out, **options):
    return run_pair(TINY, data, out, n_samples=(48,), flags=FLAGS, **options)


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_no_update_is_made_at_a_step_that_is_not_finite_and_the_state_before_it_is_kept(
    toy_data, tmp_path, monkeypatch, updates, what, step
):
    with monkeypatch.context() as patch:
        spoil(patch, SPOILT[what], step)
        with pytest.raises(NumericError, match=f"step {step}: {what}"):
            run_tiny(toy_data, tmp_path, control=Control(checkpoint_every_s=0.0))
    assert len(updates) == step
    (folder,) = tmp_path.iterdir()
    failed = json.loads((folder / "seed-0" / "trunk.failed.json").read_bytes())
    assert failed["step"] == step
    latest = checkpoint_steps(folder / "seed-0" / "checkpoints", "trunk")[:1]
    assert latest == ([step] if step else [])
    if step:
        tensors, meta = read_latest(folder / "seed-0" / "checkpoints", "trunk")
        assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())
        state = build_state(TINY, read_manifest(toy_data), 2_048, 0, FLAGS)
        state.load(tensors, meta["state"])
        assert state.step == step
    again = run_tiny(toy_data, tmp_path)  # the fault was of one moment
    assert content(again) == content(run_tiny(toy_data, tmp_path / "undisturbed"))


@pytest.fixture
def failed_tail(toy_data, tmp_path, monkeypatch, deep_bootstrap):
    """The exit code of a pair whose tail N = 48 failed at its second step; and how to go on."""
    words = (*COMPARE, "--n-samples", "48", "96", "--data", toy_data, "--out", tmp_path)
    with monkeypatch.context() as patch:
        spoil(patch, SPOILT["the training loss is nan"], TINY.n_steps + 1)
        code, _, err = deep_bootstrap(*words)
    (folder,) = tmp_path.iterdir()
    return code, err, folder, words


def gaps_of(summary, n):
    """Every mean gap of one N."""
    kinds = ("gap_at_convergence", "max_abs_gap_until_convergence", "final_gap")
    return [summary["n_samples"][n][kind][m]["mean"] for kind in kinds for m in ("error", "loss")]


def test_a_tail_that_fails_exits_5_and_marks_the_pair_as_failed(failed_tail):
    code, err, folder, _ = failed_tail
    assert code == 5
    assert "real-n48: step 4: the training loss is nan" in err
    assert (folder / "seed-0" / "real-n48.failed.json").exists()
    assert load_run(folder).status == "failed"
    assert "n_samples" not in json.loads((folder / "summary.json").read_bytes())


def test_plotting_a_pair_again_whose_tail_failed_reports_no_gap_from_it(
    failed_tail, deep_bootstrap
):
    _, _, folder, _ = failed_tail
    assert deep_bootstrap("plot", folder)[0] == 0
    summary = json.loads((folder / "summary.json").read_bytes())
    assert summary["status"] == "failed"
    assert gaps_of(summary, "48") == [None] * 6
    assert summary["n_samples"]["48"]["per_seed"] == {}
    why = "real-n48 failed at step 4"
    assert summary["no_gap"] == [{"seed": 0, "n_samples": 48, "why": why}]
    with (folder / "curves.csv").open() as file:
        assert {r["gap_error"] for r in csv.DictReader(file) if r["n_samples"] == "48"} == {""}


def test_a_world_that_failed_has_no_reuse_rate(tmp_path):
    run = write_run(tmp_path, seeds=(0, 1))
    whole = reuse_of(run).rates[40]
    (run.path / "seed-1" / "real-n40.failed.json").write_text('{"step": 33}')
    found = reuse_of(load_run(run.path)).rates[40]
    assert found.keys() == whole.keys() != set()
    for k, by_metric in found.items():
        np.testing.assert_array_equal(by_metric["loss"], [whole[k]["loss"][0], np.nan])
        assert not np.isnan(whole[k]["loss"][1])


def test_the_figure_of_a_failed_tail_shows_no_gap_and_says_so(failed_tail):
    run = load_run(failed_tail[2])
    assert np.isnan(gap(run, n_samples=48)).all()
    assert "No gap for N = 48, seed 0: real-n48 failed at step 4." in caption(run)
    below = plot_pair(run).figure.axes[1]
    drawn = [line for line in below.lines if line.get_linewidth() > 1.5 and len(line.get_xdata())]
    assert len(drawn) == 1  # of N = 96, as far as both worlds went
    assert "a gap is left out: see below" in [text.get_text() for text in below.texts]


def test_a_failed_tail_that_is_run_again_has_its_gap(failed_tail, deep_bootstrap):
    _, _, folder, words = failed_tail
    code, out, _ = deep_bootstrap(*words)
    assert code == 0
    assert "no gap" not in out
    summary = json.loads((folder / "summary.json").read_bytes())
    assert (summary["status"], summary["no_gap"]) == ("complete", [])
    assert summary["n_samples"]["48"]["final_gap"]["error"]["mean"] is not None


@pytest.mark.parametrize("label", ["trunk", "ideal", "replay"])
@pytest.mark.usefixtures("no_figure")
def test_an_ideal_world_that_failed_leaves_no_gap_at_all(toy_data, tmp_path, label):
    folder = run_tiny(toy_data, tmp_path)
    (folder / "seed-0" / "real-n48.done.json").unlink()
    (folder / "seed-0" / f"{label}.failed.json").write_text('{"step": 5, "reason": "NaN"}')
    assert load_run(folder).failed == {(0, 48): f"{label} failed at step 5"}
