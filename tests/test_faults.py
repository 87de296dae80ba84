"""kill -9 at every phase of `generate` and `compare` ends as an undisturbed run does.

KILL_ROUNDS=50 (or a range, KILL_ROUNDS=17-33) sets how often `generate` is killed at random times.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_kept import kept_bytes
from test_paired import content
from test_write import all_bytes

pytestmark = pytest.mark.long
CHILD = Path(__file__).with_name("kill_child.py")
N_SHARDS = 4  # of the data set that is generated

GENERATE_PHASES = {
    "sampling": ("generators.write:label_and_sample", 2),
    "building": ("bootstrap.shards:build_shard", 2),
    "before the shard appears": ("bootstrap.shards:publish", 3),
    "between the shard and its record": ("bootstrap.shards:publish@after", 3),
    "after the record": ("bootstrap.shards:publish@after", 4),
    "in mid file": ("os:fsync", 5),
    "before the manifest": ("generators.write:collect_manifest", 1),
}
COMPARE_PHASES = {
    "training the trunk": ("bootstrap.objective:cross_entropy", 12),
    "evaluating": ("bootstrap.train:_evaluate_on_grid", 9),
    "writing a row": ("json:dumps", 60),
    "saving the tensors of a fork": ("bootstrap.checkpoint:replace", 1),
    "between tensors and record": ("bootstrap.checkpoint:replace@after", 3),
    "deleting an old checkpoint": ("bootstrap.forks:keep_latest", 2),
    "keeping weights": ("bootstrap.kept:replace", 3),
    "after weights were kept": ("bootstrap.kept:replace@after", 7),
    "saving results": ("bootstrap.image_results:replace", 5),
    "between the results and the state": ("bootstrap.image_results:replace@after", 9),
    "after the trunk": ("bootstrap.forks:finish", 1),
    "training a tail": ("bootstrap.objective:cross_entropy", 45),
    "between the weights and the mark": ("bootstrap.forks:replace@after", 4),
    "after a tail": ("bootstrap.forks:finish@after", 2),
    "before the summary": ("bootstrap.pair:summarise", 1),
    "before the figure": ("bootstrap.pair:write_figure", 1),
}


def run_child(job, folder, function="-", call=0):
    command = [sys.executable, str(CHILD), job, str(folder), function, str(call)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run_undisturbed(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp(job)
    result = run_child(job, folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return run_undisturbed("generate", tmp_path_factory)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return run_undisturbed("compare", tmp_path_factory)


def kill_then_finish(job, folder, function, call):
    killed = run_child(job, folder, function, call)
    assert killed.returncode == -signal.SIGKILL, killed.stderr  # the phase was reached
    finished = run_child(job, folder)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("phase", GENERATE_PHASES)
def test_a_killed_generation_ends_with_the_same_bytes(phase, generated, tmp_path):
    kill_then_finish("generate", tmp_path, *GENERATE_PHASES[phase])
    assert all_bytes(tmp_path) == all_bytes(generated)


@pytest.mark.parametrize("phase", COMPARE_PHASES)
def test_a_killed_comparison_ends_with_the_same_records_and_weights(phase, compared, tmp_path):
    kill_then_finish("compare", tmp_path, *COMPARE_PHASES[phase])
    there, here = (next((folder / "out").iterdir()) for folder in (compared, tmp_path))
    assert here.name == there.name
    assert content(here) == content(there)
    assert kept_bytes(here) == kept_bytes(there) != {}
    assert (here / "summary.json").exists()
    assert (here / "curves.png").exists()


MAX_DELAY_S = {"sampling": 0.05, "building": 0.002, "publishing": 0.002, "recording": 0.002}


def rounds():
    first, _, last = os.environ.get("KILL_ROUNDS", "8").rpartition("-")
    return range(int(first), int(last) + 1) if first else range(int(last))


def kill_at_random(folder, phase, rng):
    """Kill a generation a random time after a start of `phase`; its pid, the phase it died in."""
    command = [sys.executable, str(CHILD), "generate", str(folder), "announce", "0"]
    nth, delay_s = rng.integers(1, N_SHARDS + 1), rng.uniform(0, MAX_DELAY_S[phase])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        begun = []
        while begun.count(phase) < nth:
            begun.append(child.stdout.readline().strip())
            assert begun[-1], "the child ended before its time"
        time.sleep(delay_s)
        child.kill()
        begun += child.stdout.read().split()
    assert child.returncode == -signal.SIGKILL
    return child.pid, begun[-1]


def test_a_generation_killed_at_random_times_ends_with_the_same_bytes(generated, tmp_path):
    whole, died_in = all_bytes(generated), Counter()
    for number in rounds():
        folder = tmp_path / str(number)
        phase = list(MAX_DELAY_S)[number % len(MAX_DELAY_S)]
        pid, last = kill_at_random(folder, phase, np.random.default_rng(number))
        died_in[last] += 1
        found = all_bytes(folder)
        left = {k: v for k, v in found.items() if ".tmp-" not in k}
        assert left.items() <= whole.items()  # nothing is there in part
        assert all(f".tmp-{pid}-" in name for name in found.keys() - left.keys())
        finished = run_child("generate", folder)
        assert finished.returncode == 0, finished.stderr
        assert all_bytes(folder) == whole
    print(f"{died_in.total()} kills: {dict(died_in)}")
    assert len(died_in) > 1  # which ones, a busy machine decides; each has a test of its own above


def test_two_processes_make_the_same_bytes(compared, tmp_path):
    assert run_child("compare", tmp_path).returncode == 0
    there, here = (next((folder / "out").iterdir()) for folder in (compared, tmp_path))
    assert content(here) == content(there)
