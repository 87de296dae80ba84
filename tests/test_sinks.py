"""Records reach TensorBoard and wandb as they are; a run does not notice what a sink does."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from synthetic_runs import configure, finish, record, scores, write_run, write_world
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootstrap.errors import ConfigurationError
from bootstrap.forks import Control
from bootstrap.models import MLP
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.recipe import Recipe
from bootstrap.records import StepRecord
from bootstrap.runlog import load_run, read_rows
from bootstrap.sinks import (
    Sinks,
    TensorBoardSink,
    WandbSink,
    open_tensorboard,
    parse_sinks,
    saved_records,
    write_tensorboard,
)

RECIPE = Recipe(
    model=MLP(width=8, depth=1),
    optimizer=SGD(lr=0.05),
    n_steps=12,
    batch_size=16,
    n_test_curve=64,
    every_step=True,
)
N = (64,)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.records, self.is_closed = [], False

    def write(self, record):
        self.records.append(dict(record))

    def close(self):
        self.is_closed = True


class Broken(Kept):
    """A sink that fails at the n-th thing that it is asked to do."""

    def __init__(self, fails_at):
        super().__init__()
        self.n_calls, self.fails_at = 0, fails_at

    def write(self, record):
        self.n_calls += 1
        if self.n_calls >= self.fails_at:
            raise OSError("no route to the tracker")

    def close(self):
        raise OSError("no route to the tracker")


def scalars(folder):
    """What TensorBoard reads: {tag: [(step, value)]}."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def expected(path, prefix=""):
    """The same of a file of rows."""
    found = {}
    for row in read_rows(path):
        for name, value in row.items():
            if isinstance(value, (int, float)) and name not in ("schema", "step"):
                found.setdefault(prefix + name, []).append((row["step"], pytest.approx(value)))
    return found


def content(folder):
    """Every row (`wall_s` aside) and the sha256 of the final weights."""
    files = sorted(folder.glob("seed-*/*.jsonl"))
    rows = {p.name: [{**row, "wall_s": None} for row in read_rows(p)] for p in files}
    marks = sorted(folder.glob("seed-*/*.done.json"))
    return rows, [json.loads(mark.read_bytes())["weights_sha256"] for mark in marks]


def train(toy_data, out, flags, openers=None, **control):
    """A run of twelve steps that forks at step 4, and what its sinks were."""
    folders = []

    def on_row(*row):
        folders.append(next(out.glob("custom-*")))
        if not sinks:
            sinks.append(Sinks(folders[0], openers or {}))
        sinks[0].on_row(*row)

    sinks = []
    try:
        return run_pair(
            RECIPE,
            toy_data,
            out,
            n_samples=N,
            flags=flags,
            control=Control(on_row=on_row, **control),
        )
    finally:
        sinks[0].close()


@pytest.fixture(scope="module")
def plain(toy_data, flags, tmp_path_factory):
    """The run without a sink."""
    return run_pair(RECIPE, toy_data, tmp_path_factory.mktemp("plain"), n_samples=N, flags=flags)


@pytest.fixture(scope="module")
def watched(toy_data, flags, tmp_path_factory):
    """The run with TensorBoard."""
    return train(
        toy_data, tmp_path_factory.mktemp("watched"), flags, {"tensorboard": open_tensorboard}
    )


# ---------------------------------------------------------------- TensorBoard


@pytest.mark.parametrize("world", ["ideal", "real-n64"])
def test_every_record_of_a_run_arrives_with_its_step_and_value(watched, world):
    seed = watched / "seed-0"
    wanted = expected(seed / f"{world}.jsonl")
    wanted |= expected(seed / f"{world}-every-step.jsonl", "every_step/")
    assert scalars(watched / "tensorboard" / "seed-0" / world) == wanted
    assert len(wanted["test_error"]) > 5
    assert len(wanted["every_step/loss"]) == 12


def test_a_sink_changes_no_record_and_no_weight(plain, watched):
    assert content(watched) == content(plain)


def test_files_rebuilt_from_saved_runs_hold_the_same(watched, tmp_path):
    (folder,) = write_tensorboard([load_run(watched)], watched.parent, tmp_path)
    assert folder == tmp_path / watched.name
    for world in ("ideal", "real-n64"):
        live = scalars(watched / "tensorboard" / "seed-0" / world)
        assert scalars(folder / "seed-0" / world) == live


def test_a_run_that_is_itself_the_root_keeps_its_name(tmp_path):
    run = write_run(tmp_path, n_samples=(40,), seeds=(0,))
    (folder,) = write_tensorboard([run], run.path, tmp_path / "out")
    assert folder == tmp_path / "out" / "run"


def test_what_a_choice_adds_arrives_under_its_prefix(tmp_path):
    run = write_world(tmp_path, None, [record(3, 0.5, level=0.25)])
    list(write_tensorboard([run], tmp_path, tmp_path / "out"))
    assert scalars(tmp_path / "out" / "run" / "seed-0" / "ideal")["extra.level"] == [(3, 0.25)]


