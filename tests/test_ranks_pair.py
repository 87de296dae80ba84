"""A pair on several processes is the pair of one; batch norm over all of them or each its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks_child import FLAGS, RECIPE, N
from test_paired import content
from tiny_pair import COMPARE, TINY
from torch import nn

from bootstrap import execution
from bootstrap.batch_norm import GlobalBatchNorm, globalise_batch_norm, local_statistics
from bootstrap.errors import ConfigurationError
from bootstrap.execution import resolve_flags
from bootstrap.models import PreActResNet18
from bootstrap.pair import run_pair
from bootstrap.plan import run_name
from bootstrap.ranks import ALONE, joined
from bootstrap.runlog import load_run
from bootstrap.shards import read_manifest
from bootstrap.verify_run import verify_run

ROOT, CHILD = Path(__file__).parents[1], Path(__file__).with_name("ranks_child.py")
TWO = replace(FLAGS, ranks=2)


# ---------------------------------------------------------------- identity and refusals


def test_the_identity_of_one_process_is_what_it_was_before_there_were_several():
    known = {"device": "cpu", "precision": "fp32", "compiled": False, "n_threads": 1}
    assert FLAGS.to_json() == known
    assert TWO.to_json() == known | {"ranks": 2}


def test_the_number_of_processes_and_local_batch_norm_name_other_runs(toy_data):
    manifest = read_manifest(toy_data)
    kinds = (FLAGS, TWO, replace(TWO, bn="local"), replace(FLAGS, ranks=4))
    assert len({run_name("tiny", TINY, manifest, 2_048, flags) for flags in kinds}) == 4


def test_flags_of_several_processes_say_so():
    text = replace(TWO, bn="local").describe()
    assert text == "cpu, fp32, eager, 1 threads, 2 processes, local batch norm"


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(toy_data, tmp_path):
    flags = replace(FLAGS, ranks=3)
    with pytest.raises(ConfigurationError, match=r"16 does not divide among 3 .*a multiple of 3"):
        run_pair(TINY, toy_data, tmp_path / "out", n_samples=(48,), flags=flags)
    assert not (tmp_path / "out").exists()


def test_batch_norm_over_anything_else_is_refused(deep_bootstrap):
    code, _, err = deep_bootstrap(*COMPARE, "--bn", "some")
    assert code == 2
    assert "--bn some: use one of global, local" in err


def test_processes_on_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(execution, "n_cores", lambda: 8)
    assert resolve_flags("cpu").n_threads == 2
    assert resolve_flags("cpu", n_threads=8).n_threads == 8  # asked for: of each process


def test_a_process_without_torchrun_is_alone_with_its_flags():
    with joined(FLAGS, "local") as found:
        assert found == (ALONE, FLAGS)


# ---------------------------------------------------------------- batch norm


class Halves:
    """Stands in for the first of two ranks; the other one's statistics are given."""

    n = 2

    def __init__(self, others):
        self.others = others

    def stack(self, own):
        return torch.stack([own, self.others])


def norms(**options):
    """torch's layer and the global one, with the same parameters of no special values."""
    plain, model = (nn.BatchNorm2d(5, **options) for _ in range(2))
    with torch.no_grad():
        for p in (plain.weight, model.weight, plain.bias, model.bias):
            p.copy_(torch.linspace(0.5, 1.5, 5))
    globalise_batch_norm(nn.Sequential(model), ALONE)
    return plain, model


def activations():
    """Seven images of 3 px in five channels whose means are far from those of their halves."""
    x = torch.linspace(-1, 1, 7 * 5 * 9).sin_().reshape(7, 5, 3, 3).cos() * 3
    return x + torch.arange(7.0)[:, None, None, None]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_global_batch_norm_of_one_rank_is_that_of_torch(momentum):
    plain, ours = norms(momentum=momentum)
    found = []
    for layer in (plain, ours):
        x = activations().requires_grad_()
        for scale in (1, 2):
            y = layer(scale * x)
        y.square().mul(torch.arange(5.0)[:, None, None]).sum().backward()
        evaluated = layer.eval()(activations())
        found.append([y, x.grad, layer.weight.grad, layer.bias.grad, evaluated, *layer.buffers()])
    assert type(ours) is GlobalBatchNorm
    for theirs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_global_batch_norm_of_a_half_is_that_of_the_whole():
    x = activations()[:6]
    plain, ours = norms()
    rest = x[3:]
    ours.ranks = Halves(torch.stack(torch.var_mean(rest, (0, 2, 3), correction=0)))
    torch.testing.assert_close(ours(x[:3]), plain(x)[:3])
    for own, theirs in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(own, theirs)


def test_global_batch_norm_keeps_half_precision():
    _, ours = norms()
    assert ours(activations().bfloat16()).dtype == torch.bfloat16


def test_a_model_keeps_its_parameters_when_its_batch_norm_becomes_global():
    model = PreActResNet18(width=4).build((8, 8, 3), 10)
    before = dict(model.named_parameters()), list(model.state_dict())
    assert len(local_statistics(model)) == 2 * 16
    globalise_batch_norm(model, ALONE)
    assert local_statistics(model) == []
    assert (dict(model.named_parameters()), list(model.state_dict())) == before


class OwnBatchNorm(nn.BatchNorm2d):
    pass


def test_a_batch_norm_of_its_own_kind_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"0 is a OwnBatchNorm, .* use --bn local"):
        globalise_batch_norm(nn.Sequential(OwnBatchNorm(3)), ALONE)


# ---------------------------------------------------------------- two processes


