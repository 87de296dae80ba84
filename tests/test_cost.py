"""What a pair is said to cost is what it takes."""

from dataclasses import replace

import pytest
from test_paired import FLAGS, stop_after
from tiny_pair import COMPARE, TINY

from bootstrap.checkpoint import write_checkpoint
from bootstrap.cost import (
    bytes_to_come,
    cost_lines,
    n_kept,
    n_states,
    results_bytes,
    saving,
    world_costs,
)
from bootstrap.errors import Interrupted
from bootstrap.evaluate import evaluate
from bootstrap.feed import Feed
from bootstrap.forks import Control
from bootstrap.keep import Evenly, Keep
from bootstrap.optimizers import AdamW
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.probe import Probe, probe

pytestmark = pytest.mark.usefixtures("no_figure")
N = (48, 100, 1_000)  # the last one never uses a sample again
KEEP = Keep(test_results=True, checkpoints=Evenly(n=4))
PROBE = Probe(
    train_s=1e-3,
    evaluate_s=1e-4,
    train_flop=3e9,
    evaluate_flop=1e9,
    weights_bytes=4_000_000,
    state_bytes=8_000_000,
    n_steps=3,
    batch_size=16,
    is_eager=False,
)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr("bootstrap.environment.git_revision", lambda: "unknown")  # to be quick


@pytest.fixture
def plan_of(toy_data, tmp_path):
    def build(recipe=TINY, n_samples=N, keep=Keep()):
        return plan_pair(recipe, toy_data, tmp_path, n_samples=n_samples, flags=FLAGS, keep=keep)

    return build


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("n_samples", [N, (48,), (1_000,)], ids=str)
def test_samples_are_counted_as_they_are_trained_on_and_evaluated(
    plan_of, toy_data, tmp_path, monkeypatch, updates, every_step, n_samples
):
    recipe, evaluated = replace(TINY, every_step=every_step), []

    def counted(model, batch, *rest, **options):
        evaluated.append(len(batch))
        return evaluate(model, batch, *rest, **options)

    monkeypatch.setattr("bootstrap.train.evaluate", counted)
    costs = world_costs(plan_of(recipe, n_samples))
    run_pair(recipe, toy_data, tmp_path, n_samples=n_samples, flags=FLAGS)
    assert sum(cost.n_trained for cost in costs) == len(updates) * recipe.batch_size
    assert sum(cost.n_steps for cost in costs) == len(updates)
    assert sum(cost.n_evaluated for cost in costs) == sum(evaluated)


def test_what_sharing_saves_is_what_pairs_of_their_own_would_take_more(plan_of):
    plan = plan_of()
    shared = sum(cost.n_trained for cost in world_costs(plan))
    found = saving(plan)
    assert found.n_separate == 3 * 2 * 12 * 16
    assert found.by_ideal == 2 * 12 * 16
    assert found.by_prefix == (3 + 6 + 12) * 16
    assert found.n_separate - found.by_ideal - found.by_prefix == shared


def test_no_more_states_are_on_disk_than_it_is_said(plan_of, toy_data, tmp_path, monkeypatch):
    found = []

    def watched(folder, *rest):
        write_checkpoint(folder, *rest)
        found.append(len(list(folder.glob("*.safetensors"))))

    monkeypatch.setattr("bootstrap.forks.write_checkpoint", watched)
    expected = n_states(plan_of())
    control = Control(checkpoint_every_s=0.0)
    run_pair(TINY, toy_data, tmp_path, n_samples=N, flags=FLAGS, control=control)
    assert max(found) == expected


def test_the_bytes_of_a_state_are_those_of_its_checkpoint(plan_of, toy_data, tmp_path):
    recipe = replace(TINY, optimizer=AdamW())
    found = probe(plan_of(recipe))
    with pytest.raises(Interrupted):
        run_pair(*(recipe, toy_data, tmp_path), n_samples=N, flags=FLAGS, control=stop_after(2))
    (path,) = tmp_path.glob("*/seed-0/checkpoints/trunk-*.safetensors")
    assert found.state_bytes < path.stat().st_size < found.state_bytes + 4_096  # its header


