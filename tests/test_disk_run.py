"""Whichever I/O operation of a pair fails, no file is torn, and running it again ends the same."""

import errno
import io
import json

import pytest
from test_disk import FailingDisk, FailingFile
from test_paired import FLAGS, content
from tiny_pair import TINY

from bootstrap.checkpoint import checkpoint_steps, read_checkpoint
from bootstrap.errors import BootstrapError
from bootstrap.forks import Control
from bootstrap.pair import run_pair
from bootstrap.runlog import load_run, read_rows

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_figure")]
RECIPE = TINY.from_json({**TINY.to_json(), "n_steps": 8})


class FailingRows(FailingDisk):
    """Fails the writing of rows too, halfway."""

    def install(self, patch):
        super().install(patch)
        opened = io.open  # as patched: opening may fail

        def rows(path, mode="r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            return FailingFile(self, file) if mode == "ab" else file

        patch.setattr(io, "open", rows)


def run(data, out, **options):
    return run_pair(RECIPE, data, out, n_samples=(32,), flags=FLAGS, **options)


def run_with_failing(n, data, out, patch):
    """Run with the n-th operation failing; what failed, and the error if there was one."""
    disk = FailingRows(out, n)
    disk.install(patch)
    try:
        run(data, out, control=Control(checkpoint_every_s=0.0))
    except (OSError, BootstrapError) as error:
        return disk.failed, error
    return disk.failed, None


def assert_nothing_torn(out, failed):
    """Whatever is there can be read; of rows, all but a last line that was cut off."""
    for path in out.rglob("*.json"):
        json.loads(path.read_bytes())
    for path in out.rglob("*.jsonl"):
        assert [row["step"] for row in read_rows(path)] == list(range(len(read_rows(path))))
    for folder in out.glob("*/seed-0/checkpoints"):
        for name in ("trunk", "fork", "real-n32"):
            for step in checkpoint_steps(folder, name):
                assert read_checkpoint(folder, name, step) is not None
    assert failed == "unlink" or not list(out.rglob("*.tmp-*"))


def test_whichever_operation_fails_a_pair_ends_as_it_would(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda pause_s: None)  # between two tries
    monkeypatch.setattr("bootstrap.plan.describe_environment", lambda flags: {"packages": {}})
    monkeypatch.setattr("bootstrap.plan.version_changes", lambda before, now: [])
    monkeypatch.setattr("bootstrap.pair.check_used_shards", lambda *_, **__: None)
    whole, failures, silent = content(run(toy_data, tmp_path / "whole")), [], []
    for n in range(1, 2_000):
        out = tmp_path / str(n)
        with monkeypatch.context() as patch:
            failed, error = run_with_failing(n, toy_data, out, patch)
        if failed is None:
            break
        failures.append(failed)
        if error is None:  # tried again, or done without
            silent.append(failed)
            (folder,) = out.iterdir()
            assert content(folder) == whole
            assert load_run(folder).status == "complete"
        else:
            assert str(out) in str(error)
            assert f"rrno {errno.EIO}" in str(error)
        if out.exists():
            assert_nothing_torn(out, failed)
        assert content(run(toy_data, out)) == whole
    assert failed is None
    print(f"{len(failures)} operations, {len(silent)} of them without an error")
    assert {"open", "write", "flush", "fsync", "unlink", "replace", "read"} <= set(failures)
