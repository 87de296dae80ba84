"""The science of a pair: one difference between the worlds, exact, resumable, extendable."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from bootstrap.augment import CropFlip, crop_flip_draws
from bootstrap.curves import gap
from bootstrap.errors import ConfigurationError, DataError, NotEnoughData, NumericError
from bootstrap.execution import Flags
from bootstrap.files import file_sha256
from bootstrap.forks import Control
from bootstrap.locks import locked
from bootstrap.models import MLP, SmallCNN
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.plan import identity, plan_pair
from bootstrap.recipe import Recipe, evaluation_grid
from bootstrap.runlog import load_run
from bootstrap.shards import read_manifest
from bootstrap.verify_run import verify_run
from bootstrap.worlds import SeedOrder, World
from generators.toy import ToySource
from generators.write import generate

FLAGS = Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)
RECIPE = Recipe(
    model=SmallCNN(width=4),
    optimizer=SGD(lr=0.05, momentum=0.9),
    augmentation=CropFlip(padding_px=2),
    n_steps=30,
    batch_size=16,
    n_test_curve=64,
    every_step=True,
)
N = (40, 100)  # 40 is no multiple of the batch: a batch straddles two passes
SIZES = {"test": 256, "reference": 128, "stream": 2_048}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=8), folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """One finished pair that the tests read."""
    return run_pair(RECIPE, data, tmp_path_factory.mktemp("pair"), n_samples=N, flags=FLAGS)


def content(folder):
    """Every record (`wall_s` aside) and the sha256 of every final weight file."""
    found = {}
    for path in sorted(folder.glob("seed-*/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[f"{path.parent.name}/{path.name}"] = [
            {key: value for key, value in row.items() if key != "wall_s"} for row in rows
        ]
    for path in sorted(folder.glob("seed-*/*.done.json")):
        done = json.loads(path.read_bytes())
        found[f"{path.parent.name}/{path.name}"] = (done["weights_sha256"], done["n_rows"])
    return found


def stop_after(n_events):
    """A control that asks for a stop once `n_events` records have been written."""
    seen = []
    return Control(
        on_record=lambda *event: seen.append(event), is_interrupted=lambda: len(seen) >= n_events
    )


def run_until_done(data, out, first_control, recipe=RECIPE, n_samples=N):
    """Interrupt once, then run to the end; returns the folder and whether it was interrupted."""
    from bootstrap.errors import Interrupted

    try:
        run_pair(recipe, data, out, n_samples=n_samples, flags=FLAGS, control=first_control)
        return False
    except Interrupted:
        run_pair(recipe, data, out, n_samples=n_samples, flags=FLAGS)
        return True


def test_a_forked_real_world_equals_one_trained_from_step_0(data, pair, tmp_path):
    alone = run_pair(
        RECIPE, data, tmp_path, n_samples=N, flags=FLAGS, control=Control(share_prefix=False)
    )
    assert content(alone) == content(pair)


def test_two_runs_into_two_empty_folders_are_identical(data, pair, tmp_path):
    again = run_pair(RECIPE, data, tmp_path, n_samples=N, flags=FLAGS)
    assert content(again) == content(pair)


def test_another_seed_sees_other_samples(data, pair, tmp_path):
    other = run_pair(RECIPE, data, tmp_path, n_samples=N, seeds=(1,), flags=FLAGS)
    first = content(pair)["seed-0/ideal.jsonl"][-1]["ids_hash"]
    assert content(other)["seed-1/ideal.jsonl"][-1]["ids_hash"] != first


def test_a_real_world_that_never_reuses_a_sample_is_the_ideal_world(data, tmp_path):
    n = RECIPE.n_draws
    folder = run_pair(RECIPE, data, tmp_path, n_samples=(n,), flags=FLAGS)
    found = content(folder)
    real = [
        {key: value for key, value in row.items() if not key.startswith("train_")}
        for row in found[f"seed-0/real-n{n}.jsonl"]
    ]
    assert real == found["seed-0/ideal.jsonl"]
    assert found[f"seed-0/real-n{n}.done.json"] == found["seed-0/ideal.done.json"]


def test_the_gap_is_exactly_zero_until_the_first_reuse_and_not_after(pair):
    run = load_run(pair)
    for n in N:
        gap = run.real[n].test_error[0] - run.ideal.test_error[0]
        soft_gap = run.real[n].test_soft_error[0] - run.ideal.test_soft_error[0]
        shared = run.steps <= n // RECIPE.batch_size
        assert (gap[shared] == 0).all()
        assert (soft_gap[shared] == 0).all()
        assert (soft_gap[~shared] != 0).any()


def test_the_ideal_world_never_sees_a_sample_twice(pair):
    ideal = load_run(pair).ideal
    np.testing.assert_array_equal(ideal.unique_samples_seen, ideal.samples_seen)


def test_a_real_world_sees_its_n_samples_and_no_other(pair):
    for n in N:
        assert load_run(pair).real[n].unique_samples_seen[0, -1] == n


def test_both_worlds_are_evaluated_at_the_same_steps(pair):
    run = load_run(pair)
    for n in N:
        np.testing.assert_array_equal(run.real[n].steps, run.ideal.steps)


def test_every_step_has_a_row_in_the_every_step_files(pair):
    for world in ("ideal", "real-n40", "real-n100"):
        steps = [row["step"] for row in load_run(pair).rows(0, f"{world}-every-step")]
        assert steps == list(range(RECIPE.n_steps))


def test_the_same_id_gets_other_crops_in_another_pass():
    world, order = World(n_samples=40, seed=0), SeedOrder(pool_n_samples=2_048, seed=0)
    crops = {}
    for step in range(RECIPE.n_steps):
        ids = order.ids(world.positions(step, 16))
        for i, crop in zip(ids, zip(*crop_flip_draws(16, 4, 0, step), strict=True), strict=True):
            crops.setdefault(int(i), []).append(tuple(int(c) for c in crop))
    assert len(crops) == 40
    assert all(len(set(seen)) > 1 for seen in crops.values())


@pytest.mark.parametrize("n_events", [0, 1, 3, 20, 45, 60, 100])
def test_a_stopped_pair_goes_on_as_if_it_had_not_been_stopped(data, pair, tmp_path, n_events):
    assert run_until_done(data, tmp_path, stop_after(n_events))
    assert content(next(tmp_path.iterdir())) == content(pair)


def test_frequent_checkpoints_change_nothing(data, pair, tmp_path):
    folder = run_pair(
        RECIPE, data, tmp_path, n_samples=N, flags=FLAGS, control=Control(checkpoint_every_s=0.0)
    )
    assert content(folder) == content(pair)


def test_a_corrupt_latest_checkpoint_falls_back_to_the_one_before(data, pair, tmp_path):
    from bootstrap.errors import Interrupted

    control = replace(stop_after(45), checkpoint_every_s=0.0)
    with pytest.raises(Interrupted):
        run_pair(RECIPE, data, tmp_path, n_samples=N, flags=FLAGS, control=control)
    checkpoints = next(tmp_path.glob("*/seed-0/checkpoints"))
    latest = max(checkpoints.glob("trunk-*.safetensors"), key=lambda p: int(p.stem.split("-")[1]))
    latest.write_bytes(latest.read_bytes()[:-100])
    folder = run_pair(RECIPE, data, tmp_path, n_samples=N, flags=FLAGS)
    assert content(folder) == content(pair)


def test_a_finished_pair_is_left_alone(data, pair):
    before = {path: path.read_bytes() for path in pair.rglob("[a-z]*.json*")}
    run_pair(RECIPE, data, pair.parent, n_samples=N, flags=FLAGS, control=stop_after(0))
    assert {path: path.read_bytes() for path in pair.rglob("[a-z]*.json*")} == before


def test_extending_the_stream_leaves_an_existing_run_alone(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    generate(ToySource(side=8), data, SIZES)
    before = content(run_pair(RECIPE, data, out, n_samples=N, flags=FLAGS))
    generate(ToySource(side=8), data, {**SIZES, "stream": 4_096})
    folder = run_pair(RECIPE, data, out, n_samples=N, flags=FLAGS, control=stop_after(0))
    assert len(list(out.iterdir())) == 1
    assert content(folder) == before


def test_an_n_that_is_asked_for_later_gives_the_same_real_world(data, pair, tmp_path):
    run_pair(RECIPE, data, tmp_path, n_samples=N[:1], flags=FLAGS)
    folder = run_pair(RECIPE, data, tmp_path, n_samples=N[1:], flags=FLAGS)
    later, at_once = load_run(folder), load_run(pair)
    assert later.n_samples == N
    np.testing.assert_array_equal(later.real[100].test_error, at_once.real[100].test_error)
    assert content(folder)["seed-0/ideal.jsonl"] == content(pair)["seed-0/ideal.jsonl"]


def test_an_n_asked_for_later_whose_fork_is_off_the_grid_leaves_the_other_gaps_readable(
    data, tmp_path
):
    recipe = replace(RECIPE, n_steps=120, model=MLP(width=8, depth=1), every_step=False)
    assert 45 not in evaluation_grid(120)
    run_pair(recipe, data, tmp_path, n_samples=(100,), flags=FLAGS)
    folder = run_pair(recipe, data, tmp_path, n_samples=(45 * 16,), flags=FLAGS)
    run = load_run(folder)
    assert 45 in run.steps
    assert np.isnan(gap(run, n_samples=100)[0, run.steps == 45]).all()
    assert np.isfinite(gap(run, n_samples=100)[0, run.steps != 45]).all()
    assert verify_run(folder).problems == ()


def test_an_n_that_needs_the_extended_stream_gets_a_run_of_its_own(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    generate(ToySource(side=8), data, SIZES)
    run_pair(RECIPE, data, out, n_samples=N, flags=FLAGS)
    generate(ToySource(side=8), data, {**SIZES, "stream": 4_096})
    folder = run_pair(RECIPE, data, out, n_samples=(3_000,), flags=FLAGS)
    assert len(list(out.iterdir())) == 2
    assert load_run(folder).n_samples == (3_000,)


def test_a_corrupt_shard_is_refused_before_training(tmp_path):
    data = tmp_path / "data"
    generate(ToySource(side=8), data, SIZES)
    shard = data / "stream-00000.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"stream-00000\.h5"):
        run_pair(RECIPE, data, tmp_path / "out", n_samples=N, flags=FLAGS)
    assert not (tmp_path / "out").exists()


def test_a_lost_fork_state_is_rebuilt_from_the_trunk(data, pair, tmp_path):
    from bootstrap.errors import Interrupted

    rows_of = content(pair)
    trunk = [name for name in rows_of if "/ideal" in name and "done" not in name]
    n_trunk = sum(len(rows_of[name]) for name in trunk)  # 30 steps and its evaluations
    with pytest.raises(Interrupted):
        run_pair(RECIPE, data, tmp_path, n_samples=N, flags=FLAGS, control=stop_after(n_trunk))
    for path in tmp_path.glob("*/seed-0/checkpoints/fork-*"):
        path.unlink()
    folder = run_pair(RECIPE, data, tmp_path, n_samples=N, flags=FLAGS)
    assert content(folder) == content(pair)


def test_more_seeds_extend_the_run(data, tmp_path):
    run_pair(RECIPE, data, tmp_path, n_samples=N, seeds=(0,), flags=FLAGS)
    folder = run_pair(RECIPE, data, tmp_path, n_samples=N, seeds=(0, 1), flags=FLAGS)
    assert load_run(folder).seeds == (0, 1)


def test_a_stream_that_is_too_short_is_refused_before_training(data, tmp_path):
    recipe = replace(RECIPE, n_steps=200)
    with pytest.raises(NotEnoughData, match=r"holds 2,048 samples, 3,200 are needed.*--n 4096"):
        run_pair(recipe, data, tmp_path / "out", n_samples=N, flags=FLAGS)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_world_and_is_never_reported_as_a_gap(data, tmp_path):
    recipe = replace(RECIPE, optimizer=SGD(lr=1e30), model=MLP(width=8, depth=1, batch_norm=False))
    with pytest.raises(NumericError, match="step"):
        run_pair(recipe, data, tmp_path, n_samples=N, flags=FLAGS)
    folder = next(tmp_path.iterdir())
    assert load_run(folder).status == "failed"
    summary = json.loads((folder / "summary.json").read_bytes())
    assert summary["status"] == "failed"
    assert "n_samples" not in summary


def test_a_second_process_on_the_same_run_is_refused(data, pair):
    with locked(pair), pytest.raises(ConfigurationError, match=f"process {os.getpid()} on "):
        run_pair(RECIPE, data, pair.parent, n_samples=N, flags=FLAGS)


OWN_MODEL = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Linear:
    scale: float = 1.0

    def build(self, image_shape, n_classes):
        from math import prod
        from torch import nn
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(image_shape), n_classes))
"""


