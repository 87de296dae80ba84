"""Stopping on request: a signal only sets a flag; work stops at the next safe boundary.

And stopping when nobody reads any more what is printed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = (
    "SIGTERM",
    "SIGINT",
    "SIGUSR1",
    "SIGUSR2",
    "SIGHUP",
)  # those that the system lacks are skipped


class StopRequest:
    """Within it, the first signal asks for a stop and a second SIGINT exits at once with 130."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say
        self._requested = False
        self._previous: dict[int, Any] = {}

    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested

    def __enter__(self) -> StopRequest:
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise SystemExit(130)
        self._requested = True
        self._say("stopping at the next safe point; once more to stop at once")


def deadline_of(max_minutes: float | None) -> float:
    """When to stop, on the monotonic clock: never without a limit."""
    return time.monotonic() + 60 * max_minutes if max_minutes else float("inf")


@contextmanager
def closed_pipes() -> Iterator[None]:
    """Exit with 141 and without a word once the reader of stdout or stderr has left (`| head`).

    BrokenPipeErrors of other pipes, those of worker processes, go on.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream.fileno())]
        for stream in closed:  # what is flushed at exit goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if closed:
            raise SystemExit(141) from None
        raise


def _is_closed(file: int) -> bool:
    poll = select.poll()
    poll.register(file, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
