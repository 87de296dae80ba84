"""Whichever I/O operation of train-generator fails, it goes on to the same weights."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from test_commands import FLAGS, TINY, parts  # noqa: F401
from test_disk import FailingDisk

from bootstrap.checkpoint import checkpoint_steps, read_checkpoint
from bootstrap.errors import BootstrapError, Interrupted
from generators.commands.train_generator import TrainGeneratorOptions, run_train_generator

pytestmark = pytest.mark.long
RECIPE = replace(TINY, n_images_seen=3 * TINY.batch_size)


@pytest.fixture
def fit(parts, monkeypatch):  # noqa: F811
    """Fits up to `until_step`, and draws nothing: the grids are not what fails."""
    blank = torch.zeros(100, 3, 8, 8)
    monkeypatch.setattr("generators.commands.train_generator.solve", lambda *_: blank)
    monkeypatch.setattr("time.sleep", lambda pause_s: None)  # between two tries
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(work, until_step=RECIPE.n_steps):
        n_asked = iter(range(10_000))
        options = TrainGeneratorOptions(images=parts, work=work, recipe=RECIPE)
        list(run_train_generator(options, FLAGS, lambda: next(n_asked) >= until_step))

    return run


def fit_with_failing(n, fit, work, patch):
    """Stop after a step, go on to the end, with the n-th operation failing somewhere."""
    disk = FailingDisk(work, n)
    disk.install(patch)
    for until_step in (1, RECIPE.n_steps):
        try:
            fit(work, until_step)
        except Interrupted as error:
            if disk.failed:
                return disk.failed, error
        except (OSError, BootstrapError) as error:
            return disk.failed, error
    return disk.failed, None


def tensors(work):
    step = checkpoint_steps(work, "denoiser")[0]
    return read_checkpoint(work, "denoiser", step)[0]


def test_whichever_operation_fails_the_weights_are_the_same(fit, tmp_path, monkeypatch):
    fit(tmp_path / "whole")
    whole, failures = tensors(tmp_path / "whole"), []
    for n in range(1, 1_000):
        work = tmp_path / str(n)
        with monkeypatch.context() as patch:
            failed, error = fit_with_failing(n, fit, work, patch)
        if failed is None:
            break
        failures.append(failed)
        if isinstance(error, OSError) or (error and not isinstance(error, Interrupted)):
            assert str(work) in str(error)
            assert f"rrno {errno.EIO}" in str(error)
        for step in checkpoint_steps(work, "denoiser"):
            assert read_checkpoint(work, "denoiser", step) is not None
        fit(work)
        found = tensors(work)
        assert found.keys() == whole.keys()
        assert not [name for name in whole if not torch.equal(found[name], whole[name])]
        assert failed == "unlink" or not list(work.rglob("*.tmp-*"))
    assert failed is None
    print(f"{len(failures)} operations")
    assert {"open", "write", "flush", "fsync", "replace", "read"} <= set(failures)
