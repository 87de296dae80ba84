"""A sweep ends with the runs that `compare` would have made, however it was run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cluster import killing
from test_init import fresh
from test_paired import content
from tiny_pair import COMPARE, TINY

from bootstrap.locks import locked
from bootstrap.plan import plan_pair
from bootstrap.runlog import load_runs

BASE = {
    **{"preset": "smoke", "model": "mlp(width=8, depth=1)", "every_step": False},
    **{"n_steps": 12, "batch_size": 16, "n_test_curve": 64},
    **{"precision": "fp32", "compile": "off", "threads": 1},
}
GRID = {"optimizer.lr": [0.05, 0.1, 0.2], "n_samples": [48, 96], "seeds": [0, 1]}  # three pairs
NAN = {"optimizer.lr": 1e30, "model": "mlp(width=8, depth=1, batch_norm=False)"}
TESTS = Path(__file__).parent


def write_grid(folder, **value):
    path = folder / "grid.json"
    path.write_text(json.dumps({"base": BASE, **(value or {"grid": GRID})}))
    return path


def contents(out):
    """The content of every run in a results folder."""
    return {run.name: content(run.path) for run in load_runs(out)}


@pytest.fixture
def sweep(deep_bootstrap, toy_data, tmp_path):
    """Run the command on a grid; returns (exit code, stdout, stderr)."""

    def run(grid, *words, out=tmp_path / "out"):
        return deep_bootstrap("sweep", grid, "--data", toy_data, "--out", out, *words)

    return run


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory):
    """The content of a sweep that nothing disturbed."""
    from bootstrap.cli import main

    folder = tmp_path_factory.mktemp("whole")
    words = ("sweep", write_grid(folder), "--data", toy_data, "--out", folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        patch.setattr("sys.argv", ["deep-bootstrap", *map(str, words)])
        main()
    return contents(folder / "out")


def test_planning_a_pair_reads_every_other_run_once(toy_data, tmp_path, monkeypatch, flags):
    named, read, reads = [], Path.read_bytes, []
    for k in range(6):
        (tmp_path / f"p-{k:08x}").mkdir()
        config = {"pool_n_samples": 1_024 * (1 + k % 2), "n_samples": [48]}
        (tmp_path / f"p-{k:08x}" / "pair.json").write_text(json.dumps(config))
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    monkeypatch.setattr("bootstrap.plan.run_name", lambda *_: named.append(0) or "p-other")
    for _ in range(3):
        plan_pair(TINY, toy_data, tmp_path, n_samples=(48,), flags=flags, preset="p")
    assert reads.count("pair.json") == 6
    assert len(named) == 3 * (2 + 1)  # a name for each size of a pool, and that of the folder


def test_points_may_start_from_pre_trained_weights(sweep, toy_data, tmp_path):
    init = fresh(TINY, toy_data, tmp_path / "w.safetensors")
    grid = write_grid(tmp_path, points=[{"n_samples": 48}, {"init": str(init.path)}])
    assert sweep(grid)[0] == 0
    starts = [run.config.get("init") for run in load_runs(tmp_path / "out")]
    assert [start and start["weights_sha256"] for start in starts].count(init.sha256) == 1
    assert starts.count(None) == 1


def test_a_sweep_makes_the_runs_that_compare_makes(whole, deep_bootstrap, toy_data, tmp_path):
    words = ("--n-samples", 48, 96, "--seeds", "0-1", "--data", toy_data, "--out", tmp_path)
    for lr in GRID["optimizer.lr"]:
        assert (
            deep_bootstrap(*COMPARE, *words, "--optimizer", f"sgd(lr={lr}, momentum=0.9)")[0] == 0
        )
    assert contents(tmp_path) == whole
    assert len(whole) == 3


@pytest.mark.usefixtures("no_figure")
def test_a_run_that_compare_made_is_left_alone(
    sweep, whole, deep_bootstrap, toy_data, tmp_path, updates
):
    words = ("--n-samples", 48, 96, "--seeds", "0-1", "--data", toy_data, "--out", tmp_path / "out")
    assert deep_bootstrap(*COMPARE, *words)[0] == 0
    updates.clear()
    code, out, _ = sweep(write_grid(tmp_path, points=[GRID | {"optimizer.lr": 0.05}]))
    assert code == 0
    assert out == "sweep: 1 pair, 1 of them done\n"
    assert updates == []
    assert contents(tmp_path / "out").items() <= whole.items()


@pytest.mark.usefixtures("no_figure")
def test_parts_make_together_what_the_whole_makes(sweep, whole, tmp_path):
    grid = write_grid(tmp_path)
    _, first, _ = sweep(grid, "--part", "1/2")
    _, second, _ = sweep(grid, "--part", "2/2")
    assert first.startswith("sweep: 2 pairs, 0 of them done")
    assert second.startswith("sweep: 1 pair, 0 of them done")
    assert contents(tmp_path / "out") == whole


@pytest.mark.usefixtures("no_figure")
def test_a_sweep_that_is_stopped_exits_75_and_the_same_command_goes_on(
    sweep, whole, tmp_path, monkeypatch
):
    grid, calls = write_grid(tmp_path), iter(range(10_000))
    with monkeypatch.context() as patch:
        patch.setattr("bootstrap.signals.StopRequest.is_requested", lambda self: next(calls) > 60)
        code, _, err = sweep(grid)
    assert code == 75
    assert "left to do; the same command goes on" in err
    assert 0 < len(contents(tmp_path / "out")) < 3
    assert sweep(grid)[0] == 0
    assert contents(tmp_path / "out") == whole


def test_a_sweep_whose_time_is_over_exits_75_without_training_more(sweep, tmp_path, updates):
    code, _, err = sweep(write_grid(tmp_path), "--max-minutes", "1e-9")
    assert (code, updates) == (75, [])
    assert "3 pairs left to do; the same command goes on" in err


@pytest.mark.usefixtures("no_figure")
def test_a_pair_that_fails_is_named_at_the_end_and_the_others_run(sweep, whole, tmp_path):
    grid = write_grid(tmp_path, points=[NAN, GRID | {"optimizer.lr": 0.05}])
    code, out, err = sweep(grid)
    failed = [run for run in load_runs(tmp_path / "out") if run.status == "failed"]
    assert code == 5
    assert [run.path.name for run in failed] == [err.splitlines()[-1].split(":")[0].split("/")[-1]]
    assert "all other pairs are done; 1 did not end" in err
    assert out.splitlines()[-1].endswith("done; 2 of 2 have ended")
    done = {run.name for run in load_runs(tmp_path / "out") if run.status == "complete"}
    assert done <= {*whole}
    assert len(done) == 1


@pytest.mark.usefixtures("no_figure")
def test_a_pair_that_another_process_trains_is_left_to_it(sweep, whole, tmp_path):
    out, grid = tmp_path / "out", write_grid(tmp_path)
    held = out / sorted(whole)[0]
    with locked(held):
        code, _, err = sweep(grid)
    assert code == 75
    assert f"{held}: {held} is being written by process {os.getpid()}" in err
    assert {run.name for run in load_runs(out)} == {*whole} - {held.name}
    assert sweep(grid)[0] == 0
    assert contents(out) == whole


@pytest.mark.parametrize(
    ("bad", "code"),
    [({"n_steps": 0}, 2), ({"model": "mpl"}, 2), ({"n_steps": 4_000}, 4), ({"data": "no"}, 3)],
    ids=str,
)
def test_a_bad_point_is_refused_before_any_is_run(sweep, tmp_path, bad, code):
    assert sweep(write_grid(tmp_path, points=[{}, bad]))[0] == code
    assert not (tmp_path / "out").exists()


def test_points_that_are_one_run_but_keep_other_things_are_refused(sweep, tmp_path):
    grid = write_grid(tmp_path, points=[{"n_samples": 48}, {"save_test_results": True}])
    code, _, err = sweep(grid)
    assert code == 2
    assert "two points are the same run" in err


def test_a_grid_that_is_not_there_exits_2(sweep):
    code, _, err = sweep("gird.json")
    assert (code, "gird.json" in err) == (2, True)


def test_a_dry_run_says_what_is_to_be_done_and_trains_nothing(sweep, tmp_path):
    code, out, _ = sweep(write_grid(tmp_path), "--dry-run")
    *rows, last = out.splitlines()[1:]
    assert code == 0
    assert [row.split()[1:3] for row in rows] == [["2", "seeds"]] * 3
    # three worlds of 12 steps but for the shared 3 and 6, of 16 samples, in two seeds
    assert last.split()[2] == f"{3 * 2 * 16 * (12 + 9 + 6):,}"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figure")
def test_a_dry_run_does_not_count_what_is_done(sweep, tmp_path):
    grid = write_grid(tmp_path)
    sweep(grid)
    *rows, last = sweep(grid, "--dry-run")[1].splitlines()[1:]
    assert [row.split()[1] for row in rows] == ["done"] * 3
    assert last.split()[2] == "0"


def test_gpus_per_pair_are_for_ray(sweep, tmp_path):
    code, _, err = sweep(write_grid(tmp_path), "--gpus-per-pair", "0.5")
    assert code == 2
    assert "add `--ray local`" in err


# ---------------------------------------------------------------- killed, in parts, on a cluster


def run_child(folder, function, call):
    """The sweep of `folder/grid.json` in a process that is killed at a call of a function."""
    words = [sys.executable, TESTS / "kill_child.py", "sweep", folder, function, call]
    return subprocess.run([*map(str, words)], check=False, capture_output=True).returncode


@pytest.mark.long
def test_a_sweep_that_is_killed_twice_ends_as_one_that_is_not(sweep, whole, toy_data, tmp_path):
    grid = write_grid(tmp_path, grid=GRID | {"data": [str(toy_data)]})
    assert run_child(tmp_path, "bootstrap.objective:cross_entropy", 30) == -9
    assert run_child(tmp_path, "bootstrap.forks:finish", 8) == -9
    assert contents(tmp_path / "out") != whole
    assert sweep(grid)[0] == 0
    assert contents(tmp_path / "out") == whole


@pytest.mark.long
def test_a_sweep_that_is_killed_before_a_summary_writes_it_later(sweep, toy_data, tmp_path):
    grid = write_grid(tmp_path, grid=GRID | {"data": [str(toy_data)]})
    assert run_child(tmp_path, "bootstrap.pair:write_figure@after", 1) == -9
    (folder,) = (run.path for run in load_runs(tmp_path / "out"))
    assert not (folder / "summary.json").exists()
    assert sweep(grid)[0] == 0
    assert json.loads((folder / "summary.json").read_bytes())["status"] == "complete"


@pytest.mark.long
def test_pairs_on_ray_are_those_of_one_process(sweep, whole, tmp_path):
    code, out, _ = sweep(write_grid(tmp_path), "--ray", "local")
    assert code == 0
    assert out.splitlines()[-1].endswith("done; 3 of 3 have ended")
    assert contents(tmp_path / "out") == whole
    assert not list((tmp_path / "out").glob(".stop-*"))


@pytest.mark.long
def test_pairs_on_ray_that_are_stopped_go_on_later(sweep, whole, tmp_path, monkeypatch):
    out, grid = tmp_path / "out", write_grid(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "bootstrap.signals.StopRequest.is_requested",
            lambda self: any(out.glob("*/seed-0/ideal.jsonl")),
        )
        code, _, err = sweep(grid, "--ray", "local")
    assert code == 75
    assert "left to do; the same command goes on" in err
    assert sweep(grid)[0] == 0
    assert contents(out) == whole


TRAPPED = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from bootstrap.models import MLP


@dataclass(frozen=True, kw_only=True)
class Trapped(MLP):
    def build(self, image_shape, n_classes):
        folder = Path(os.environ["TRAP"])
        try:
            (folder / "taken").touch(exist_ok=False)
        except FileExistsError:
            return super().build(image_shape, n_classes)
        (folder / "pid.part").write_text(str(os.getpid()))
        os.rename(folder / "pid.part", folder / "pid")
        time.sleep(600)
"""


@pytest.mark.long
def test_the_pair_of_a_worker_that_is_killed_is_trained_by_another(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path))
    (tmp_path / "trap.py").write_text(TRAPPED)
    model = f"{tmp_path / 'trap.py'}:Trapped(width=8, depth=1)"
    grid = write_grid(tmp_path, grid=GRID | {"model": [model]})
    with killing(tmp_path, lambda pid: os.kill(pid, signal.SIGKILL)):
        assert sweep(grid, "--ray", "local")[0] == 0
    assert sweep(grid, out=tmp_path / "alone")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
