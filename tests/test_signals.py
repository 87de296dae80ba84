"""Real signals to a real process: it saves and exits 75 in time, and the same command goes on."""

import signal
import time

import pytest
from pause_child import start
from test_paired import content
from test_write import all_bytes
from tiny_pair import COMPARE, PLAIN

pytestmark = pytest.mark.long
GRACE_S = 10
PHASES = {"step": 17, "evaluation": 9, "checkpoint": 2}  # which call of each it is paused at
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


def compare_words(data, out):
    return (*COMPARE, "--n-samples", "48", "96", "--data", data, "--out", out)


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory):
    """The content of a pair that no signal disturbed."""
    from bootstrap.cli import main

    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["deep-bootstrap", *map(str, compare_words(toy_data, out))])
        main()
    (folder,) = out.iterdir()
    return content(folder)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_in_any_phase_exits_75_in_time_and_the_same_command_goes_on(
    toy_data, tmp_path, deep_bootstrap, whole, phase, name
):
    words = compare_words(toy_data, tmp_path)
    with start(phase, PHASES[phase], 1, *words) as child:
        sent = time.monotonic()
        child.send_signal(getattr(signal, name))
        _, err = child.communicate(timeout=GRACE_S)
    assert time.monotonic() - sent < GRACE_S
    assert child.returncode == 75, err
    assert "stopping at the next safe point" in err
    assert "run it again to go on" in err.splitlines()[-1]
    assert deep_bootstrap(*words)[0] == 0
    (folder,) = tmp_path.iterdir()
    assert content(folder) == whole


@pytest.mark.parametrize("phase", PHASES)
def test_a_second_interrupt_exits_130_at_once_and_the_same_command_goes_on(
    toy_data, tmp_path, deep_bootstrap, whole, phase
):
    words = compare_words(toy_data, tmp_path)
    with start(phase, PHASES[phase], 2, *words) as child:
        child.send_signal(signal.SIGINT)
        for line in child.stderr:
            if "stopping at the next safe point" in line:
                break
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=GRACE_S)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert deep_bootstrap(*words)[0] == 0
    (folder,) = tmp_path.iterdir()
    assert content(folder) == whole
    assert not list(folder.rglob("*.tmp-*"))


def test_a_generation_that_is_asked_to_stop_exits_75_and_the_same_command_goes_on(
    tmp_path, deep_bootstrap
):
    words = ("generate", "--preset", "smoke", *PLAIN, "--n", "8192", "--data")
    # three batches are timed before the first shard
    with start("sampling", 3 + 3, 1, *words, tmp_path / "toy") as child:
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=GRACE_S)
    assert child.returncode == 75, err
    assert "stopped after 3 of 4 shards; run the same command to go on" in err
    assert not list((tmp_path / "toy").glob("*.tmp-*"))
    assert deep_bootstrap(*words, tmp_path / "toy")[0] == 0
    assert deep_bootstrap(*words, tmp_path / "whole")[0] == 0
    assert all_bytes(tmp_path / "toy") == all_bytes(tmp_path / "whole")
