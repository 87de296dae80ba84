"""Runs a command and pauses it: `pause_child.py PHASE CALL N_SIGNALS WORDS...`.

At the CALL-th beginning of PHASE (from 1) it prints `reached` and goes on when it has had N_SIGNALS
signals that ask for a stop: until then its parent may send them, or kill it.
"""

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

PHASES = {
    "step": "bootstrap.objective:cross_entropy",
    "evaluation": "bootstrap.evaluate:score",
    "checkpoint": "bootstrap.checkpoint:replace",  # of the tensors, then of their record
    "sampling": "generators.write:label_and_sample",
    "denoising": "generators.train:velocity_loss",
    "publishing": "generators.importers:publish_shard",
}


def pause_at(phase: str, call: int, n_signals: int) -> None:
    from bootstrap.signals import StopRequest

    module_name, _, attribute = PHASES[phase].partition(":")
    module = importlib.import_module(module_name)
    original, on_signal = getattr(module, attribute), StopRequest._on_signal
    calls, signals = [], []

    def noted(self, number, frame):
        signals.append(number)
        on_signal(self, number, frame)

    def paused(*args, **kwargs):
        calls.append(phase)
        if len(calls) == call:
            print("reached", flush=True)
            while len(signals) < n_signals:
                time.sleep(0.01)
        return original(*args, **kwargs)

    StopRequest._on_signal = noted
    setattr(module, attribute, paused)


def start(phase: str, call: int, n_signals: int, *words: object) -> subprocess.Popen:
    """A child that is at its pause."""
    command = [sys.executable, str(Path(__file__)), phase, str(call), str(n_signals)]
    child = subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs tests in the background ignores SIGINT, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    assert first == "reached\n", first + child.communicate()[1]
    return child


if __name__ == "__main__":
    pause_at(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.argv = ["deep-bootstrap", *sys.argv[4:]]
    from bootstrap.cli import main

    main()