def torchrun(n, *words, start=subprocess.run, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return start(
        [*command, f"--nproc-per-node={n}", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


def only_run(folder):
    (path,) = folder.iterdir()
    return load_run(path)


@pytest.fixture(scope="module")
def alone(toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return load_run(run_pair(RECIPE, toy_data, folder, n_samples=N, flags=FLAGS))


@pytest.fixture(scope="module")
def two(toy_data, tmp_path_factory):
    """A folder with all that two ranks did in tests/ranks_child.py."""
    folder = tmp_path_factory.mktemp("two")
    result = torchrun(2, CHILD, toy_data, folder, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def seen(two):
    """What the first and the second rank saw."""
    return tuple(json.loads((two / f"{rank}.json").read_bytes()) for rank in (0, 1))


def numbers(run, name, key):
    return np.array([row[key] for row in run.rows(0, name)])


@pytest.mark.long
@pytest.mark.parametrize("name", ["ideal", "real-n1", "real-n200"])
def test_two_ranks_see_the_samples_of_one(alone, two, name):
    run = only_run(two / "global")
    for key in ("step", "ids_hash", "samples_seen", "unique_samples_seen", "lr"):
        assert (numbers(run, name, key) == numbers(alone, name, key)).all()


@pytest.mark.long
@pytest.mark.parametrize("name", ["ideal", "real-n1", "real-n200"])
def test_two_ranks_learn_what_one_does(alone, two, name):
    run, every_step = only_run(two / "global"), f"{name}-every-step"
    train = () if name == "ideal" else ("train_",)
    for prefix in ("test_", *train):
        for score, tolerance in (("loss", 3e-4), ("soft_error", 3e-4), ("error", 0.02)):
            found, known = (numbers(r, name, prefix + score) for r in (run, alone))
            np.testing.assert_allclose(found, known, atol=tolerance, rtol=tolerance)
    for key, tolerance in (("batch_loss", 3e-4), ("loss", 3e-4), ("batch_error", 0.04)):
        found, known = (numbers(r, every_step, key) for r in (run, alone))
        np.testing.assert_allclose(found, known, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(found[:2], known[:2], rtol=1e-4)


@pytest.mark.long
def test_local_batch_norm_is_another_run_that_learns_otherwise(alone, two):
    found, known = only_run(two / "local"), only_run(two / "global")
    assert found.name != known.name != alone.name
    assert found.config["identity"]["flags"]["bn"] == "local"
    local, one = (numbers(r, "ideal-every-step", "batch_loss") for r in (found, alone))
    assert abs(local - one).min() > 1e-4
    assert abs(local - one).max() > 1e-2


@pytest.mark.long
def test_all_ranks_have_the_same_state_after_every_step(seen):
    for kind in ("global states", "local states"):
        assert seen[0][kind] == seen[1][kind]
        assert len(set(seen[0][kind])) == 2


@pytest.mark.long
def test_two_ranks_stop_together_whoever_is_asked_and_go_on_to_the_same_records(two, seen):
    for rank in (0, 1):
        assert "Interrupted: " in seen[0][f"stopped by {rank}"]
        assert "trunk stopped at step" in seen[0][f"stopped by {rank}"]
    assert seen[0]["went on"] is None
    assert content(only_run(two / "stopped").path) == content(only_run(two / "global").path)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_two_ranks_together(two, seen):
    assert "NumericError: " in seen[0]["nan"]
    assert seen[1]["nan"] is None
    assert only_run(two / "nan").status == "failed"


@pytest.mark.long
def test_the_run_of_two_ranks_is_whole(two):
    run = only_run(two / "global")
    assert run.status == "complete"
    assert verify_run(run.path).problems == ()


def words(data, out, *more):
    return (*COMPARE, "--device", "cpu", "--n-samples", "48", "--data", data, "--out", out, *more)


@pytest.mark.long
def test_one_rank_of_torchrun_is_the_plain_command_to_the_bit(toy_data, tmp_path, deep_bootstrap):
    assert deep_bootstrap(*words(toy_data, tmp_path / "plain"))[0] == 0
    result = torchrun(1, "-m", "bootstrap", *words(toy_data, tmp_path / "one"), check=False)
    assert result.returncode == 0, result.stderr
    plain, one = (only_run(tmp_path / name) for name in ("plain", "one"))
    assert one.name == plain.name
    assert content(one.path) == content(plain.path)


@pytest.mark.long
def test_a_terminated_command_of_two_ranks_saves_once_and_says_so_once(toy_data, tmp_path):
    more = ("--n-steps", "100000", "--allow-reuse")
    command = ("-m", "bootstrap", *words(toy_data, tmp_path, *more))
    with torchrun(2, *command, start=subprocess.Popen) as running:
        try:
            while not list(tmp_path.glob("*/seed-0/checkpoints/fork-3.json")):
                assert running.poll() is None, running.communicate()[1]
                time.sleep(0.05)
            running.send_signal(signal.SIGTERM)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert err.count("trunk stopped at step") == 1
    assert "a bug?" not in err
    run = only_run(tmp_path)
    assert run.status == "partial"
    assert len(list(run.path.glob("seed-0/checkpoints/trunk-*.json"))) == 1


@pytest.mark.long
def test_two_ranks_refuse_with_one_line(toy_data, tmp_path):
    result = torchrun(
        *(2, "-m", "bootstrap"), *words(toy_data, tmp_path, "--batch-size", "15"), check=False
    )
    assert result.returncode != 0
    assert result.stderr.count("--batch-size 15 does not divide among 2 processes") == 1
    assert "a bug?" not in result.stderr
    assert list(tmp_path.iterdir()) == []
