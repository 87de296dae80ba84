"""kill -9 at every phase of `generate` and `compare` ends as an undisturbed run does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_paired import content
from test_write import all_bytes

pytestmark = pytest.mark.long
CHILD = Path(__file__).with_name("kill_child.py")

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
    "training the trunk": ("bootstrap.train:cross_entropy", 12),
    "evaluating": ("bootstrap.train:_evaluate_on_grid", 9),
    "writing a row": ("json:dumps", 60),
    "saving the tensors of a fork": ("bootstrap.checkpoint:replace", 1),
    "between tensors and record": ("bootstrap.checkpoint:replace@after", 3),
    "deleting an old checkpoint": ("bootstrap.forks:keep_latest", 2),
    "after the trunk": ("bootstrap.forks:finish", 1),
    "training a tail": ("bootstrap.train:cross_entropy", 45),
    "between the weights and the mark": ("bootstrap.forks:replace@after", 4),
    "after a tail": ("bootstrap.forks:finish@after", 2),
    "before the summary": ("bootstrap.pair:summarise", 1),
    "before the figure": ("bootstrap.pair:write_figure", 1),
}


def run_child(job, folder, function="-", call=0):
    command = [sys.executable, str(CHILD), job, str(folder), function, str(call)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folders = {job: tmp_path_factory.mktemp(job) for job in ("generate", "compare")}
    for job, folder in folders.items():
        result = run_child(job, folder)
        assert result.returncode == 0, result.stderr
    return folders


def kill_then_finish(job, folder, function, call):
    killed = run_child(job, folder, function, call)
    assert killed.returncode == -signal.SIGKILL, killed.stderr  # the phase was reached
    finished = run_child(job, folder)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("phase", GENERATE_PHASES)
def test_a_killed_generation_ends_with_the_same_bytes(phase, undisturbed, tmp_path):
    kill_then_finish("generate", tmp_path, *GENERATE_PHASES[phase])
    assert all_bytes(tmp_path) == all_bytes(undisturbed["generate"])


@pytest.mark.parametrize("phase", COMPARE_PHASES)
def test_a_killed_comparison_ends_with_the_same_records_and_weights(phase, undisturbed, tmp_path):
    kill_then_finish("compare", tmp_path, *COMPARE_PHASES[phase])
    there, here = (
        next((folder / "out").iterdir()) for folder in (undisturbed["compare"], tmp_path)
    )
    assert here.name == there.name
    assert content(here) == content(there)
    assert (here / "summary.json").exists()
    assert (here / "curves.png").exists()


def test_two_processes_make_the_same_bytes(undisturbed, tmp_path):
    assert run_child("compare", tmp_path).returncode == 0
    there, here = (
        next((folder / "out").iterdir()) for folder in (undisturbed["compare"], tmp_path)
    )
    assert content(here) == content(there)