def test_a_model_from_a_file_of_ones_own_is_trained_and_its_bytes_are_in_the_identity(
    data, tmp_path
):
    path = tmp_path / "mine.py"
    path.write_text(OWN_MODEL)
    recipe = Recipe.from_json({**RECIPE.to_json(), "model": f"{path}:Linear(scale=2)"})
    folder = run_pair(recipe, data, tmp_path / "out", n_samples=N, flags=FLAGS)
    known = json.loads((folder / "pair.json").read_bytes())
    assert known["recipe"]["model"] == f"{path}:Linear(scale=2.0)"
    assert known["identity"]["own_files"] == {"model": file_sha256(path)}
    path.write_text(OWN_MODEL + "# changed\n")
    assert plan_pair(recipe, data, tmp_path / "out", n_samples=N, flags=FLAGS).folder != folder


@pytest.mark.parametrize(
    "change",
    [
        {"n_steps": 31},
        {"batch_size": 17},
        {"optimizer": SGD(lr=0.06, momentum=0.9)},
        {"n_test_curve": 65},
    ],
    ids=str,
)
def test_another_recipe_is_another_identity(data, change):
    manifest = read_manifest(data)
    assert identity(replace(RECIPE, **change), manifest, 2_048, FLAGS) != identity(
        RECIPE, manifest, 2_048, FLAGS
    )


def test_only_a_world_that_re_uses_samples_keeps_their_blocks(toy_data, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("bootstrap.pool.Pool.keep", lambda _, n_samples: kept.append(n_samples))
    run_pair(RECIPE, toy_data, tmp_path, n_samples=(100, 2_000), flags=FLAGS)
    assert kept == [0, 100]
