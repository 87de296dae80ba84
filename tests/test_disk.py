"""A disk that fails or fills up: the old state or the new one, never a mix, and an error that says
where. Operations are failed one after the other, as SQLite's tests do.
"""

import builtins
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest
from test_verify import flip_byte
from test_write import SOURCE, all_bytes

from bootstrap.cli import COMMANDS
from bootstrap.errors import BootstrapError, ConfigurationError, StorageError
from bootstrap.files import check_space, file_sha256, publish, replace, storing
from bootstrap.shards import SPLIT_START, read_records
from bootstrap.verify import verify_data
from generators.importers import import_npz
from generators.write import generate

PATH_OPERATIONS = (
    "open", "link", "rename", "replace", "unlink", "mkdir", "chmod", "stat", "scandir", "listdir",
)  # fmt: skip


class FailingDisk:
    """Fails the n-th I/O operation below a folder with EIO; counts them in `n_done`."""

    def __init__(self, folder, n):
        self.folder, self.n, self.n_done, self.failed = str(folder), n, 0, None

    def step(self, name, path=None):
        self.n_done += 1
        if self.n_done == self.n:
            self.failed = name
            raise OSError(errno.EIO, "Input/output error", *([path] if path else []))

    def on_path(self, name, original):
        def operation(path, *args, **kwargs):
            text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
            if text.startswith(self.folder):
                self.step(name, text)
            return original(path, *args, **kwargs)

        return operation

    def fsync(self, handle):
        self.step("fsync")
        return self.original_fsync(handle)

    def fdopen(self, handle, mode):
        return FailingFile(self, self.original_fdopen(handle, mode))

    def install(self, monkeypatch):
        self.original_fsync, self.original_fdopen = os.fsync, os.fdopen
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "fdopen", self.fdopen)
        scratch = tempfile.TemporaryFile
        monkeypatch.setattr(
            tempfile, "TemporaryFile", lambda **options: FailingFile(self, scratch(**options))
        )
        for name in PATH_OPERATIONS:
            monkeypatch.setattr(os, name, self.on_path(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self.on_path("read", builtins.open))
        monkeypatch.setattr(h5py, "File", self.on_path("HDF5 open", h5py.File))


class FailingFile:
    """A file whose reads may fail, and whose writes may fail halfway."""

    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def read(self, n_bytes):
        self.disk.step("scratch read")
        return self.file.read(n_bytes)

    def write(self, content):
        content = bytes(content)
        self.file.write(content[: len(content) // 2])
        self.disk.step("write")
        self.file.write(content[len(content) // 2 :])

    def flush(self):
        self.disk.step("flush")
        self.file.flush()


def make_once_with_failing(n, folder, sizes, monkeypatch):
    """Generate with the n-th operation failing; what failed, and the error if there was one."""
    disk = FailingDisk(folder, n)
    with monkeypatch.context() as patched:
        disk.install(patched)
        try:
            generate(SOURCE, folder, sizes)
        except BootstrapError as error:
            return disk.failed, error
    return disk.failed, None


def files_of(folder):
    return {k: v for k, v in all_bytes(folder).items() if ".tmp-" not in k}


@pytest.fixture
def quick_disk(monkeypatch):
    """Nothing waits for the real disk: most of the time of hundreds of tries is that."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("old", [{}, {"reference": 3}], ids=["from nothing", "extending"])
def test_whichever_operation_fails_a_data_set_is_old_or_new(old, tmp_path, monkeypatch, quick_disk):
    sizes = {"reference": 5, "test": 4}
    if old:
        generate(SOURCE, tmp_path / "old", old)
        shutil.copytree(tmp_path / "old", tmp_path / "new")
    generate(SOURCE, tmp_path / "new", sizes)
    new, before, failures = files_of(tmp_path / "new"), {}, []
    for n in range(1, 1_000):
        folder = tmp_path / f"{n}"
        if old:
            shutil.copytree(tmp_path / "old", folder)
            before = files_of(folder)
        failed, error = make_once_with_failing(n, folder, sizes, monkeypatch)
        if failed is None:
            break
        failures.append(failed)
        if error is not None:
            assert str(folder) in str(error)
            assert f"rrno {errno.EIO}" in str(error)
        assert_old_or_new(folder, before, new)
        assert failed == "unlink" or not list(folder.glob("*.tmp-*"))
        generate(SOURCE, folder, sizes)
        assert files_of(folder) == new
        assert verify_data(folder).problems == ()
    assert failed is None
    assert files_of(folder) == new
    assert {"open", "write", "fsync", "link", "unlink", "replace", "read"} <= set(failures)


def assert_old_or_new(folder, before, new):
    """Every file has its old bytes or its new ones, and a record only exists beside its shard."""
    found = files_of(folder) if folder.exists() else {}
    assert found.keys() >= before.keys()
    for name, content in found.items():
        assert content in (before.get(name), new[name])
        assert name == "manifest.json" or name.replace(".json", ".h5") in found
    manifest = found.get("manifest.json")
    assert manifest == before.get("manifest.json") or found == new


def write_parts(folder):
    """Noise of 2 grey pixels a side: a block to train on and some more, ten to test."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train-0", 1_034), ("test", 10)):
        images = rng.integers(0, 256, (n, 2, 2, 1), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", X=images, Y=np.arange(n) % 2)


def import_once(root):
    return import_npz(root / "parts", root / "data", name="noise")


def test_whichever_operation_fails_an_import_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, quick_disk
):
    write_parts(tmp_path / "0" / "parts")
    import_once(tmp_path / "0")
    new, failures = files_of(tmp_path / "0" / "data"), []
    for n in range(1, 1_000):
        root = tmp_path / f"{n}"
        shutil.copytree(tmp_path / "0" / "parts", root / "parts")
        disk, error = FailingDisk(root, n), None
        with monkeypatch.context() as patched:
            disk.install(patched)
            try:
                import_once(root)
            except BootstrapError as caught:
                error = caught
        if disk.failed is None:
            break
        failures.append(disk.failed)
        if error is not None:
            assert str(root) in str(error)
            assert f"rrno {errno.EIO}" in str(error)
        found = files_of(root / "data") if (root / "data").exists() else {}
        assert found.items() <= new.items()
        names = {name.replace(".json", ".h5") for name in found if name != "manifest.json"}
        assert names <= found.keys()  # no record without its shard
        assert "manifest.json" not in found or len(found) >= len(new) - 2  # the card may be missing
        import_once(root)
        assert files_of(root / "data") == new
        shutil.rmtree(root)
    assert files_of(root / "data") == new
    expected = {"open", "write", "scratch read", "fsync", "link", "unlink", "replace", "read"}
    assert expected <= set(failures)


def test_whichever_operation_fails_a_repair_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, quick_disk, deep_bootstrap
):
    generate(SOURCE, tmp_path / "0", {"reference": 5, "test": 4})
    new, failures = files_of(tmp_path / "0"), []
    flip_byte(tmp_path / "0" / "reference-00000.h5", -10)
    broken = files_of(tmp_path / "0")
    for n in range(1, 1_000):
        folder = shutil.copytree(tmp_path / "0", tmp_path / f"{n}")
        disk = FailingDisk(folder, n)
        with monkeypatch.context() as patched:
            disk.install(patched)
            code, _, err = deep_bootstrap("verify", folder, "--repair")
        if disk.failed is None:
            break
        failures.append(disk.failed)
        if code != 0:
            assert code in (3, 75), err
            assert str(folder) in err
            assert f"rrno {errno.EIO}" in err
            assert "a bug?" not in err
        for name, content in files_of(folder).items():
            assert content in (broken[name], new[name])
        assert {"test-00000.h5", "test-00000.json", "manifest.json"} <= files_of(folder).keys()
        assert deep_bootstrap("verify", folder, "--repair")[0] == 0
        assert files_of(folder) == new
        shutil.rmtree(folder)
    assert code == 0
    assert files_of(folder) == new
    assert {"open", "write", "fsync", "link", "unlink", "read", "HDF5 open"} <= set(failures)


def test_a_whole_shard_that_cannot_be_opened_is_not_deleted(tmp_path, monkeypatch):
    generate(SOURCE, tmp_path / "data", {"reference": 5, "test": 4})
    before = files_of(tmp_path / "data")

    def fail(path, *_, **__):
        raise OSError(errno.EIO, "Input/output error", os.fspath(path))

    with monkeypatch.context() as patched:
        patched.setattr(h5py, "File", fail)
        with pytest.raises(BootstrapError, match=r"test-00000\.h5.*Errno 5"):
            verify_data(tmp_path / "data", repair=True)
    assert files_of(tmp_path / "data") == before


@pytest.mark.parametrize(
    ("number", "expected", "remedy"),
    [(errno.EACCES, 2, "allow it or choose another folder"), (errno.EIO, 75, "mend the disk")],
)
def test_a_disk_error_that_nothing_explains_is_no_bug_to_the_user(
    deep_bootstrap, monkeypatch, number, expected, remedy
):
    def fail(argv):
        raise OSError(number, os.strerror(number), "/results/pair.json")

    monkeypatch.setitem(COMMANDS, "doctor", fail)
    code, _, err = deep_bootstrap("doctor")
    assert code == expected
    what = f"deep-bootstrap: /results/pair.json: {os.strerror(number)} (errno {number})"
    assert err.startswith(what)
    assert remedy in err


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    """Or repair would take every shard for one without a record, and delete it."""
    generate(SOURCE, tmp_path / "data", {"reference": 5, "test": 4})
    before = files_of(tmp_path / "data")

    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", fail)
        patched.setattr(os, "scandir", fail)
        with pytest.raises(ConfigurationError, match="errno 13"):
            verify_data(tmp_path / "data", repair=True)
    assert files_of(tmp_path / "data") == before


@pytest.mark.parametrize("write", [publish, replace], ids=lambda f: f.__name__)
@pytest.mark.parametrize("operation", ["fsync", "fdopen", "chmod"])
def test_a_write_that_fails_says_path_errno_and_space(tmp_path, monkeypatch, write, operation):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bootstrap.files.free_bytes", lambda path: 5)
    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(StorageError) as caught:
        write(tmp_path / "a.h5", bytes(1_234))
    assert str(caught.value) == (
        f"{tmp_path / 'a.h5'}: cannot be written: No space left on device (errno 28); 1,234 bytes"
        " are needed, 5 are free; make room or mend the disk, then run the same command again"
    )
    assert caught.value.exit_code == 75
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_whose_last_step_fails_leaves_the_old_content_alone(tmp_path, monkeypatch):
    replace(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: os.stat(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="errno 2"):
        replace(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_error_that_says_all_is_not_wrapped_again(tmp_path):
    first = StorageError("first")
    with pytest.raises(StorageError) as caught, storing(tmp_path, 1):
        raise first
    assert caught.value is first


def test_space_is_that_of_the_disk_on_which_a_folder_will_be(tmp_path):
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match=rf"{1 << 60:,} bytes are needed, [\d,]+ are free"):
        check_space(tmp_path / "not" / "yet", 1 << 60)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path, deep_bootstrap, monkeypatch
):
    monkeypatch.setattr("bootstrap.files.free_bytes", lambda path: 1_000_000)
    words = ("--preset", "smoke", "--n", "4096", "--data", tmp_path / "toy")
    code, _, err = deep_bootstrap("generate", *words)
    assert code == 75
    assert "1,507,430 bytes are needed, 1,000,000 are free; make room" in err
    assert not (tmp_path / "toy").exists()


# A file may not grow beyond a limit: what a full disk or a quota is to a process


def run_limited(n_bytes, *words):
    """Exit code and stderr of a command whose files may have `n_bytes` (None: any size)."""

    def limit():
        if n_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    command = [sys.executable, "-m", "bootstrap", *map(str, words)]
    result = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False
    )
    return result.returncode, result.stderr


def assert_whole_and_without_leftovers(folder, *splits):
    assert not list(folder.rglob("*.tmp-*"))
    records = [record for split in SPLIT_START for record in read_records(folder, split)]
    assert tuple(record.split for record in records) == splits
    assert all(file_sha256(folder / r.name) == r.sha256 for r in records)
    assert {path.name for path in folder.glob("*.h5")} == {record.name for record in records}


@pytest.mark.long
def test_a_disk_that_fills_up_while_generating_ends_cleanly_and_goes_on(tmp_path):
    words = ("generate", "--preset", "smoke", "--n", "4096", "--data")
    assert run_limited(None, *words, tmp_path / "whole")[0] == 0
    code, err = run_limited(400_000, *words, tmp_path / "toy")
    assert code == 75
    assert "stream-00000.h5: cannot be written: File too large (errno 27); 8" in err
    assert "bytes are needed" in err.splitlines()[-1]
    assert_whole_and_without_leftovers(tmp_path / "toy", "test", "reference")
    assert run_limited(None, *words, tmp_path / "toy")[0] == 0
    assert all_bytes(tmp_path / "toy") == all_bytes(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("limit", [300_000, 100_000], ids=["shard", "scratch file"])
def test_a_disk_that_fills_up_while_importing_ends_cleanly_and_goes_on(limit, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train-0", 2_048), ("test", 100)):
        images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", X=images, Y=rng.integers(0, 10, n))
    words = ("import", "npz", tmp_path, tmp_path / "data", "--name", "noise")
    code, err = run_limited(limit, *words)
    assert code == 75
    assert "File too large (errno 27)" in err.splitlines()[-1]
    assert_whole_and_without_leftovers(tmp_path / "data")
    assert run_limited(None, *words)[0] == 0
    assert verify_data(tmp_path / "data").problems == ()


@pytest.mark.long
def test_a_disk_that_fills_up_while_training_keeps_what_is_there_and_goes_on(tmp_path, toy_data):
    words = ("compare", "--preset", "smoke", "--n-steps", "32", "--n-samples", "200", "400")
    words += ("--model", "mlp(width=64, depth=2)", "--data", toy_data, "--out")
    assert run_limited(None, *words, tmp_path / "whole")[0] == 0
    code, err = run_limited(20_000, *words, tmp_path / "runs")
    assert code == 75
    assert "cannot be written: File too large (errno 27)" in err.splitlines()[-1]
    (run,) = (tmp_path / "runs").iterdir()
    assert not list(run.rglob("*.tmp-*"))
    assert run_limited(None, *words, tmp_path / "runs")[0] == 0
    (whole,) = (tmp_path / "whole").iterdir()
    for path in whole.rglob("*.safetensors"):
        assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes()
