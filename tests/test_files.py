"""Files appear whole or not at all."""

import errno
import os

import pytest

from bootstrap import files
from bootstrap.errors import StorageError
from bootstrap.files import (
    canonical_json,
    disk_errors,
    file_sha256,
    is_process_alive,
    pretty_json,
    publish,
    remove_leftovers,
    replace,
    sha256_hex,
)

DEAD = 99_999_999  # more than any system's largest process id
SHA256_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail(*_):
    raise OSError("no space left")


def test_a_published_file_holds_its_content_and_nothing_is_left_beside_it(tmp_path):
    publish(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert names(tmp_path) == ["a"]


def test_a_file_is_published_once(tmp_path):
    publish(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_file_is_published_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail)
    publish(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert names(tmp_path) == ["a"]


def test_a_file_is_published_once_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail)
    publish(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_replaced_file_holds_the_new_content(tmp_path):
    replace(tmp_path / "a", b"old and long")
    replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", [publish, replace], ids=lambda f: f.__name__)
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, write):
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "a", b"content")
    assert names(tmp_path) == []


def test_a_replacement_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    replace(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("sync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("name") or rename(a, b))
    replace(tmp_path / "a", b"content")
    assert events == ["sync", "name", "sync"]  # the file, its name, the folder


@pytest.mark.parametrize("write", [publish, replace], ids=lambda f: f.__name__)
def test_folders_are_made_as_needed(tmp_path, write):
    write(tmp_path / "b" / "c" / "a", b"content")
    assert (tmp_path / "b" / "c" / "a").read_bytes() == b"content"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
def test_files_have_the_permissions_of_ordinary_ones(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    replace(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    (tmp_path / f"a.h5.tmp-{DEAD}-x1").touch()
    (tmp_path / "a.h5.tmp-nonsense").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_of_living_processes_are_kept(tmp_path):
    name = f"a.h5.tmp-{os.getpid()}-x1"
    (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [name]


def test_whole_files_are_no_leftovers(tmp_path):
    replace(tmp_path / "a.h5", b"")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.h5"]


def test_a_temporary_file_names_its_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda a, b: None)
    replace(tmp_path / "a", b"content")
    [name] = names(tmp_path)
    assert name.startswith(f"a.tmp-{os.getpid()}-")


def test_this_process_is_alive_and_another_is_not():
    assert is_process_alive(os.getpid())
    assert not is_process_alive(DEAD)


def test_a_process_of_someone_else_is_alive(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(files.os, "kill", refuse)
    assert is_process_alive(1)


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_hex(b"abc") == file_sha256(tmp_path / "a") == SHA256_ABC


def test_a_file_that_cannot_be_read_to_its_end_is_named(tmp_path, monkeypatch):
    def fail_read(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.setattr("hashlib.file_digest", fail_read)
    message = rf"{tmp_path / 'a'}: Input/output error .errno 5.; make room or mend"
    with pytest.raises(StorageError, match=message), disk_errors():
        file_sha256(tmp_path / "a")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "gone"), ConnectionError(111, "refused"), OSError("no errno")]
)
def test_what_is_no_fault_of_a_disk_is_passed_on_as_it_is(error):
    with pytest.raises(OSError, match=r"gone|refused|no errno") as caught, disk_errors():
        raise error
    assert caught.value is error


def test_equal_values_have_equal_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'


@pytest.mark.parametrize("write", [canonical_json, pretty_json], ids=lambda f: f.__name__)
def test_nan_is_not_json(write):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write({"a": float("nan")})


def test_pretty_json_keeps_the_order_and_the_letters():
    assert pretty_json({"b": "é", "a": 1}).decode() == '{\n  "b": "é",\n  "a": 1\n}\n'
