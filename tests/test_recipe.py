"""A recipe refuses nonsense, survives JSON, and names what is not at its default."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from bootstrap.augment import CropFlip
from bootstrap.errors import ConfigurationError
from bootstrap.models import MLP
from bootstrap.optimizers import SGD, AdamW, Constant, Step
from bootstrap.presets import PRESETS, build_preset
from bootstrap.recipe import Recipe, evaluation_grid

LENGTHS = (1, 2, 3, 7, 49, 50, 51, 99, 101, 199, 200, 256, 640, 1_500, 39_000)
UNUSUAL = Recipe(
    model=MLP(width=8),
    optimizer=AdamW(lr=0.5),
    schedule=Step(),
    augmentation=CropFlip(padding_px=2),
    n_steps=3,
    batch_size=2,
    n_test_curve=5,
    every_step=True,
)


def test_the_grid_is_the_golden_one():
    assert evaluation_grid(200)[:14] == (0, 1, 2, 4, 8, 9, 10, 12, 14, 16, 18, 21, 24, 28)


@pytest.mark.parametrize("n_steps", [n for n in LENGTHS if n >= 200])
def test_the_grid_starts_with_powers_of_two(n_steps):
    assert evaluation_grid(n_steps)[:5] == (0, 1, 2, 4, 8)


@pytest.mark.parametrize("n_steps", LENGTHS)
def test_the_grid_rises_from_the_start_to_the_last_step(n_steps):
    grid = evaluation_grid(n_steps)
    assert (grid[0], grid[-1]) == (0, n_steps)
    assert all(a < b for a, b in pairwise(grid))


@pytest.mark.parametrize("n_steps", [n for n in LENGTHS if n >= 50])
def test_grid_steps_are_never_more_than_a_fiftieth_apart(n_steps):
    assert max(b - a for a, b in pairwise(evaluation_grid(n_steps))) <= n_steps / 50


@pytest.mark.parametrize("n_steps", [n for n in LENGTHS if n < 50])
def test_the_grid_of_a_short_run_is_every_step(n_steps):
    assert evaluation_grid(n_steps) == tuple(range(n_steps + 1))


def test_grid_steps_past_the_start_grow_by_the_ratio_or_a_fiftieth():
    for a, b in pairwise(evaluation_grid(39_000)[4:-1]):
        assert b - a == min(round(0.15 * a), 780)


@pytest.mark.parametrize("recipe", [Recipe(), UNUSUAL], ids=["default", "unusual"])
def test_a_recipe_survives_json(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", PRESETS)
def test_the_recipe_of_a_preset_survives_json(name):
    recipe = build_preset(name).recipe
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_the_identity_leaves_out_what_is_at_its_default():
    assert Recipe(batch_size=64).non_default() == {"batch_size": 64}


def test_the_identity_of_the_default_recipe_is_empty():
    assert Recipe().non_default() == {}


def test_every_field_is_part_of_the_identity():
    assert set(UNUSUAL.non_default()) == set(UNUSUAL.to_json())


def test_a_field_missing_in_json_is_at_its_default():
    assert Recipe.from_json({"n_steps": 7}) == Recipe(n_steps=7)


def test_an_unknown_field_in_json_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="unknown recipe field 'n_step'"):
        Recipe.from_json({"n_step": 7})


@pytest.mark.parametrize("name", ["n_steps", "batch_size", "n_test_curve"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None])
def test_a_count_that_is_not_a_positive_integer_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"{name}=.* must be an integer of at least 1"):
        Recipe.from_json({name: value})


@pytest.mark.parametrize("lr", [0.0, -0.1])
def test_a_learning_rate_that_is_not_positive_is_refused(lr):
    with pytest.raises(ConfigurationError, match="must be positive"):
        Recipe(optimizer=SGD(lr=lr))


@pytest.mark.parametrize("text", ["preresnet18(width=0)", "mlp(depth=0)", "mcnn(width=-1)"])
def test_a_model_without_units_is_refused(text):
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        Recipe.from_json({"model": text})


def test_a_run_draws_batch_size_samples_at_every_step():
    assert Recipe(n_steps=640, batch_size=64).n_draws == 40_960


def test_the_learning_rate_is_the_base_times_the_schedule():
    recipe = Recipe(optimizer=SGD(lr=0.5), schedule=Step(at_fractions=(0.5,), gamma=0.1), n_steps=4)
    assert [recipe.lr_at(step) for step in range(4)] == pytest.approx([0.5, 0.5, 0.05, 0.05])


def test_recipes_that_differ_in_the_schedule_alone_differ_in_identity():
    assert Recipe().non_default() != replace(Recipe(), schedule=Constant()).non_default()
