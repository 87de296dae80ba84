"""Files appear whole or not at all; the record that counts them is written last.

Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootstrap.errors import BootstrapError, ConfigurationError, StorageError

UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def publish(path: Path, content: bytes) -> None:
    """Make `content` appear at `path` whole, once; FileExistsError if another writer was first.

    StorageError if it cannot be written; then it is not there, and nothing is left beside it.
    """
    with storing(path, len(content)):
        temporary = _write_beside(path, content)
        try:
            os.link(temporary, path)  # unlike replace, link fails when the name is taken
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(path) from None
            os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Make `path` hold `content`: readers see the old bytes or the new ones, never a mix.

    StorageError if it cannot be written; then the old bytes are there.
    """
    with storing(path, len(content)):
        temporary = _write_beside(path, content)
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink()
            raise
        _sync_folder(path.parent)


@contextmanager
def storing(path: Path, n_bytes: int) -> Iterator[None]:
    """Turn an OSError into a StorageError with path, errno, needed and free bytes, and remedy."""
    try:
        yield
    except (FileExistsError, StorageError):
        raise
    except OSError as error:
        why, remedy = describe(error)
        if error.errno not in UNUSABLE:
            why += f"; {n_bytes:,} bytes are needed, {free_bytes(path):,} are free"
        raise StorageError(
            f"{path}: cannot be written: {why}; {remedy}, then run the same command again"
        ) from error


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn an OSError that says only what failed into an error with path, errno and remedy.

    ConfigurationError where a path cannot be used, StorageError where the disk fails. A file that
    is not there, and a connection that fails, are neither.
    """
    try:
        yield
    except (BootstrapError, FileNotFoundError, ConnectionError):
        raise
    except OSError as error:
        if error.errno is None:  # not the system's but some library's
            raise
        why, remedy = describe(error)
        kind = ConfigurationError if error.errno in UNUSABLE else StorageError
        raise kind(
            f"{error.filename or 'a file'}: {why}; {remedy}, then run the same command again"
        ) from error


def describe(error: OSError) -> tuple[str, str]:
    """What went wrong with its errno, and what a user can do about it."""
    is_usable = error.errno not in UNUSABLE
    remedy = "make room or mend the disk" if is_usable else "allow it or choose another folder"
    return f"{error.strerror or error} (errno {error.errno})", remedy


def check_space(folder: Path, n_bytes: int) -> None:
    """StorageError if `n_bytes` do not fit the disk that `folder` is on, or will be."""
    free = free_bytes(folder)
    if n_bytes > free:
        raise StorageError(
            f"{folder}: {n_bytes:,} bytes are needed, {free:,} are free; make room or choose"
            " another disk, then run the same command again"
        )


def free_bytes(path: Path) -> int:
    """What is free on the disk of `path`, which need not exist yet."""
    above = (path.absolute(), *path.absolute().parents)
    there = next(p for p in above if os.path.exists(p))  # False too where one may not look
    return shutil.disk_usage(there).free


def _write_beside(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.tmp-{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private
    except BaseException:
        os.unlink(temporary)
        raise
    return Path(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files whose writer is dead (they hold its process id)."""
    for path in folder.glob("*.tmp-*"):
        writer = path.name.rpartition(".tmp-")[2].partition("-")[0]
        if not (writer.isdigit() and is_process_alive(int(writer))):
            path.unlink(missing_ok=True)


def is_process_alive(pid: int) -> bool:
    """Whether a process of this id runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256_hex(content: bytes) -> str:
    """The sha256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, read in bounded memory."""
    with path.open("rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            error.filename = str(path)  # only opening a file says which
            raise


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text; what hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty_json(value: Any) -> bytes:
    """JSON for people, UTF-8, keys in the order given, with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
