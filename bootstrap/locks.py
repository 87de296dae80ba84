"""One writer a folder: a lock that dies with its process, and says who holds it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bootstrap.errors import ConfigurationError, StorageError
from bootstrap.files import UNUSABLE, describe, pretty_json, replace


class Held(ConfigurationError):
    """Another process has the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if need be and hold its lock.

    Held, naming the holder, if another process has it; ConfigurationError if it cannot be written
    to.
    """
    holder = folder / ".lock.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        who = "another process"
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(holder.read_bytes())
            who = f"process {known['pid']} on {known['host']} since {known['since']}"
        raise Held(f"{folder} is being written by {who}; wait for it or stop it") from None
    except OSError as error:
        why, remedy = describe(error)
        kind = ConfigurationError if error.errno in UNUSABLE else StorageError
        raise kind(f"{folder}: cannot be written to: {why}; {remedy}") from error
    with lock:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        replace(
            holder,
            pretty_json({"host": socket.gethostname(), "pid": os.getpid(), "since": since}),
        )
        yield
