"""Two writers of one data set: a shard appears once, whole, whoever was first."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from race_child import columns
from test_write import SIZES, SOURCE, all_bytes

from bootstrap.errors import ConfigurationError
from bootstrap.locks import locked
from bootstrap.shards import publish_shard, read_records
from generators.write import generate

CHILD = Path(__file__).with_name("race_child.py")
N_WRITERS, N_SHARDS = 3, 40


def race(folder):
    """The names of the files that each of several processes published."""
    command = [sys.executable, str(CHILD), str(folder)]
    writers = [
        subprocess.Popen([*command, str(k), str(N_SHARDS)], stdout=subprocess.PIPE, text=True)
        for k in range(N_WRITERS)
    ]
    deadline = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < N_WRITERS and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / "start").touch()
    won = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * N_WRITERS
    return won


def test_of_several_processes_that_make_a_shard_exactly_one_publishes_it(tmp_path):
    won = race(tmp_path)
    published = sorted(name for names in won for name in names)
    suffixes = ("h5", "json")
    assert published == [f"test-{k:05d}.{suffix}" for k in range(N_SHARDS) for suffix in suffixes]
    assert sum(bool(names) for names in won) > 1, "nobody raced"
    for index in range(N_SHARDS):
        publish_shard(tmp_path / "alone", "test", index, columns(index), 10, {"source": "test"})
    assert all_bytes(tmp_path / "data") == all_bytes(tmp_path / "alone")
    assert len(read_records(tmp_path / "data", "test")) == N_SHARDS


def test_a_second_generation_of_a_folder_is_refused_while_the_first_writes(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigurationError, match="is being written by process"):
        generate(SOURCE, tmp_path, SIZES)
    assert not list(tmp_path.glob("*.h5"))
