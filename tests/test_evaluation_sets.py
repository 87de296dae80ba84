"""Further test sets and errors by group: what data with environments are judged by."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from choices import PRETRAINED, RECIPE, few_steps, weights
from test_paired import FLAGS
from tiny_pair import TINY

from bootstrap.cost import world_costs
from bootstrap.errors import ConfigurationError
from bootstrap.interventions import Choice, WorldClass
from bootstrap.interventions.error_by import ErrorByEnvironment, ErrorByGroup
from bootstrap.interventions.pretraining import Pretraining
from bootstrap.interventions.spurious import Spurious
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.pretrained import head_names, read_pretrained
from bootstrap.runlog import load_run
from bootstrap.train import build_state
from bootstrap.verify_run import verify_run

pytestmark = pytest.mark.usefixtures("no_figure")
SETS = Spurious(agreement=(1.0, 0.6), training_environments=True)
SHORT = replace(TINY, n_steps=30, n_test_curve=64)


def pair(data, out, *choices, recipe=SHORT):
    folder = run_pair(replace(recipe, choices=choices), data, out, n_samples=(48,), flags=FLAGS)
    assert verify_run(folder).problems == ()
    return load_run(folder)


# ---------------------------------------------------------------- further sets


def test_training_environments_are_scored_beside_the_shifted_one(toy_data, tmp_path):
    run = pair(toy_data, tmp_path, SETS)
    for curves in (run.ideal, run.real[48]):
        for key in ("error", "soft_error", "loss"):
            for k in (0, 1):
                assert np.isfinite(curves.columns[f"extra.test_{key}_environment_{k}"]).all()
    shifted = run.ideal.test_error[0, -1]
    agreeing, mixed = (
        run.ideal.columns[f"extra.test_error_environment_{k}"][0, -1] for k in (0, 1)
    )
    assert agreeing < mixed < shifted  # the corner tells the class always, often, hardly ever


def test_a_further_set_changes_no_other_number(toy_data, tmp_path):
    plain = replace(SETS, training_environments=False)
    with_sets, without = (
        few_steps(toy_data, choice, recipe=replace(RECIPE, n_steps=3)) for choice in (SETS, plain)
    )
    assert with_sets[1] == without[1]
    assert torch.equal(weights(with_sets[0]), weights(without[0]))


def test_the_images_of_a_set_are_those_of_the_test_in_that_environment(toy_data, tmp_path):
    recipe = replace(SHORT, choices=(SETS,))
    plan = plan_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
    pools = {"test": plan.pool("test"), **plan.evaluation_pools()}
    assert [*pools] == ["test", "environment_0", "environment_1"]
    rows = {name: pool.first(pool.n) for name, pool in pools.items()}
    for name, found in rows.items():
        np.testing.assert_array_equal(found.ids, rows["test"].ids)
        np.testing.assert_array_equal(found.images[:, 4:], rows["test"].images[:, 4:])
        agree = (found.extra["attribute"] == found.labels).mean()
        expected = {"test": 0.1, "environment_0": 1.0, "environment_1": 0.6}[name]
        assert agree == pytest.approx(expected, abs=0.07)
    for k in (0, 1):
        assert {*rows[f"environment_{k}"].extra["environment"].tolist()} == {k}


def test_further_sets_are_counted_among_what_is_evaluated(toy_data, tmp_path):
    def n_evaluated(choice):
        recipe = replace(SHORT, choices=(choice,))
        plan = plan_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
        return world_costs(plan)[0].n_evaluated

    plain = replace(SETS, training_environments=False)
    n_probed = sum(step < 3 for step in (0, 1, 2)) * 48
    assert n_evaluated(SETS) - n_probed == 3 * (n_evaluated(plain) - n_probed)


# ---------------------------------------------------------------- by group


def test_errors_by_group_add_up_to_that_of_the_test_images(toy_data, tmp_path):
    run = pair(toy_data, tmp_path, Spurious(), ErrorByGroup(), ErrorByEnvironment())
    (last,) = (run.rows(0, "ideal")[-1],)
    extra = last["extra"]
    by_group = {k: v for k, v in extra.items() if k.startswith("test_error_group_")}
    assert extra["test_error_worst_group"] == max(by_group.values())
    assert extra["test_error_mean_group"] == pytest.approx(np.mean([*by_group.values()]))
    assert extra["test_error_environment_2"] == pytest.approx(last["test_error"])
    real = run.rows(0, "real-n48")[-1]["extra"]
    assert {"train_error_environment_0", "train_error_environment_1"} <= {*real}


def test_data_without_groups_are_refused(toy_data, tmp_path):
    recipe = replace(SHORT, choices=(ErrorByGroup(),))
    with pytest.raises(ConfigurationError, match="error_by_group needs the column group"):
        plan_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)


@dataclass(frozen=True, kw_only=True)
class GroupDRO(Choice):
    """Stands for the third group of choices: it needs groups, and a weight for each to remember."""

    eta: float = 0.1
    world_class: ClassVar[WorldClass] = WorldClass.ANNOTATED
    needs: ClassVar[tuple[str, ...]] = ("group",)
    n_groups: ClassVar[int] = 100

    def init_state(self, model, setting):
        return {"q": torch.full((self.n_groups,), 1 / self.n_groups, device=setting.device)}

    def wrap_sample_loss(self, losses, context):
        def weighted(forward, inputs):
            found, q = losses(forward, inputs), context.state["q"]
            for group in inputs.columns["group"].unique():
                mean = found.detach()[inputs.columns["group"] == group].mean()
                q[group] *= torch.exp(self.eta * mean)
            q /= q.sum()
            return found * q[inputs.columns["group"]] * self.n_groups

        return weighted


def test_a_choice_that_weights_groups_needs_no_more_than_the_seams(toy_data, tmp_path):
    run = pair(toy_data, tmp_path, Spurious(), GroupDRO(), ErrorByGroup())
    assert "extra.test_error_worst_group" in run.ideal.columns


# ---------------------------------------------------------------- pre-training


def test_pre_training_as_a_choice_is_that_of_the_option(toy_data, tmp_path):
    path = PRETRAINED[RECIPE.model]
    recipe = replace(RECIPE, n_steps=6)
    init = read_pretrained(Path(path))
    option = run_pair(recipe, toy_data, tmp_path / "o", n_samples=(48,), flags=FLAGS, init=init)
    choice = pair(toy_data, tmp_path / "c", Pretraining(weights=path), recipe=recipe)
    for world in ("ideal", "real-n48"):
        one, other = (
            [{k: v for k, v in row.items() if k != "wall_s"} for row in run.rows(0, world)]
            for run in (load_run(option), choice)
        )
        assert one == other


def test_a_strength_between_starts_on_the_line(toy_data):
    path = PRETRAINED[RECIPE.model]
    manifest = plan_pair(RECIPE, toy_data, toy_data, n_samples=(48,), flags=FLAGS).manifest
    own, half, whole = (
        build_state(replace(RECIPE, choices=choices), manifest, 2_048, 0, FLAGS).model.state_dict()
        for choices in (
            (),
            (Pretraining(weights=path, strength=0.5),),
            (Pretraining(weights=path),),
        )
    )
    for name, tensor in half.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (own[name] + whole[name]) / 2)
    head = head_names(build_state(RECIPE, manifest, 2_048, 0, FLAGS).model)
    assert not any(whole[name].any() for name in head)


def test_pre_training_that_does_not_fit_is_refused(toy_data, tmp_path):
    recipe = replace(SHORT, choices=(Pretraining(weights=PRETRAINED[RECIPE.model]),))
    with pytest.raises(ConfigurationError, match="does not fit the model"):
        plan_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
    with pytest.raises(ConfigurationError, match="weights='FILE' is missing"):
        Pretraining()
