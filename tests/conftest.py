"""What the tests share: the flags of a plain machine, a tiny toy data set, the command line."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bootstrap.cli import main
from bootstrap.execution import Flags
from generators.toy import ToySource
from generators.write import generate


def pytest_configure():
    """Shells start jobs in the background with SIGINT ignored, and so would be what tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # tests run side by side, and threads that wait for one another would wait for other tests too
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flags() -> Flags:
    return Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,048 stream, 512 test and 256 reference images of 8 px; for reading only."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=8), folder, {"test": 512, "reference": 256, "stream": 2_048})
    return folder


@pytest.fixture
def updates():
    """A list that grows by one at every step of any optimiser."""
    done = []
    hook = register_optimizer_step_post_hook(lambda *_: done.append(len(done)))
    yield done
    hook.remove()


@pytest.fixture
def no_figure(monkeypatch):
    """Leave out the slowest part of a tiny pair."""
    monkeypatch.setattr("bootstrap.pair.write_figure", lambda run: ())


@pytest.fixture
def deep_bootstrap(monkeypatch, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["deep-bootstrap", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run
