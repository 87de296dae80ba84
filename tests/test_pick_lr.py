"""A learning rate is picked on the reference split, before any world is trained."""

import json
from dataclasses import replace

import pytest
from test_init import fresh
from test_paired import FLAGS
from tiny_pair import COMPARE, TINY

from bootstrap.comparison import picked
from bootstrap.errors import ConfigurationError, Interrupted, NotEnoughData, NumericError
from bootstrap.interventions.flooding import Flooding
from bootstrap.models import MLP
from bootstrap.options import CompareOptions
from bootstrap.pick_lr import Picking, pick_lr
from bootstrap.ranks import Ranks
from bootstrap.runlog import load_run
from bootstrap.stacked import Stack
from generators.toy import ToySource
from generators.write import generate

SIZES = {"test": 64, "reference": 256, "stream": 1_024}


def picking(data, values=(1e-6, 0.05), **options):
    given = {"recipe": TINY, "n_samples": 48, "n_steps": 40, "flags": FLAGS} | options
    return Picking(data=data, values=values, **given)


@pytest.fixture
def data(tmp_path):
    generate(ToySource(side=8), tmp_path / "toy", SIZES)
    return tmp_path / "toy"


def test_the_rate_of_the_lowest_error_is_picked_and_all_are_told(toy_data, tmp_path):
    pick = pick_lr(picking(toy_data, (1e-6, 0.05, 1e-5)), tmp_path)
    assert pick["lr"] == 0.05
    assert [row["lr"] for row in pick["tried"]] == [1e-6, 0.05, 1e-5]
    assert min(row["error"] for row in pick["tried"]) == pick["tried"][1]["error"] < 0.8
    assert (pick["split"], pick["n_images"], pick["n_steps"]) == ("reference", 256, 40)


def test_scores_are_those_of_the_reference_split_and_no_other(data, tmp_path):
    before = pick_lr(picking(data), tmp_path / "one")["tried"]
    generate(ToySource(side=8), data, SIZES | {"test": 128})
    assert pick_lr(picking(data), tmp_path / "two")["tried"] == before
    generate(ToySource(side=8), data, SIZES | {"test": 128, "reference": 512})
    after = pick_lr(picking(data), tmp_path / "three")
    assert (after["n_images"], after["tried"] != before) == (512, True)


def test_extending_the_stream_changes_no_choice(data, tmp_path):
    before = picking(data)
    path, pick = before.record(tmp_path), pick_lr(before, tmp_path)
    generate(ToySource(side=8), data, SIZES | {"stream": 4_096})
    assert picking(data).record(tmp_path) == path
    assert picking(data).read(tmp_path) == pick


def test_another_init_is_another_choice(toy_data, tmp_path):
    init = fresh(TINY, toy_data, tmp_path / "w.safetensors")
    records = {picking(toy_data, init=i).record(tmp_path) for i in (None, init)}
    assert len(records) == 2
    pick = pick_lr(picking(toy_data, (0.05,), n_steps=1, init=init), tmp_path)
    scratch = pick_lr(picking(toy_data, (0.05,), n_steps=1), tmp_path)
    assert pick["tried"] != scratch["tried"]


def test_a_rate_whose_loss_is_not_finite_is_told_and_not_picked(toy_data, tmp_path):
    recipe = replace(TINY, model=MLP(width=8, depth=1, batch_norm=False))
    pick = pick_lr(picking(toy_data, (1e30, 1e-3), recipe=recipe), tmp_path)
    assert (pick["lr"], pick["tried"][0]["error"]) == (1e-3, None)
    with pytest.raises(NumericError, match=r"no rate of \[1e\+30\] keeps the loss finite"):
        pick_lr(picking(toy_data, (1e30,), recipe=recipe), tmp_path)


