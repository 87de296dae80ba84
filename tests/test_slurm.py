"""The job array of examples/slurm.sh on a scheduler that is only played."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import contents, write_grid

SCRIPT = Path(__file__).parent.parent / "examples" / "slurm.sh"
STUB = """
echo "$@" >> {folder}/called
trap 'sleep 0.2; exit 75' USR1
touch {folder}/started
for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done
exit {code}
"""


class FakeSlurm:
    """Runs the tasks of an array one after the other, each again when it asks for it."""

    def __init__(self, folder, command):
        self.folder, self.runs = folder, []
        self.commands = folder / "commands"
        self.commands.mkdir()
        self._write("scontrol", f'echo "$@" >> {folder}/requeued')
        self._write("deep-bootstrap", command)

    def _write(self, name, text):
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def sbatch(self, *words, n_tasks=1, warn_when=lambda: False):
        """Until no task asks for more; (task, exit code) of each run. The first run is warned."""
        queue = [f"7_{task}" for task in range(1, n_tasks + 1)]
        while queue:
            job, _, task = queue[0].partition("_")
            settings = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
            settings |= {"SLURM_ARRAY_TASK_MAX": str(n_tasks)}
            settings |= {"PATH": f"{self.commands}:{os.environ['PATH']}"}
            command = ["bash", str(SCRIPT), *map(str, words)]
            child = subprocess.Popen(command, env=os.environ | settings)
            if not self.runs:
                self._warn(child, warn_when)
            self.runs.append((queue.pop(0), child.wait(timeout=60)))
            requeued = self.folder / "requeued"
            if requeued.exists():
                verb, task = requeued.read_text().split()
                assert verb == "requeue"
                queue.insert(0, task)
                requeued.unlink()
        return self.runs

    @staticmethod
    def _warn(child, warn_when):
        while child.poll() is None and not warn_when():
            time.sleep(0.02)
        if child.poll() is None:
            child.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@300 does


@pytest.mark.parametrize("code", [0, 5])
def test_a_task_that_ends_is_not_queued_again(tmp_path, code):
    slurm = FakeSlurm(tmp_path, STUB.format(folder=tmp_path, code=code))
    assert slurm.sbatch("grid.json", n_tasks=2) == [("7_1", code), ("7_2", code)]


def test_every_task_has_its_part_and_the_options(tmp_path):
    slurm = FakeSlurm(tmp_path, STUB.format(folder=tmp_path, code=0))
    slurm.sbatch("grid.json", "--data", "there", n_tasks=2)
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [f"sweep grid.json --part {k}/2 --data there" for k in (1, 2)]


def test_a_warning_reaches_the_sweep_and_75_queues_the_task_again(tmp_path):
    slurm = FakeSlurm(tmp_path, STUB.format(folder=tmp_path, code=0))
    runs = slurm.sbatch("grid.json", warn_when=(tmp_path / "started").exists)
    assert runs == [("7_1", 75), ("7_1", 0)]


@pytest.mark.long
def test_a_task_that_is_warned_goes_on_until_its_part_is_done(deep_bootstrap, toy_data, tmp_path):
    out, grid = tmp_path / "out", write_grid(tmp_path)
    slurm = FakeSlurm(tmp_path, f'exec {sys.executable} -m bootstrap "$@"')
    words = (grid, "--data", toy_data, "--out")
    assert deep_bootstrap("sweep", *words, tmp_path / "whole")[0] == 0
    runs = slurm.sbatch(
        *words, out, n_tasks=2, warn_when=lambda: any(out.glob("*/seed-0/ideal.jsonl"))
    )
    assert runs == [("7_1", 75), ("7_1", 0), ("7_2", 0)]
    assert contents(out) == contents(tmp_path / "whole")