def test_what_is_kept_takes_no_more_files_and_bytes_than_it_is_said(plan_of, toy_data, tmp_path):
    plan = plan_of(keep=KEEP)
    folder = run_pair(TINY, toy_data, tmp_path, n_samples=N, flags=FLAGS, keep=KEEP)
    assert len(list(folder.glob("seed-0/kept/*"))) == n_kept(plan)
    n_bytes = sum(path.stat().st_size for path in folder.glob("seed-0/*.npz"))
    assert results_bytes(plan) < n_bytes < results_bytes(plan) + 4 * 2_048  # headers and steps
    assert bytes_to_come(plan, [0], 1_000_000_000) == results_bytes(plan)


def test_operations_are_two_a_weight_forward_and_twice_that_backward_but_for_the_images(plan_of):
    found, first, last = probe(plan_of()), 8 * 8 * 3 * 8, 8 * 10
    assert found.evaluate_flop == 2 * (first + last)
    assert found.train_flop == 2 * (2 * first + 3 * last)  # no gradient of the images


def test_a_probe_writes_nothing_and_takes_no_time_to_speak_of(plan_of, tmp_path):
    found = probe(plan_of(keep=KEEP))
    assert list(tmp_path.iterdir()) == []
    assert 0 < found.train_s < 0.1
    assert 0 < found.evaluate_s < 0.1
    assert (found.n_steps, found.batch_size) == (3, 16)


def test_long_steps_are_measured_on_a_small_batch(plan_of, monkeypatch):
    monkeypatch.setattr("bootstrap.probe.LONG_S", 0.0)
    sizes, batch = [], Feed.batch
    monkeypatch.setattr(
        Feed, "batch", lambda feed, k: sizes.append(feed.batch_size) or batch(feed, k)
    )
    found = probe(plan_of())
    assert (found.n_steps, found.batch_size) == (1, 8)
    assert {*sizes} == {8}


def test_a_run_of_one_step_can_be_probed(plan_of):
    assert probe(plan_of(replace(TINY, n_steps=1), (8,))).train_s > 0


def test_the_lines_of_a_plan_name_every_number_with_its_unit(plan_of):
    lines = list(cost_lines(plan_of(keep=KEEP), 2, PROBE))
    facts = {line[:16].strip(): line[16:].strip() for line in lines if line}
    assert facts["all, 2 seeds"].split() == ["864", "34,888", "37.5", "T"]
    assert facts["one ideal run"] == "saves 768 of them, 33.3%"
    assert facts["shared prefixes"] == "saves 672 of them, 29.2%"
    assert facts["checkpoints"] == "40.00 MB at most, while a seed is trained"
    assert facts["final weights"] == "32.00 MB"
    assert facts["kept weights"] == "72.00 MB, 18 files at most"
    assert facts["evaluation"] == "93.1% of the operations, 80.2% of the time"
    assert facts["time"].startswith("about 4 s, measured now: 3 steps of 16, 1 ms a training")


def test_a_pair_that_will_be_compiled_is_said_to_have_been_measured_eager(plan_of):
    *_, last = cost_lines(plan_of(), 1, replace(PROBE, is_eager=True))
    assert last.endswith("not compiled, as the run will be")


def test_a_dry_run_prints_the_plan_and_trains_nothing(deep_bootstrap, toy_data, tmp_path):
    at = ("--data", toy_data, "--out", tmp_path / "results", "--n-samples", "48", "96")
    code, out, _ = deep_bootstrap(*COMPARE, *at, "--dry-run", "--keep-checkpoints", "log(n=3)")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines() if line] == [
        *("per seed", "ideal", "real-n48", "real-n96", "all, 1 seed", "separate pairs"),
        *("one ideal run", "shared prefixes", "checkpoints", "final weights", "kept weights"),
        *("evaluation", "time"),
    ]
    assert not (tmp_path / "results").exists()