def test_opening_again_replaces_what_was_there(tmp_path):
    for value in (0.25, 0.5):
        sink = TensorBoardSink(tmp_path)
        sink.write({"step": 1, "test_error": value})
        sink.close()
    assert scalars(tmp_path) == {"test_error": [(1, 0.5)]}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_evaluation_can_be_seen_before_the_end(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"step": 1, "test_error": 0.5, "wall_s": 2.0})
    assert scalars(tmp_path)["test_error"] == [(1, 0.5)]
    sink.close()


# ---------------------------------------------------------------- feeding


def test_a_stopped_and_resumed_run_arrives_whole_and_once(toy_data, flags, plain, tmp_path):
    from bootstrap.errors import Interrupted

    seen, openers = [], {"tensorboard": open_tensorboard}
    with pytest.raises(Interrupted):
        train(
            *(toy_data, tmp_path, flags, openers),
            on_record=lambda *event: seen.append(event),
            is_interrupted=lambda: len(seen) > 12,
        )
    folder = train(toy_data, tmp_path, flags, openers)
    assert content(folder) == content(plain)
    found = scalars(folder / "tensorboard" / "seed-0" / "ideal")
    rows = folder / "seed-0"
    wanted = expected(rows / "ideal.jsonl")
    assert found == wanted | expected(rows / "ideal-every-step.jsonl", "every_step/")


def test_saved_records_come_in_the_order_of_their_steps(tmp_path):
    step_records = [
        StepRecord(step=step, test=scores(0.5), batch_loss=1.5, batch_error=0.75)
        for step in (0, 1, 2)
    ]
    run = write_world(tmp_path, None, [record(0, 0.9), record(2, 0.5), *step_records])
    found = list(saved_records(run, 0, "ideal"))
    assert [one["step"] for one in found] == [0, 0, 1, 2, 2]
    assert found[2]["every_step/batch_loss"] == 1.5


def test_a_sink_that_opens_late_is_given_what_is_on_disk(tmp_path):
    run = write_world(tmp_path, None, [record(0, 0.9), record(1, 0.5)])
    kept = Kept()
    with Sinks(run.path, {"kept": lambda *world: kept}) as sinks:
        sinks.on_row(0, "ideal", record(2, 0.25).to_json())
    assert [(one["step"], one["test_error"]) for one in kept.records] == [
        (0, 0.9),
        (1, 0.5),
        (2, 0.25),
    ]
    assert kept.is_closed


def test_every_world_and_seed_has_its_own_sink(tmp_path):
    run, opened = write_run(tmp_path, n_samples=(40,), seeds=(0, 1)), {}

    def open_kept(run, seed, world):
        return opened.setdefault((seed, world), Kept())

    with Sinks(run.path, {"kept": open_kept}) as sinks:
        for seed in (0, 1):
            for world in run.worlds:
                sinks.on_row(seed, world, record(64, 0.1).to_json())
            assert not any(sink.is_closed for (s, _), sink in opened.items() if s == seed)
        assert all(sink.is_closed for (seed, _), sink in opened.items() if seed == 0)
    assert set(opened) == {(seed, world) for seed in (0, 1) for world in ("ideal", "real-n40")}
    assert all(sink.is_closed for sink in opened.values())


# ---------------------------------------------------------------- failures


def open_nothing(run, seed, world):
    raise ConnectionError("no route to the tracker")


@pytest.mark.parametrize(
    "opener",
    [open_nothing, lambda *world: Broken(1), lambda *world: Broken(7), lambda *world: Broken(999)],
    ids=["opening", "first record", "later record", "closing"],
)
def test_a_sink_that_fails_warns_once_and_the_records_are_the_same(
    toy_data, flags, plain, tmp_path, caplog, opener
):
    with caplog.at_level(logging.WARNING, logger="bootstrap.sinks"):
        folder = train(toy_data, tmp_path, flags, {"broken": opener})
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "bootstrap.sinks"]
    assert warning.startswith("broken: ")
    assert "no route to the tracker; the run goes on without it" in warning
    assert content(folder) == content(plain)


def test_a_sink_beside_one_that_fails_gets_everything(tmp_path):
    run, kept = write_world(tmp_path, None, [record(0, 0.9)]), Kept()
    openers = {"broken": lambda *world: Broken(1), "kept": lambda *world: kept}
    with Sinks(run.path, openers) as sinks:
        sinks.on_row(0, "ideal", record(1, 0.5).to_json())
    assert [one["step"] for one in kept.records] == [0, 1]


def test_files_that_cannot_be_written_are_only_a_warning(tmp_path, caplog):
    run = write_world(tmp_path, None, [record(0, 0.9)])
    (run.path / "tensorboard").write_text("a file where the folder should be")
    with (
        caplog.at_level(logging.WARNING),
        Sinks(run.path, {"tensorboard": open_tensorboard}) as sinks,
    ):
        for step in (1, 2, 3):
            sinks.on_row(0, "ideal", record(step, 0.5).to_json())
    assert caplog.text.count("the run goes on without it") == 1


