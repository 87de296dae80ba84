"""A run folder that may not be written to, is reached by a link, or lies under a clock set back."""

import builtins
import errno
import io
import os
import time
from dataclasses import replace

import pytest
from test_paired import FLAGS, content, stop_after
from tiny_pair import COMPARE, TINY

from bootstrap.errors import Interrupted
from bootstrap.pair import run_pair

WRITES = ("mkdir", "link", "rename", "replace", "unlink", "chmod")
REFUSED = [errno.EROFS, errno.EACCES]


def refuse_writes(patch, folder, number):
    """Nothing below `folder` may be written any more; tests may run as root, so it is simulated."""

    def refuse(path):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(str(folder)):
            raise OSError(number, os.strerror(number), os.fspath(path))

    def guarded(original):
        def operation(path, *args, **kwargs):
            refuse(path)
            return original(path, *args, **kwargs)

        return operation

    def guarded_open(original, is_write):
        def operation(path, *args, **kwargs):
            if is_write(*args):
                refuse(path)
            return original(path, *args, **kwargs)

        return operation

    for name in WRITES:
        patch.setattr(os, name, guarded(getattr(os, name)))
    writing = os.O_WRONLY | os.O_RDWR
    patch.setattr(os, "open", guarded_open(os.open, lambda flags, *_: flags & writing))
    patch.setattr(
        io, "open", guarded_open(builtins.open, lambda mode="r", *_: set(mode) & set("wax+"))
    )


def words(data, out):
    return (*COMPARE, "--n-samples", "48", "--data", data, "--out", out)


def assert_one_line(err, path, number):
    """The last line names path, reason and remedy; nothing suggests a bug."""
    assert "a bug?" not in err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"deep-bootstrap: {path}")
    assert f"{os.strerror(number)} (errno {number}); allow it or choose another folder" in last


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
def test_a_folder_for_runs_that_may_not_be_made_exits_2(
    toy_data, tmp_path, monkeypatch, deep_bootstrap, number
):
    refuse_writes(monkeypatch, tmp_path, number)
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path / "runs"))
    assert code == 2
    assert_one_line(err, tmp_path / "runs" / "smoke-", number)
    assert not (tmp_path / "runs").exists()


def test_a_folder_for_runs_that_is_a_file_exits_2(toy_data, tmp_path, deep_bootstrap):
    (tmp_path / "runs").write_text("mine")
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path / "runs"))
    assert code == 2
    assert "a bug?" not in err
    assert f"{tmp_path / 'runs'}" in err.splitlines()[-1]


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
def test_a_finished_run_that_may_not_be_written_to_exits_2_and_stays_as_it_is(
    toy_data, tmp_path, monkeypatch, deep_bootstrap, number
):
    assert deep_bootstrap(*words(toy_data, tmp_path))[0] == 0
    (folder,) = tmp_path.iterdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refuse_writes(monkeypatch, tmp_path, number)
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path))
    assert code == 2
    assert_one_line(err, folder, number)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
def test_a_folder_that_becomes_read_only_while_training_exits_75_and_the_same_command_goes_on(
    toy_data, tmp_path, monkeypatch, deep_bootstrap, number
):
    out = tmp_path / "runs"
    with monkeypatch.context() as patch:
        from bootstrap.progress import Progress

        def on_record(self, seed, world, record):
            if world == "real-n48" and record.step == 7:
                refuse_writes(patch, out, number)

        patch.setattr("time.sleep", lambda pause_s: None)  # it is tried again after some seconds
        patch.setattr(Progress, "on_record", on_record)
        code, _, err = deep_bootstrap(*words(toy_data, out))
    assert code == 75
    (folder,) = out.iterdir()
    assert_one_line(err, folder, number)
    assert deep_bootstrap(*words(toy_data, out))[0] == 0
    assert deep_bootstrap(*words(toy_data, tmp_path / "whole"))[0] == 0
    (whole,) = (tmp_path / "whole").iterdir()
    assert content(folder) == content(whole)


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
@pytest.mark.usefixtures("no_figure")
def test_plotting_into_a_folder_that_may_not_be_written_to_says_so(
    toy_data, tmp_path, monkeypatch, deep_bootstrap, number
):
    folder = run_pair(TINY, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
    refuse_writes(monkeypatch, tmp_path, number)
    code, _, err = deep_bootstrap("plot", tmp_path)
    assert code == 75
    assert_one_line(err, folder / "summary.json", number)


@pytest.mark.usefixtures("no_figure")
def test_a_folder_that_is_a_link_is_followed(toy_data, tmp_path):
    plain = run_pair(TINY, toy_data, tmp_path / "plain", n_samples=(48,), flags=FLAGS)
    (tmp_path / "target" / "run").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "target")
    (tmp_path / "target" / plain.name).symlink_to("run")  # and the run's own folder is one too
    with pytest.raises(Interrupted):
        run_pair(
            *(TINY, toy_data, tmp_path / "runs"),
            n_samples=(48,),
            flags=FLAGS,
            control=stop_after(5),
        )
    folder = run_pair(TINY, toy_data, tmp_path / "runs", n_samples=(48,), flags=FLAGS)
    assert folder == tmp_path / "runs" / plain.name
    assert content(tmp_path / "target" / "run") == content(plain)


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("n_events", [4, 18])
def test_a_clock_that_is_set_back_changes_nothing(toy_data, tmp_path, monkeypatch, n_events):
    plain = run_pair(TINY, toy_data, tmp_path / "plain", n_samples=(48,), flags=FLAGS)
    out, a_year_s = tmp_path / "runs", 365 * 86_400
    control = replace(stop_after(n_events), checkpoint_every_s=0.0)
    with pytest.raises(Interrupted):
        run_pair(TINY, toy_data, out, n_samples=(48,), flags=FLAGS, control=control)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for age_s, path in enumerate(files):  # the later its name, the older it now is
        os.utime(path, (a_year_s - age_s, a_year_s - age_s))
    for name in ("time", "monotonic", "perf_counter"):
        now = getattr(time, name)
        monkeypatch.setattr(time, name, lambda now=now: now() - a_year_s)
    folder = run_pair(TINY, toy_data, out, n_samples=(48,), flags=FLAGS)
    assert content(folder) == content(plain)
