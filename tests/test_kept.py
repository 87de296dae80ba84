"""What a pair keeps on request: scores per test image and weights, whatever stops it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_paired import FLAGS, content, stop_after
from tiny_pair import COMPARE, TINY

from bootstrap.batch import Batch, Normalisation
from bootstrap.errors import ConfigurationError, DataError, Interrupted, StorageError
from bootstrap.evaluate import evaluate
from bootstrap.forks import Control
from bootstrap.image_results import read_results
from bootstrap.keep import AtErrors, Evenly, Keep
from bootstrap.kept import load_kept
from bootstrap.models import MODELS
from bootstrap.pair import run_pair
from bootstrap.pool import Pool
from bootstrap.recipe import evaluation_grid
from bootstrap.runlog import load_run
from bootstrap.spec import parse_spec
from bootstrap.verify_run import verify_run

pytestmark = pytest.mark.usefixtures("no_figure", "no_git")
N = (48, 96)
WORLDS = ("ideal", "real-n48", "real-n96")
KEEP = Keep(test_results=True, checkpoints=Evenly(n=4))  # steps 3, 6, 9, 12; forks at 3 and 6
LEVELS = (0.9, 0.85, 0.8, 0.75, 0.7, 0.6)


def run_tiny(data, out, recipe=TINY, n_samples=N, keep=KEEP, **options):
    return run_pair(recipe, data, out, n_samples=n_samples, flags=FLAGS, keep=keep, **options)


@pytest.fixture
def no_git(monkeypatch):
    monkeypatch.setattr("bootstrap.environment.git_revision", lambda: "unknown")  # to be quick


@pytest.fixture(scope="module")
def folder(toy_data, tmp_path_factory):
    """One finished pair that the tests read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return run_tiny(toy_data, tmp_path_factory.mktemp("kept"))


def kept_bytes(folder):
    """Everything that is kept on request, byte for byte."""
    paths = [*folder.glob("seed-*/*.npz"), *folder.glob("seed-*/kept/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("world", WORLDS)
def test_there_is_a_row_for_every_evaluation(folder, world):
    run = load_run(folder)
    assert run.test_results(0, world).step.tolist() == run.steps.tolist()


@pytest.mark.parametrize("world", WORLDS)
def test_the_correct_bits_give_the_error_of_the_record(folder, world):
    run, results = load_run(folder), load_run(folder).test_results(0, world)
    right = results.correct.sum(axis=1) / results.n_scored
    np.testing.assert_allclose(1 - right, run.curves(world).test_error[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_the_probabilities_give_the_soft_error_of_the_record(folder, world):
    run, results = load_run(folder), load_run(folder).test_results(0, world)
    probability = np.nanmean(results.probability.astype(np.float64), axis=1)
    np.testing.assert_allclose(1 - probability, run.curves(world).test_soft_error[0], atol=5e-4)


def test_images_that_an_evaluation_left_out_are_nan(folder):
    results = load_run(folder).test_results(0, "ideal")
    assert results.probability.shape == results.correct.shape == (13, 512)
    assert results.probability.dtype == np.float16
    assert results.n_scored.tolist() == [64] * 12 + [512]
    assert np.isnan(results.probability[:-1, 64:]).all()
    assert np.isfinite(results.probability[:-1, :64]).all()
    assert np.isfinite(results.probability[-1]).all()


def test_a_real_world_has_the_prefix_and_then_its_own(folder):
    ideal, real = (load_run(folder).test_results(0, world) for world in ("ideal", "real-n48"))
    np.testing.assert_array_equal(real.probability[:4, :64], ideal.probability[:4, :64])
    assert (real.probability[5:12, :64] != ideal.probability[5:12, :64]).any()


def test_keeping_changes_no_bit_of_a_run_and_not_its_name(folder, toy_data, tmp_path):
    plain = run_tiny(toy_data, tmp_path, keep=Keep())
    assert content(plain) == content(folder)
    assert plain.name == folder.name
    assert kept_bytes(plain) == {}


@pytest.mark.parametrize("every_s", [0.0, 60.0])
@pytest.mark.parametrize("n_events", [0, 4, 13, 15, 20])
def test_a_stopped_pair_keeps_the_same_bytes(folder, toy_data, tmp_path, n_events, every_s):
    control = replace(stop_after(n_events), checkpoint_every_s=every_s)
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, control=control)
    assert kept_bytes(run_tiny(toy_data, tmp_path)) == kept_bytes(folder)


def fall_after(n_events):
    """A control that lets the program fall at a record, between two saved states."""
    seen = []

    def on_record(*event):
        seen.append(event)
        if len(seen) > n_events:
            raise KeyError("fell")

    return Control(on_record=on_record, checkpoint_every_s=0.0)


@pytest.mark.parametrize("n_events", [0, 6, 14, 21])
def test_a_pair_that_fell_between_two_states_keeps_the_same_bytes(
    folder, toy_data, tmp_path, monkeypatch, n_events
):
    def leave(keeping, kind, *error):
        if kind is None:  # else as if killed
            keeping.save()

    with monkeypatch.context() as patch:
        patch.setattr("bootstrap.kept.Keeping.__exit__", leave)
        with pytest.raises(KeyError):
            run_tiny(toy_data, tmp_path, control=fall_after(n_events))
    assert kept_bytes(run_tiny(toy_data, tmp_path)) == kept_bytes(folder)


@pytest.mark.parametrize("n_events", [7, 17])
def test_a_stopped_pair_keeps_no_error_level_twice(toy_data, tmp_path, n_events):
    keep = Keep(checkpoints=AtErrors(levels=LEVELS))
    whole = kept_bytes(run_tiny(toy_data, tmp_path / "whole", keep=keep))
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path / "stopped", keep=keep, control=stop_after(n_events))
    assert len(whole) > 4
    assert kept_bytes(run_tiny(toy_data, tmp_path / "stopped", keep=keep)) == whole


def test_what_was_kept_beyond_the_state_that_a_run_goes_on_from_is_made_again(
    folder, toy_data, tmp_path
):
    rule = AtErrors(levels=LEVELS)
    whole = kept_bytes(run_tiny(toy_data, tmp_path / "whole", keep=Keep(checkpoints=rule)))
    control = replace(stop_after(9), checkpoint_every_s=0.0)
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, keep=Keep(checkpoints=rule), control=control)
    (run,) = tmp_path.glob("custom-*/seed-0")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "kept" / "ideal-11.safetensors").write_bytes(b"of another time")
    assert kept_bytes(run_tiny(toy_data, tmp_path, keep=Keep(checkpoints=rule))) == whole