def test_rates_tried_at_once_have_the_scores_of_each_alone(toy_data, tmp_path, monkeypatch):
    n_together, differentiate = [], Stack._differentiate

    def count(self, places, asked):
        n_together.append(len(places))
        return differentiate(self, places, asked)

    monkeypatch.setattr(Stack, "_differentiate", count)
    values = (1e-3, 0.05, 0.02)
    alone, at_once = (
        pick_lr(picking(toy_data, values, n_steps=12, flags=flags), tmp_path)
        for flags in (FLAGS, FLAGS.stacked(2))
    )
    assert n_together == 12 * [2] + 12 * [1]
    assert at_once["lr"] == alone["lr"]
    for one, other in zip(alone["tried"], at_once["tried"], strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_a_rate_that_fails_leaves_the_others_to_go_on(toy_data, tmp_path):
    recipe = replace(TINY, model=MLP(width=8, depth=1, batch_norm=False))
    flags = FLAGS.stacked(2)
    pick = pick_lr(picking(toy_data, (1e30, 1e-3), recipe=recipe, flags=flags), tmp_path)
    assert (pick["lr"], pick["tried"][0]["error"]) == (1e-3, None)


def test_rates_are_not_tried_at_once_with_a_choice_of_the_loss(toy_data):
    recipe = replace(TINY, choices=(Flooding(),))
    with pytest.raises(ConfigurationError, match=r"flooding changes the loss, .* --replicas 1"):
        picking(toy_data, recipe=recipe, flags=FLAGS.stacked(2))


def test_it_stops_when_asked(toy_data, tmp_path):
    with pytest.raises(Interrupted, match="run it again"):
        pick_lr(picking(toy_data), tmp_path, lambda: True)
    assert picking(toy_data).read(tmp_path) is None


@pytest.mark.parametrize("values", [(0.0, 0.1), (0.1, 0.1), (-0.1,)])
def test_rates_that_are_none_or_twice_the_same_are_refused(toy_data, values):
    with pytest.raises(ConfigurationError, match="give different rates above 0"):
        picking(toy_data, values)


def test_a_data_set_without_reference_is_refused(tmp_path):
    generate(ToySource(side=8), tmp_path / "toy", {"test": 64, "stream": 1_024})
    with pytest.raises(NotEnoughData, match="no reference split to pick a learning rate on"):
        pick_lr(picking(tmp_path / "toy"), tmp_path)


# ---------------------------------------------------------------- command line


def words(data, out, *more):
    pick = ("--pick-lr", "1e-6", "0.05", "--pick-lr-steps", "40")
    return (*COMPARE, "--data", data, "--out", out, "--n-samples", "48", *pick, *more)


def test_the_command_trains_with_the_rate_and_records_the_choice(
    deep_bootstrap, toy_data, tmp_path, no_figure, updates
):
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path))
    assert code == 0, err
    assert "learning rate 0.05, picked by the error on `reference` (1e-06: 0." in err
    (path,) = tmp_path.glob("smoke-*")
    run = load_run(path)
    assert run.config["lr_pick"]["lr"] == 0.05
    assert run.config["recipe"]["optimizer"].startswith("sgd(lr=0.05")
    assert run.ideal.lr[0, 0] == 0.05
    n_updates = len(updates)
    assert n_updates >= 2 * 40 + 12
    assert deep_bootstrap(*words(toy_data, tmp_path, "--seeds", "0,1"))[0] == 0
    assert len(list(tmp_path.glob("smoke-*"))) == 1
    assert len(updates) - n_updates == 12 + 12 - 48 // 16  # one seed's worlds, and no rate again


def test_the_same_rate_given_by_hand_is_the_same_run_and_keeps_the_choice(
    deep_bootstrap, toy_data, tmp_path, no_figure
):
    assert deep_bootstrap(*words(toy_data, tmp_path))[0] == 0
    (path,) = tmp_path.glob("smoke-*")
    before = json.loads((path / "pair.json").read_bytes())
    by_hand = words(toy_data, tmp_path)[: -len(("--pick-lr", "", "", "--pick-lr-steps", ""))]
    code, out, _ = deep_bootstrap(*by_hand, "--optimizer", before["recipe"]["optimizer"])
    assert (code, "nothing to do" in out) == (0, True)
    assert json.loads((path / "pair.json").read_bytes()) == before


def test_a_dry_run_tries_no_rate(deep_bootstrap, toy_data, tmp_path):
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path, "--dry-run"))
    assert (code, list(tmp_path.iterdir())) == (0, []), err
    assert "--pick-lr would first train 2 real worlds of 40 steps" in err


def test_rates_are_not_picked_by_several_processes(toy_data):
    options = CompareOptions(pick_lr=(0.1,), n_samples=(48,), recipe=TINY)
    with pytest.raises(ConfigurationError, match="--pick-lr and torchrun"):
        picked(options, FLAGS, None, Ranks(0, 2), print)
