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

from bootstrap.errors import ConfigurationError
from bootstrap.files import pretty_json, replace


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ConfigurationError naming the holder if another process has it."""
    holder = folder / ".lock.json"
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        who = "another process"
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(holder.read_bytes())
            who = f"process {known['pid']} on {known['host']} since {known['since']}"
        raise ConfigurationError(
            f"{folder} is being written by {who}; wait for it or stop it"
        ) from None
    with lock:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        replace(
            holder,
            pretty_json({"host": socket.gethostname(), "pid": os.getpid(), "since": since}),
        )
        yield