def test_a_real_world_that_is_trained_from_step_0_keeps_the_same(folder, toy_data, tmp_path):
    alone = run_tiny(toy_data, tmp_path, control=Control(share_prefix=False))
    assert kept_bytes(alone) == kept_bytes(folder)


def test_a_run_goes_on_with_what_it_was_begun_with(folder, toy_data, tmp_path):
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, control=stop_after(5))
    assert kept_bytes(run_tiny(toy_data, tmp_path, keep=Keep())) == kept_bytes(folder)


def test_a_finished_run_without_is_refused_and_made_again_with_overwrite(
    folder, toy_data, tmp_path
):
    plain = run_tiny(toy_data, tmp_path, keep=Keep())
    before = {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()}
    with pytest.raises(ConfigurationError, match="begun without --save-test-results"):
        run_tiny(toy_data, tmp_path)
    assert {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()} == before
    assert kept_bytes(run_tiny(toy_data, tmp_path, overwrite=True)) == kept_bytes(folder)


def test_an_n_asked_for_later_gives_the_ideal_world_its_evaluation_too(toy_data, tmp_path):
    recipe = replace(TINY, n_steps=120)
    assert 45 not in evaluation_grid(120)
    run_tiny(toy_data, tmp_path, recipe, (48,))
    folder = run_tiny(toy_data, tmp_path, recipe, (45 * 16,))
    at_once = run_tiny(toy_data, tmp_path / "at once", recipe, (48, 45 * 16))
    ideal = "seed-0/ideal-test.npz"
    assert 45 in read_results(folder / ideal).step
    assert (folder / ideal).read_bytes() == (at_once / ideal).read_bytes()
    assert kept_bytes(folder).keys() == kept_bytes(at_once).keys()


@pytest.mark.parametrize("what", ["missing", "other evaluations", "nonsense"])
def test_results_that_lack_what_the_records_have_stop_a_run(toy_data, tmp_path, what):
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, control=stop_after(5))
    (path,) = tmp_path.glob("*/seed-0/ideal-test.npz")
    if what == "missing":
        path.unlink()
    elif what == "nonsense":
        path.write_bytes(b"PK\x03\x04nonsense")
    else:
        arrays = dict(np.load(path))
        np.savez(path, **{name: array[1:] for name, array in arrays.items()})
    with pytest.raises(DataError, match=r"ideal-test\.npz: .*--(overwrite|save-test-results)"):
        run_tiny(toy_data, tmp_path)


def test_results_that_were_not_saved_are_a_data_error_that_names_the_option(toy_data, tmp_path):
    run = load_run(run_tiny(toy_data, tmp_path, n_samples=(48,), keep=Keep()))
    with pytest.raises(DataError, match="begun with --save-test-results"):
        run.test_results(0, "ideal")


