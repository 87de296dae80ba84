"""Both worlds of a pair start from a checkpoint: exactly, from step 0, and by its bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_architectures import SHAPED
from test_models import build
from test_paired import FLAGS, content, stop_after
from test_ranks_pair import torchrun
from tiny_pair import COMPARE, PLAIN, TINY
from torch import nn

from bootstrap.caption import caption
from bootstrap.curves import curve_gap
from bootstrap.errors import ConfigurationError, DataError, Interrupted
from bootstrap.forks import Control
from bootstrap.models import MLP, MODELS, PixelTransformer, PreActResNet18
from bootstrap.pair import run_pair
from bootstrap.plan import identity, run_name
from bootstrap.pretrained import (
    about_data,
    card_path,
    head_names,
    read_pretrained,
    write_pretrained,
)
from bootstrap.runlog import load_run
from bootstrap.shards import read_manifest
from bootstrap.spec import parse_spec
from bootstrap.train import build_state
from bootstrap.verify_run import verify_run

PIXELS = replace(TINY, model=PixelTransformer(width=8, depth=1, heads=2, levels=2))
NORMED = replace(TINY, model=MLP(width=8, depth=1, batch_norm=True), every_step=True)
N = (48, 100)


def fresh(recipe, data_set, path, /, seed=0, **card):
    """A checkpoint of the weights that a seed would start from by itself."""
    state = build_state(recipe, read_manifest(data_set), 2_048, seed, FLAGS)
    return read_pretrained(write_pretrained(path, state.model, recipe, {"method": "none", **card}))


def run(recipe, data, out, init=None, **options):
    return run_pair(recipe, data, out, n_samples=N, flags=FLAGS, init=init, **options)


@pytest.fixture(autouse=True)
def _no_figure(no_figure):
    pass


@pytest.fixture(scope="module")
def init(toy_data, tmp_path_factory):
    """The fresh weights of a seed that no test trains."""
    return fresh(NORMED, toy_data, tmp_path_factory.mktemp("init") / "w.safetensors", seed=7)


@pytest.fixture(scope="module")
def pair(toy_data, tmp_path_factory, init):
    """A finished pair that started from it; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return run(NORMED, toy_data, tmp_path_factory.mktemp("pair"), init, seeds=(0, 1))


# ---------------------------------------------------------------- exactness


def test_a_run_from_a_seeds_own_fresh_weights_is_the_run_from_scratch(toy_data, tmp_path):
    own = fresh(PIXELS, toy_data, tmp_path / "own.safetensors")  # its head starts at zero anyway
    scratch = run(PIXELS, toy_data, tmp_path / "scratch")
    assert content(run(PIXELS, toy_data, tmp_path / "own", own)) == content(scratch)


def test_every_seed_starts_from_the_checkpoint_with_a_head_of_zeros(toy_data, init):
    manifest = read_manifest(toy_data)
    for seed in (0, 1):
        model = build_state(NORMED, manifest, 2_048, seed, FLAGS, init=init).model
        tensors, head = model.state_dict(), head_names(model)
        assert {*tensors} == {*init.tensors, *head}
        assert all(torch.equal(tensors[name], tensor) for name, tensor in init.tensors.items())
        assert not any(tensors[name].any() for name in head)


def test_before_the_first_update_every_class_is_equally_likely_in_both_worlds(pair):
    found = load_run(pair)
    for curves in (found.ideal, *found.real.values()):
        np.testing.assert_allclose(curves.test_loss[:, 0], np.log(10), rtol=1e-12)
        np.testing.assert_allclose(curves.test_soft_error[:, 0], 0.9, rtol=1e-12)


def test_seeds_that_start_alike_still_see_other_samples(pair):
    found = load_run(pair).ideal
    assert found.test_loss[0, -1] != found.test_loss[1, -1]


def test_a_forked_world_equals_one_trained_from_the_checkpoint_on(toy_data, init, pair, tmp_path):
    control = Control(share_prefix=False)
    alone = run(NORMED, toy_data, tmp_path, init, seeds=(0, 1), control=control)
    assert content(alone) == content(pair)


@pytest.mark.parametrize("n_events", [1, 20, 45])
def test_a_stopped_pair_goes_on_from_where_it_was(toy_data, init, pair, tmp_path, n_events):
    with pytest.raises(Interrupted):
        run(NORMED, toy_data, tmp_path, init, seeds=(0, 1), control=stop_after(n_events))
    assert content(run(NORMED, toy_data, tmp_path, init, seeds=(0, 1))) == content(pair)


