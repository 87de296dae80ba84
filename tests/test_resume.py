"""A pair that was stopped goes on from its latest whole state, wherever it was, to the same end."""

import json
import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_paired import FLAGS, content, stop_after
from tiny_pair import TINY

from bootstrap.checkpoint import checkpoint_steps, keep_latest, read_checkpoint
from bootstrap.errors import Interrupted
from bootstrap.forks import Control
from bootstrap.pair import run_pair
from bootstrap.verify_run import verify_run

pytestmark = pytest.mark.usefixtures("no_figure")
LONGER = replace(TINY, n_steps=20)
N_UPDATES = 20 + 17  # the trunk, and the tail of N = 48 from step 3


def run_tiny(data, out, recipe=TINY, n_samples=(48,), **options):
    return run_pair(recipe, data, out, n_samples=n_samples, flags=FLAGS, **options)


@pytest.fixture
def clock(monkeypatch, updates):
    """Time, as far as checkpoints are concerned, passes by one second an update."""
    monkeypatch.setattr("bootstrap.forks.time", SimpleNamespace(monotonic=lambda: len(updates)))


@pytest.fixture
def states(monkeypatch):
    """The whole trunk states on disk after each time one was saved."""
    found = []

    def keep(folder, name, **options):
        keep_latest(folder, name, **options)
        if name == "trunk" and not options:
            steps = checkpoint_steps(folder, name)
            found.append([step for step in steps if read_checkpoint(folder, name, step)])

    monkeypatch.setattr("bootstrap.forks.keep_latest", keep)
    return found


def stop_at_update(updates, n):
    """Every four updates a state is saved; after `n` it is asked for a stop."""
    return Control(is_interrupted=lambda: len(updates) >= n, checkpoint_every_s=3.5)


def spoil_latest(folder):
    """Cut the latest trunk state short; returns its step."""
    (checkpoints,) = folder.glob("*/seed-0/checkpoints")
    latest = checkpoint_steps(checkpoints, "trunk")[0]
    path = checkpoints / f"trunk-{latest}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return latest


@pytest.mark.usefixtures("clock")
def test_two_whole_states_are_on_disk_after_every_save_past_the_first(toy_data, tmp_path, states):
    run_tiny(toy_data, tmp_path, LONGER, control=Control(checkpoint_every_s=3.5))
    assert states == [[4], [8, 4], [12, 8], [16, 12]]


@pytest.mark.usefixtures("clock")
def test_going_on_from_a_whole_state_repeats_no_update(toy_data, tmp_path, updates):
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, LONGER, control=stop_at_update(updates, 12))
    assert len(updates) == 12
    run_tiny(toy_data, tmp_path, LONGER)
    assert len(updates) == N_UPDATES


@pytest.mark.usefixtures("clock")
def test_going_on_beside_a_corrupt_state_repeats_one_interval(
    toy_data, tmp_path, updates, states, caplog
):
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, LONGER, control=stop_at_update(updates, 12))
    assert spoil_latest(tmp_path) == 12
    states.clear()
    with caplog.at_level(logging.WARNING):
        folder = run_tiny(toy_data, tmp_path, LONGER, control=Control(checkpoint_every_s=1.5))
    assert len(updates) == N_UPDATES + 4
    assert "trunk-12.json is corrupt" in caplog.text
    assert states[:3] == [[10, 8], [12, 10], [14, 12]]  # the corrupt one never counted as a state
    orphan = (folder / "seed-0" / "ideal.jsonl.orphan").read_text()
    assert [json.loads(line)["step"] for line in orphan.splitlines()] == [8, 9, 10, 11]
    assert content(folder) == content(run_tiny(toy_data, tmp_path / "whole", LONGER))


def test_a_pair_stopped_twice_at_any_event_ends_as_if_it_had_not_been(
    toy_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("bootstrap.environment.git_revision", lambda: "unknown")  # to be quick
    recipe, n_samples, seen = replace(TINY, n_steps=13), (48, 96), []
    watch = Control(on_record=lambda *event: seen.append(event))
    whole = content(run_tiny(toy_data, tmp_path / "whole", recipe, n_samples, control=watch))
    stopped_at = set()
    for n_events in range(len(seen)):
        out = tmp_path / str(n_events)
        for control in (stop_after(n_events), stop_after(1)):  # the second one step later
            try:
                run_tiny(toy_data, out, recipe, n_samples, control=control)
            except Interrupted as stop:
                world, step = re.search(r"(\S+) stopped at step (\d+)", str(stop)).groups()
                stopped_at.add((world, int(step)))
        assert content(run_tiny(toy_data, out, recipe, n_samples)) == whole
    ends_of_passes = {("real-n48", 6), ("real-n48", 9), ("real-n48", 12), ("real-n96", 12)}
    assert ends_of_passes < stopped_at
    forks = {3, 6}  # the trunk has saved there and stops one step later
    assert {step for world, step in stopped_at if world == "trunk"} == set(range(1, 13)) - forks


def report_torch(patch, number):
    """Let the program believe that torch has this version."""
    from bootstrap.environment import version

    def found(name):
        return number if name == "torch" else version(name)

    patch.setattr("bootstrap.environment.version", found)


def environments(folder):
    pair = json.loads((folder / "pair.json").read_bytes())
    return [pair["environment"], *pair.get("resumed_with", [])]


def test_going_on_with_another_torch_is_warned_of_and_recorded_once(
    toy_data, tmp_path, monkeypatch, caplog
):
    for number in ("2.10.0", "2.11.0", "2.11.0"):
        report_torch(monkeypatch, number)
        with pytest.raises(Interrupted):
            run_tiny(toy_data, tmp_path, control=stop_after(1))
    (folder,) = tmp_path.iterdir()
    assert [e["packages"]["torch"] for e in environments(folder)] == ["2.10.0", "2.11.0"]
    assert caplog.text.count("torch 2.10.0, now 2.11.0; the rest may differ") == 1
    assert verify_run(folder).problems == ()


def test_going_on_with_other_code_is_warned_of_and_recorded(
    toy_data, tmp_path, monkeypatch, caplog
):
    for revision in ("abc", "def"):
        monkeypatch.setattr("bootstrap.environment.git_revision", lambda text=revision: text)
        with pytest.raises(Interrupted):
            run_tiny(toy_data, tmp_path, control=stop_after(1))
    (folder,) = tmp_path.iterdir()
    assert [e["git"] for e in environments(folder)] == ["abc", "def"]
    assert "git abc, now def; the rest may differ" in caplog.text


def test_a_finished_pair_is_not_said_to_go_on_with_another_torch(toy_data, tmp_path, monkeypatch):
    folder = run_tiny(toy_data, tmp_path)
    before = (folder / "pair.json").read_bytes()
    report_torch(monkeypatch, "9.9.9")
    run_tiny(toy_data, tmp_path)
    assert (folder / "pair.json").read_bytes() == before


def test_more_seeds_with_another_torch_are_recorded(toy_data, tmp_path, monkeypatch):
    run_tiny(toy_data, tmp_path)
    report_torch(monkeypatch, "9.9.9")
    folder = run_tiny(toy_data, tmp_path, seeds=(0, 1))
    assert [e["packages"]["torch"] for e in environments(folder)][1:] == ["9.9.9"]


def test_a_pair_that_always_had_one_environment_says_nothing_of_another(toy_data, tmp_path, caplog):
    with pytest.raises(Interrupted):
        run_tiny(toy_data, tmp_path, control=stop_after(1))
    folder = run_tiny(toy_data, tmp_path)
    assert "resumed_with" not in json.loads((folder / "pair.json").read_bytes())
    assert "other versions" not in caplog.text