def test_verify_finds_nothing_wrong_with_a_run_that_keeps(folder):
    assert verify_run(folder).problems == ()


def test_verify_finds_results_that_are_not_those_of_the_records(toy_data, tmp_path):
    folder = run_tiny(toy_data, tmp_path, n_samples=(48,))
    path = folder / "seed-0" / "ideal-test.npz"
    arrays = dict(np.load(path))
    arrays["correct"][5, 7] ^= True
    np.savez(path, **arrays)
    (problem,) = verify_run(folder).problems
    assert problem.file == "seed-0/ideal-test.npz"
    assert "step 5" in problem.why


@pytest.mark.parametrize("world", WORLDS)
def test_kept_weights_rebuild_the_model_that_made_the_record(folder, toy_data, world):
    run, pool = load_run(folder), Pool(toy_data, "test")
    test = Batch.from_columns(pool.first(TINY.n_test_curve), torch.device("cpu"))
    error = dict(zip(run.steps.tolist(), run.curves(world).test_error[0], strict=True))
    kept = run.kept(0, world)
    assert list(kept) == [3, 6, 9, 12]
    for step in (3, 6, 9):  # the last evaluation is on more images
        weights, meta = load_kept(kept[step])
        model = parse_spec(meta["model"], MODELS, "model").build(
            tuple(meta["image_shape"]), meta["n_classes"]
        )
        model.load_state_dict(weights)
        normalise = Normalisation.of(meta["mean"], meta["deviation"], torch.device("cpu"))
        found = evaluate(model, test, normalise, FLAGS).mean().error
        assert found == error[step] == meta["test_error"]
        assert (meta["step"], meta["seed"], meta["run"]) == (step, 0, folder.name)
    pool.close()


def test_the_weights_kept_at_the_last_step_are_the_final_ones(folder):
    for world in WORLDS:
        weights, _ = load_kept(load_run(folder).kept(0, world)[12])
        saved = load_file(folder / "seed-0" / f"{world}.safetensors")
        assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_what_is_kept_up_to_the_first_reuse_is_the_ideal_worlds(folder):
    names = sorted(path.name for path in (folder / "seed-0" / "kept").iterdir())
    assert names == sorted(
        [f"ideal-{step}.safetensors" for step in (3, 6, 9, 12)]
        + [f"real-n48-{step}.safetensors" for step in (6, 9, 12)]
        + [f"real-n96-{step}.safetensors" for step in (9, 12)]
    )
    kept = load_run(folder).kept(0, "real-n96")
    assert [path.name for path in kept.values()][:3] == [
        *("ideal-3.safetensors", "ideal-6.safetensors", "real-n96-9.safetensors")
    ]


def test_error_levels_are_kept_in_each_world_where_its_records_first_reach_them(toy_data, tmp_path):
    recipe = replace(TINY, n_steps=40)
    keep = Keep(checkpoints=AtErrors(levels=LEVELS))
    run = load_run(run_tiny(toy_data, tmp_path, recipe, (48,), keep))
    for world in ("ideal", "real-n48"):
        errors = run.curves(world).test_error[0]
        first = {
            int(run.steps[(errors <= level).argmax()]) for level in LEVELS if min(errors) <= level
        }
        assert len(first) > 2
        assert {*run.kept(0, world)} == first


def test_a_disk_that_is_too_small_is_told_before_anything_is_trained(
    toy_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("bootstrap.files.free_bytes", lambda path: 10_000)
    with pytest.raises(StorageError, match="10,000 are free; make room"):
        run_tiny(toy_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_kept_checkpoint_is_a_data_error(folder, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_kept(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="not a kept checkpoint"):
        load_kept(folder / "seed-0" / "ideal.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="not a kept checkpoint"):
        load_kept(tmp_path / "short.safetensors")


def test_the_command_line_keeps_what_it_is_told_to(deep_bootstrap, toy_data, tmp_path):
    words = (*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path)
    keep = ("--save-test-results", "--keep-checkpoints", "evenly(n=2)")
    assert deep_bootstrap(*words)[0] == 0
    code, _, err = deep_bootstrap(*words, *keep)
    assert code == 2
    assert err.splitlines()[-1].startswith("deep-bootstrap: ")
    assert "begun without --save-test-results" in err
    assert deep_bootstrap(*words, *keep, "--overwrite")[0] == 0
    (folder,) = tmp_path.iterdir()
    assert load_run(folder).test_results(0, "real-n48").correct.any()
    assert list(load_run(folder).kept(0, "real-n48")) == [6, 12]
    pair = json.loads((folder / "pair.json").read_bytes())
    assert (pair["save_test_results"], pair["keep_checkpoints"]) == (True, "evenly(n=2)")