def test_an_n_that_is_asked_for_later_starts_from_the_checkpoint_too(
    toy_data, init, pair, tmp_path
):
    for n in N:
        folder = run_pair(
            NORMED, toy_data, tmp_path, n_samples=(n,), seeds=(0, 1), flags=FLAGS, init=init
        )
    later, at_once = load_run(folder), load_run(pair)
    np.testing.assert_array_equal(later.real[N[0]].test_loss, at_once.real[N[0]].test_loss)
    known = np.isin(later.real[N[1]].steps, at_once.real[N[1]].steps)
    assert known.all()
    np.testing.assert_array_equal(later.real[N[1]].test_loss, at_once.real[N[1]].test_loss)


def test_replicas_start_from_the_checkpoint(toy_data, init, pair, tmp_path):
    stacked = run_pair(
        *(NORMED, toy_data, tmp_path),
        **{"n_samples": N, "seeds": (0, 1), "flags": FLAGS.stacked(2), "init": init},
    )
    alone, together = load_run(pair), load_run(stacked)
    np.testing.assert_allclose(together.ideal.test_loss, alone.ideal.test_loss, atol=2e-5)


# ---------------------------------------------------------------- identity


def test_a_run_from_scratch_has_the_identity_it_had_before(toy_data):
    found = identity(TINY, read_manifest(toy_data), 2_048, FLAGS)
    assert "initial_weights" not in found


def test_another_file_of_the_same_shape_is_another_run(toy_data, init, tmp_path):
    other = fresh(NORMED, toy_data, tmp_path / "other.safetensors", seed=8)
    manifest = read_manifest(toy_data)
    names = [run_name("p", NORMED, manifest, 2_048, FLAGS, i) for i in (None, init, other)]
    assert len({*names}) == 3
    assert init.tensors.keys() == other.tensors.keys()


def test_the_same_bytes_under_another_name_are_the_same_run(toy_data, init, tmp_path):
    again = fresh(NORMED, toy_data, tmp_path / "again.safetensors", seed=7)
    manifest = read_manifest(toy_data)
    names = {run_name("p", NORMED, manifest, 2_048, FLAGS, i) for i in (init, again)}
    assert len(names) == 1


def test_a_run_says_what_it_started_from(pair, init):
    config = json.loads((pair / "pair.json").read_bytes())
    assert config["identity"]["initial_weights"] == init.sha256
    assert config["init"]["weights_sha256"] == init.sha256
    assert config["init"]["file"] == "w.safetensors"
    assert verify_run(pair).problems == ()


def test_the_caption_says_that_a_run_did_not_start_from_scratch(pair):
    assert "from weights pre-trained by none, with a head of zeros" in caption(load_run(pair))


def test_worlds_of_runs_that_started_differently_are_no_pair(toy_data, pair, tmp_path):
    scratch = load_run(run(NORMED, toy_data, tmp_path, seeds=(0, 1)))
    with pytest.raises(DataError, match="no pair, they differ in initial_weights"):
        curve_gap(load_run(pair).real[48], scratch.ideal)


# ---------------------------------------------------------------- refusals


def test_weights_of_another_architecture_are_refused_by_the_names_of_their_tensors(
    toy_data, init, tmp_path
):
    wider = replace(NORMED, model=MLP(width=9, depth=1, batch_norm=True))
    with pytest.raises(ConfigurationError, match=r"1\.weight is \(8, 192\), in the model \(9, 192"):
        run(wider, toy_data, tmp_path / "out", init)
    deeper = replace(NORMED, model=MLP(width=8, depth=2, batch_norm=True))
    with pytest.raises(ConfigurationError, match=r"4\.weight is missing; .* and 4 more"):
        run(deeper, toy_data, tmp_path / "out", init)
    shallower = replace(NORMED, model=MLP(width=8, depth=1, batch_norm=False))
    with pytest.raises(ConfigurationError, match=r"2\.bias is not in the model; .* and 2 more"):
        run(shallower, toy_data, tmp_path / "out", init)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"no such file; make one with `deep-bootstrap pre"
    ):
        read_pretrained(tmp_path / "none.safetensors")


