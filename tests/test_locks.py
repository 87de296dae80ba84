"""Two real processes on one folder: the second is told who the first is, unless that is dead."""

import json
import signal
import socket

import numpy as np
import pytest
from pause_child import start
from tiny_pair import COMPARE, PLAIN

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Noise as npz parts."""
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for name, n in (("train-0", 1_100), ("test", 100)):
        images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", X=images, Y=rng.integers(0, 10, n))
    return folder


def compare(parts, toy_data, out):
    return (*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", out), "step"


def train_generator(parts, toy_data, out):
    sizes = ("--widths", "16", "32", "--norm-groups", "8", "--batch-size", "16")
    words = ("train-generator", "--images", parts, "--work", out, *sizes, *PLAIN)
    return (*words, "--n-images-seen", "64"), "denoising"


def import_npz(parts, toy_data, out):
    return ("import", "npz", parts, out, "--name", "noise"), "publishing"


@pytest.mark.parametrize("job", [compare, train_generator, import_npz], ids=lambda f: f.__name__)
def test_the_second_of_two_processes_is_refused_until_the_first_is_dead(
    parts, toy_data, tmp_path, deep_bootstrap, job
):
    out = tmp_path / "out"
    words, phase = job(parts, toy_data, out)
    with start(phase, 1, 1, *words) as first:
        code, _, err = deep_bootstrap(*words)
        first.kill()
    assert code == 2
    assert f"is being written by process {first.pid} on {socket.gethostname()} since" in err
    assert err.splitlines()[-1].endswith("wait for it or stop it")
    assert first.returncode == -signal.SIGKILL
    (left,) = out.rglob(".lock.json")
    assert json.loads(left.read_bytes())["pid"] == first.pid
    assert deep_bootstrap(*words)[0] == 0
