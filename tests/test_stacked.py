"""Seeds that take their steps together learn what they learn alone, but for rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_paired import FLAGS
from tiny_pair import COMPARE, TINY
from torch import nn

from bootstrap.augment import CropFlip
from bootstrap.errors import ConfigurationError, Interrupted, NumericError
from bootstrap.forks import Control
from bootstrap.interventions.flooding import Flooding
from bootstrap.models import MLP, PreActResNet18, ViT
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.replicas import resolve_replicas, step_flop
from bootstrap.runlog import load_run
from bootstrap.stacked import Stack, run_stacked

RESNET = replace(TINY, model=PreActResNet18(width=4), augmentation=CropFlip(), every_step=True)
PERCEPTRON = replace(TINY, model=MLP(width=8, depth=1, batch_norm=True))
STACKED = FLAGS.stacked(2)
CLOSE = {"rtol": 0, "atol": 2e-5}


def compare(data, out, recipe, flags, seeds=(0, 1), **options):
    return run_pair(recipe, data, out, n_samples=(48, 96), seeds=seeds, flags=flags, **options)


def curves(folder):
    run = load_run(folder)
    worlds = {"ideal": run.ideal, **{f"real-n{n}": real for n, real in run.real.items()}}
    names = ("test_loss", "test_soft_error", "test_error")
    found = {(w, name): getattr(world, name) for w, world in worlds.items() for name in names}
    return found | {(w, "train_loss"): real.train_loss for w, real in list(worlds.items())[1:]}


@pytest.fixture(scope="module", params=[RESNET, PERCEPTRON], ids=["resnet", "mlp"])
def both(request, toy_data, tmp_path_factory):
    """The same two seeds, one after the other and at once."""
    out = tmp_path_factory.mktemp("runs")
    return [compare(toy_data, out, request.param, flags) for flags in (FLAGS, STACKED)]


def test_seeds_at_once_have_the_records_of_seeds_alone(both):
    alone, together = map(curves, both)
    assert alone.keys() == together.keys()
    for key, values in alone.items():
        np.testing.assert_allclose(together[key], values, err_msg=str(key), **CLOSE)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_real_worlds_of_a_seed_take_their_steps_together_too(
    toy_data, tmp_path, monkeypatch, seeds
):
    """From step 3 (N = 48) and step 6 (N = 96) of 12 on, whatever step each is at."""
    n_together, differentiate = [], Stack._differentiate

    def count(self, places, asked):
        n_together.append(len(places))
        return differentiate(self, places, asked)

    monkeypatch.setattr(Stack, "_differentiate", count)
    compare(toy_data, tmp_path, TINY, FLAGS.stacked(4), seeds=seeds)
    n = len(seeds)
    assert n_together == 12 * [n] + 6 * [2 * n] + 3 * [n]


def test_seeds_at_once_see_the_same_samples(both):
    hashes = [[row["ids_hash"] for row in load_run(f).rows(0, "real-n48")] for f in both]
    assert hashes[0] == hashes[1]


def test_seeds_at_once_stay_seeds(both):
    loss = load_run(both[1]).ideal.test_loss
    assert np.abs(loss[0] - loss[1]).mean() > 1e-3


def test_replicas_name_another_run(both):
    assert both[0].name != both[1].name
    assert FLAGS.stacked(1) == FLAGS


def test_an_odd_number_of_seeds_is_trained_too(toy_data, tmp_path):
    folder = compare(toy_data, tmp_path, TINY, STACKED, seeds=(0, 1, 2))
    alone = compare(toy_data, tmp_path, TINY, FLAGS, seeds=(2,))
    loss = load_run(folder).ideal.test_loss
    np.testing.assert_allclose(loss[2], load_run(alone).ideal.test_loss[0], **CLOSE)


def test_seeds_at_once_stop_and_go_on(toy_data, tmp_path):
    """One has three steps more behind it when they go on."""
    whole = compare(toy_data, tmp_path / "whole", RESNET, STACKED)
    n_asked = iter(range(100))
    stop = Control(is_interrupted=lambda: next(n_asked) >= 9)
    with pytest.raises(Interrupted):
        compare(toy_data, tmp_path, RESNET, STACKED, control=stop)
    with pytest.raises(Interrupted):
        compare(
            *(toy_data, tmp_path, RESNET, STACKED),
            seeds=(0,),
            control=Control(is_interrupted=lambda: next(n_asked) >= 14),
        )
    again = curves(compare(toy_data, tmp_path, RESNET, STACKED))
    for key, values in curves(whole).items():
        np.testing.assert_allclose(again[key], values, err_msg=str(key), **CLOSE)


def test_a_seed_that_fails_leaves_the_others_to_their_end(toy_data, tmp_path, monkeypatch):
    from bootstrap import train

    real = train.refuse_infinite

    def refuse(scores, step):
        if step == 4 and len(failed) == 0:
            failed.append(step)
            raise NumericError("step 4: a loss is nan")
        real(scores, step)

    failed = []
    monkeypatch.setattr(train, "refuse_infinite", refuse)
    with pytest.raises(NumericError, match="step 4"):
        compare(toy_data, tmp_path, TINY, STACKED)
    (folder,) = tmp_path.iterdir()
    run = load_run(folder)
    assert run.status == "failed"
    done = sorted(path.parent.name for path in folder.glob("seed-*/real-n48.done.json"))
    assert len(done) == 1


def test_an_error_in_the_common_pass_reaches_every_run():
    """And none waits for ever."""

    def job(seat):
        model = nn.Linear(2, 3)
        seat.take(model)
        seat.differentiate(model, torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))

    errors = run_stacked([job, job], FLAGS)
    assert len(errors) == 2
    assert all("Expected size" in str(error) for error in errors)


def test_a_model_in_a_stack_is_a_view_of_it():
    models = [nn.Linear(2, 3), nn.Linear(2, 3)]
    before = models[1].weight.detach().clone()
    stack = Stack(2, FLAGS)
    for place, model in enumerate(models):
        stack.take(place, model)
    torch.testing.assert_close(models[1].weight.detach(), before)
    with torch.no_grad():
        models[1].weight.add_(1)
    stack.take(0, nn.Linear(2, 3))
    torch.testing.assert_close(models[1].weight.detach(), before + 1)


def test_sgd_changes_the_stack_in_place():
    model = nn.Linear(2, 3)
    optimizer = SGD(lr=0.1, momentum=0.9).build(model.parameters())
    stack = Stack(1, FLAGS)
    stack.take(0, model)
    x, labels = torch.randn(8, 2), torch.zeros(8, dtype=torch.long)
    with stack.seat(0) as seat:
        loss, _ = seat.differentiate(model, x, labels)
        optimizer.step()
        assert seat.differentiate(model, x, labels)[0] < loss


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_replica_is_refused(n):
    with pytest.raises(ConfigurationError, match="at least 1"):
        FLAGS.stacked(n)


def test_replicas_and_torchrun_are_refused_together():
    with pytest.raises(ConfigurationError, match="use one of them"):
        replace(FLAGS, ranks=2).stacked(2)


def test_compare_says_how_many_replicas_it_trains(toy_data, tmp_path, deep_bootstrap):
    words = (*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path)
    code, _, err = deep_bootstrap(*words, "--seeds", "0-1", "--replicas", "2")
    assert code == 0
    assert "2 replicas" in err


SMALL_VIT, MLP_512 = ViT(width=48, depth=4, heads=3), MLP(width=512, depth=5)


@pytest.mark.parametrize(
    ("recipe", "units", "ranks", "n"),
    [
        (replace(TINY, model=SMALL_VIT), "avx512_bf16", 1, 4),
        (replace(TINY, model=SMALL_VIT, batch_size=4_096), "avx512_bf16", 1, 1),
        (replace(TINY, model=SMALL_VIT, choices=(Flooding(),)), "avx512_bf16", 1, 1),
        (replace(TINY, model=SMALL_VIT), "avx512_bf16", 2, 1),
        (replace(TINY, model=SMALL_VIT), "cpu", 1, 1),
        (replace(TINY, model=MLP_512), "avx512_bf16", 1, 1),
    ],
    ids=["small", "large batch", "changes the loss", "torchrun", "not measured", "does not pay"],
)
def test_auto_stacks_only_where_it_was_measured_to_pay(
    toy_data, monkeypatch, recipe, units, ranks, n
):
    monkeypatch.setattr("bootstrap.replicas.bf16_units", lambda: units)
    assert resolve_replicas("auto", recipe, toy_data, replace(FLAGS, ranks=ranks)) == n


def test_a_number_of_replicas_is_taken_as_it_is(toy_data):
    assert resolve_replicas(3, TINY, toy_data, FLAGS) == 3


def test_operations_of_a_step_are_those_of_its_matrix_products():
    """Forward and the weights' gradient of 2 layers, the input's gradient of the second alone."""
    recipe = replace(TINY, model=MLP(width=8, depth=1), batch_size=16)
    first, second = 8 * 8 * 3 * 8, 8 * 10
    assert step_flop(recipe, (8, 8, 3), 10) == 2 * 16 * (2 * first + 3 * second)
