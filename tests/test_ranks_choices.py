"""Every design choice on two processes is what it is on one."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from choices_ranks_child import RECIPES
from test_ranks_pair import only_run, torchrun

CHILD = Path(__file__).with_name("choices_ranks_child.py")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folders(toy_data, tmp_path_factory):
    """What one process did, and what two did, in tests/choices_ranks_child.py."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    plain = [sys.executable, CHILD, toy_data, one]
    alone = subprocess.run(plain, check=False, capture_output=True, text=True)
    for result in (alone, torchrun(2, CHILD, toy_data, two, check=False)):
        assert result.returncode == 0, result.stderr
    return one, two


def numbers(value):
    """Every number in a row, whatever it lies in."""
    if isinstance(value, dict):
        return list(chain.from_iterable(numbers(v) for k, v in value.items() if k != "wall_s"))
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_record_what_one_does(folders, name):
    one, two = (only_run(folder / name) for folder in folders)
    worlds = ("ideal", "real-n1", "real-n200")
    for world in chain(worlds, (f"{world}-every-step" for world in worlds)):
        known, found = (run.rows(0, world) for run in (one, two))
        assert len(known) == len(found) > 3
        assert [r.get("ids_hash") for r in found] == [r.get("ids_hash") for r in known]
        for mine, theirs in zip(found, known, strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=1e-7, atol=1e-9)