# ---------------------------------------------------------------- wandb


class FakeWandb(SimpleNamespace):
    """As much of wandb as the sink uses; remembers what it was asked to do."""

    def __init__(self, step=0):
        super().__init__(asked=None, settings=None, logged=[], is_finished=False, step=step)

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **asked):
        self.asked = asked
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.is_finished = True


def send_to(fake, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = WandbSink(run, 0, "ideal")
    for one in saved_records(run, 0, "ideal"):
        sink.write(one)
    sink.close()
    return fake


def test_wandb_gets_every_record_with_its_step(tmp_path, monkeypatch):
    run = write_world(tmp_path, None, [record(0, 0.9), record(4, 0.5)])
    fake = send_to(FakeWandb(), monkeypatch, run)
    assert [(step, numbers["test_error"]) for step, numbers in fake.logged] == [(0, 0.9), (4, 0.5)]
    assert fake.is_finished


def test_wandb_goes_on_with_the_run_of_that_name_without_repeating_steps(tmp_path, monkeypatch):
    run = write_world(tmp_path, None, [record(step, 0.5) for step in (0, 1, 2, 4)])
    fake = send_to(FakeWandb(step=2), monkeypatch, run)
    assert [step for step, _ in fake.logged] == [2, 4]
    assert (fake.asked["id"], fake.asked["resume"]) == ("run-seed-0-ideal", "allow")
    assert fake.asked["group"] == "run"


@pytest.mark.long
def test_wandb_offline_keeps_the_records_in_the_run_folder(tmp_path):
    run = write_world(tmp_path, None, [record(0, 0.9), record(4, 0.5)])
    program = (
        "import sys; from bootstrap.runlog import load_run\n"
        "from bootstrap.sinks import WandbSink, saved_records\n"
        "run = load_run(sys.argv[1])\n"
        "sinks = [WandbSink(run, seed, 'ideal') for seed in (0, 1)]\n"
        "for one in saved_records(run, 0, 'ideal'):\n"
        "    [sink.write(one) for sink in sinks]\n"
        "[sink.close() for sink in sinks]\n"
    )
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(run.path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        (file,) = run.path.glob(f"wandb/offline-run-*/run-run-seed-{seed}-ideal.wandb")
        assert file.read_bytes().count(b"test_error") >= 2


# ---------------------------------------------------------------- the command line


def test_sinks_are_named_in_a_list():
    assert list(parse_sinks("tensorboard, wandb")) == ["tensorboard", "wandb"]
    assert parse_sinks("") == {}


def test_an_unknown_sink_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="'tensorbord': use tensorboard or wandb"):
        parse_sinks("tensorbord")


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_sink_that_is_not_installed_exits_2_with_the_command(
    deep_bootstrap, toy_data, tmp_path, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    words = ("compare", "--preset", "smoke", "--data", toy_data, "--out", tmp_path / "results")
    code, _, err = deep_bootstrap(*words, "--sink", package)
    assert code == 2
    assert err == (
        f"deep-bootstrap: --sink {package}: the package {package} is not installed;"
        f" pip install 'deep-bootstrap[{package}]'\n"
    )
    assert not (tmp_path / "results").exists()


def test_plot_without_tensorboard_exits_2_with_the_command(deep_bootstrap, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = write_run(tmp_path, n_samples=(40,), seeds=(0,))
    code, _, err = deep_bootstrap("plot", run.path, "--tensorboard", tmp_path / "out")
    assert code == 2
    assert "pip install 'deep-bootstrap[tensorboard]'" in err
    assert not (run.path / "curves.png").exists()


def test_plot_makes_tensorboard_files_of_every_run(deep_bootstrap, tmp_path):
    for name in ("a", "b"):
        configure(finish(write_run(tmp_path / name, n_samples=(40,), seeds=(0,))).path)
    code, out, _ = deep_bootstrap("plot", tmp_path, "--tensorboard", tmp_path / "out")
    assert code == 0
    assert out.splitlines()[-2:] == [str(tmp_path / "out" / name / "run") for name in ("a", "b")]
    written = scalars(tmp_path / "out" / "a" / "run" / "seed-0" / "real-n40")
    assert written == expected(tmp_path / "a" / "run" / "seed-0" / "real-n40.jsonl")


def test_compare_feeds_the_sinks_that_are_asked_for(deep_bootstrap, toy_data, tmp_path):
    words = ("compare", "--preset", "smoke", "--data", toy_data, "--out", tmp_path)
    small = ("--n-steps", "8", "--n-samples", "64", "--compile", "off", "--threads", "1")
    code, _, _ = deep_bootstrap(*words, *small, "--sink", "tensorboard")
    assert code == 0
    (folder,) = tmp_path.glob("smoke-*")
    found = scalars(folder / "tensorboard" / "seed-0" / "real-n64")
    assert found["test_error"] == expected(folder / "seed-0" / "real-n64.jsonl")["test_error"]