def test_weights_without_a_card_are_refused(toy_data, tmp_path):
    path = fresh(NORMED, toy_data, tmp_path / "w.safetensors").path
    card_path(path).unlink()
    with pytest.raises(DataError, match=r"no card beside it \(w\.json\)"):
        read_pretrained(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_card_that_is_none_is_refused(toy_data, tmp_path, text):
    path = fresh(NORMED, toy_data, tmp_path / "w.safetensors").path
    card_path(path).write_text(text)
    with pytest.raises(DataError, match="not the card of a checkpoint"):
        read_pretrained(path)


def test_weights_with_another_bit_are_refused(toy_data, tmp_path):
    path = fresh(NORMED, toy_data, tmp_path / "w.safetensors").path
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(DataError, match="is corrupt: its sha256 is not the card's"):
        read_pretrained(path)


def test_a_card_of_a_later_schema_is_refused(toy_data, tmp_path):
    path = fresh(NORMED, toy_data, tmp_path / "w.safetensors").path
    card = json.loads(card_path(path).read_bytes())
    card_path(path).write_text(json.dumps(card | {"schema": 2}))
    with pytest.raises(DataError, match="schema 2 is newer than 1"):
        read_pretrained(path)


@pytest.mark.parametrize("split", ["test", "reference", "stream"])
def test_weights_that_have_seen_the_pairs_data_are_refused(toy_data, tmp_path, split):
    manifest = read_manifest(toy_data)
    data = about_data(manifest, split, 100)
    for known in (data | {"generator": {}}, data | {"shards_sha256": []}):  # either is enough
        seen = fresh(NORMED, toy_data, tmp_path / "w.safetensors", data=known)
        with pytest.raises(ConfigurationError, match=f"trained on the split {split} of toy-8px"):
            run(NORMED, toy_data, tmp_path / "out", seen)


def test_weights_of_the_pretrain_split_are_welcome(toy_data, tmp_path):
    data = about_data(read_manifest(toy_data), "pretrain", 100)
    fresh(NORMED, toy_data, tmp_path / "w.safetensors", data=data).check(
        NORMED, read_manifest(toy_data)
    )


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("text", SHAPED)
def test_the_head_is_the_layer_that_gives_the_classes(text):
    model = build(parse_spec(text, MODELS, "model"), (32, 32, 3))
    head = head_names(model)
    shapes = {name.rpartition(".")[2]: model.state_dict()[name].shape for name in head}
    assert shapes["weight"][0] == 10
    assert {*shapes} <= {"weight", "bias"}


def test_a_model_without_a_linear_layer_has_no_head():
    with pytest.raises(ConfigurationError, match="no linear layer"):
        head_names(nn.Sequential(nn.Conv2d(3, 10, 1)))


# ---------------------------------------------------------------- command line


@pytest.fixture
def plain(toy_data, tmp_path):
    """A checkpoint for the model of COMPARE."""
    return fresh(TINY, toy_data, tmp_path / "w.safetensors").path


def test_the_command_starts_both_worlds_from_a_checkpoint(
    deep_bootstrap, toy_data, plain, tmp_path
):
    words = (*COMPARE, "--data", toy_data, "--out", tmp_path / "out", "--n-samples", "48")
    code, out, err = deep_bootstrap(*words, "--init", plain, "--dry-run")
    assert (code, (tmp_path / "out").exists()) == (0, False), err
    assert "pre-trained by none" in err
    assert "training samples" in out
    assert deep_bootstrap(*words, "--init", plain)[0] == 0
    assert deep_bootstrap(*words)[0] == 0
    runs = [load_run(path) for path in (tmp_path / "out").iterdir()]
    assert sorted("init" in found.config for found in runs) == [False, True]
    code, out, _ = deep_bootstrap(*words, "--init", plain)
    assert (code, "nothing to do" in out) == (0, True)


def test_the_command_says_in_one_line_why_a_checkpoint_will_not_do(
    deep_bootstrap, toy_data, plain, tmp_path
):
    words = ("compare", "--preset", "smoke", "--n-steps", "12", *PLAIN)
    words += ("--data", toy_data, "--out", tmp_path / "out")
    code, _, err = deep_bootstrap(*words, "--init", plain)
    last = err.splitlines()[-1]
    assert (
        code,
        last.startswith(f"deep-bootstrap: {plain} (mlp(width=8, depth=1)) does not fit the"),
    ) == (2, True)
    plain.write_bytes(b"")
    code, _, err = deep_bootstrap(*words, "--init", plain)
    assert (code, "is corrupt" in err.splitlines()[-1]) == (3, True)
    assert deep_bootstrap(*words, "--init", tmp_path / "none")[0] == 2


@pytest.mark.long
def test_two_processes_start_from_the_checkpoint_that_the_first_one_read(toy_data, tmp_path):
    recipe = replace(TINY, model=PreActResNet18(width=4))
    path = fresh(recipe, toy_data, tmp_path / "w.safetensors").path
    words = (*COMPARE, "--model", "preresnet18(width=4)", "--data", toy_data, "--init", path)
    words += ("--n-samples", "48", "--out", tmp_path / "two")
    result = torchrun(2, "-m", "bootstrap", *words, "--device", "cpu", check=False)
    assert result.returncode == 0, result.stderr
    alone = run_pair(
        *(recipe, toy_data, tmp_path / "one"),
        **{"n_samples": (48,), "flags": FLAGS, "init": read_pretrained(path)},
    )
    found = [load_run(next((tmp_path / "two").iterdir())), load_run(alone)]
    np.testing.assert_allclose(found[0].ideal.test_loss, found[1].ideal.test_loss, atol=1e-4)
