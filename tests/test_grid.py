"""A grid says which pairs there are, in the words of `compare`, and what is wrong with it."""

import json
import pickle
from dataclasses import fields

import pytest

from bootstrap.errors import ConfigurationError
from bootstrap.grid import (
    OF_A_PAIR,
    OF_THE_SWEEP,
    Sweep,
    build_options,
    build_sweep,
    part_of,
    read_sweep,
)
from bootstrap.models import MLP
from bootstrap.optimizers import SGD, AdamW
from bootstrap.options import CompareOptions
from bootstrap.recipe import Recipe


def pairs(**value):
    return build_sweep(value, "grid.json").pairs()


def test_every_combination_of_the_grids_values_is_a_point():
    grid = {"model": ["mlp", "mcnn"], "optimizer.lr": [0.1, 0.2, 0.3]}
    found = [(type(p.recipe.model).__name__, p.recipe.optimizer.lr) for p in pairs(grid=grid)]
    assert found == [(m, lr) for m in ("MLP", "SmallCNN") for lr in (0.1, 0.2, 0.3)]


def test_points_are_listed_instead_and_change_the_base():
    found = pairs(base={"n_steps": 5, "model": "mlp"}, points=[{"model": "mcnn"}, {"n_steps": 7}])
    assert [p.recipe.n_steps for p in found] == [5, 7]


def test_points_that_differ_in_n_and_seeds_alone_are_one_pair():
    (pair,) = pairs(grid={"n_samples": [500, [100, 200]], "seeds": [3, "0-1", [0, 5]]})
    assert pair.n_samples == (100, 200, 500)
    assert pair.seeds == "0,1,3,5"


def test_a_point_without_words_is_compare_without_options():
    assert build_options({}) == CompareOptions.of_preset("laptop")
    assert build_options({"preset": "smoke"}) == CompareOptions.of_preset("smoke")


def test_every_option_of_compare_is_a_word_of_a_point_or_of_all_points():
    known = {*OF_A_PAIR, *OF_THE_SWEEP, "recipe", "execution"}
    assert known == {field.name for field in fields(CompareOptions)}


def test_words_have_the_types_of_compare():
    words = {"n-steps": 5, "data": "d", "threads": 2, "seeds": 4, "optimizer.lr": 1}
    options = build_options(words)
    assert options.recipe.n_steps == 5
    assert (str(options.data), options.execution.threads, options.seeds) == ("d", 2, "4")
    assert options.recipe.optimizer.lr == 1.0


def test_one_argument_is_changed_after_the_whole_value():
    words = {"optimizer.lr": 0.3, "optimizer": "adamw(weight_decay=0.1)"}
    assert build_options(words).recipe.optimizer == AdamW(lr=0.3, weight_decay=0.1)


def test_one_argument_of_the_presets_value_leaves_the_others():
    optimizer = build_options({"preset": "smoke", "optimizer.lr": 0.3}).recipe.optimizer
    assert optimizer == SGD(lr=0.3, momentum=0.9)


def test_an_argument_that_decides_others_decides_them_again():
    first, second = (build_options({"model": "darts", "model.seed": k}).recipe for k in (0, 1))
    assert first.model.genotype != second.model.genotype


def test_defaults_are_for_points_that_do_not_say():
    points = ({"threads": 1}, {"n_steps": 3})
    found = Sweep(points=points).pairs({"threads": 2, "device": "cpu"})
    assert [p.execution.threads for p in found] == [1, 2]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"modle": "mlp"}, "a point has no word 'modle'; did you mean 'model'?"),
        ({"model": "mpl"}, "unknown model 'mpl'; did you mean 'mlp'?"),
        ({"model": "mlp(wdith=3)"}, "did you mean 'width'?"),
        ({"model": "mlp(width=open('x'))"}, "arguments must be literals"),
        ({"model": 3}, "model=3 must be a str"),
        ({"optimizer.lrr": 1}, "no argument 'lrr'; did you mean 'lr'?"),
        ({"optimizer.lr": "high"}, "lr='high' must be a float"),
        ({"optimizer": "sgd(nesterov=True)"}, "nesterov=True needs a momentum above 0"),
        ({"n_steps": "many"}, "n_steps='many' must be a int"),
        ({"replicas": "many"}, "replicas='many' must be a int"),
        ({"n_steps": 0}, "n_steps=0 must be an integer of at least 1"),
        ({"every_step": 1}, "every_step=1 must be a bool"),
        ({"n_samples": "5"}, "n_samples='5' must be a int"),
        ({"seeds": 1.5}, "seeds=1.5 must be a int"),
        ({"seeds": "4-0"}, "write 0-4 or 0,3"),
        ({"precision": "fp64"}, "--precision fp64: use one of"),
        ({"preset": "labtop"}, "unknown preset 'labtop'; did you mean 'laptop'?"),
        ({"out": "there"}, "it is for all points"),
        ({"keep_checkpoints": "at_eror"}, "did you mean 'at_errors'?"),
    ],
    ids=str,
)
def test_a_word_that_cannot_be_is_refused_with_its_point_and_the_reason(words, why):
    with pytest.raises(ConfigurationError) as refused:
        pairs(points=[{}, words])
    assert str(refused.value).startswith(f"point 2 ({next(iter(words))}=")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "write an object with a `grid` or with `points`"),
        ("{}", "give either a `grid` or `points`"),
        ('{"grid": {}, "points": []}', "give either a `grid` or `points`"),
        ('{"girds": {}}', "unknown key 'girds'; did you mean 'grid'?"),
        ('{"grid": {"model": "mlp"}}', "each with a list of values"),
        ('{"grid": {"model": []}}', "each with a list of values"),
        ('{"points": []}', "`points` is a list of objects"),
        ('{"points": ["mlp"]}', "`points` is a list of objects"),
        ('{"base": [], "points": [{}]}', "`base` is an object"),
    ],
)
def test_a_file_that_is_no_grid_is_refused_with_the_rule(tmp_path, text, why):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_sweep(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert why in str(refused.value)


def test_a_file_is_read(tmp_path):
    value = {"about": "what for", "base": {"preset": "smoke"}, "grid": {"n_steps": [1, 2]}}
    (tmp_path / "grid.json").write_text(json.dumps(value))
    sweep = read_sweep(tmp_path / "grid.json")
    assert sweep.about == "what for"
    assert sweep.points == tuple({"preset": "smoke", "n_steps": n} for n in (1, 2))


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 20])
def test_parts_are_disjoint_and_together_all(n_parts):
    parts = [part_of(range(10), f"{k}/{n_parts}") for k in range(1, n_parts + 1)]
    assert sorted(item for part in parts for item in part) == list(range(10))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "/2", "a/b", "1/2/3", "-1/2"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"write 3/16"):
        part_of(range(10), text)


def test_a_recipe_travels_as_its_text_with_a_class_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Net:\n"
        "    width: int = 1\n"
    )
    recipe = Recipe.from_json({"model": f"{path}:Net(width=3)", "n_steps": 7})
    sent = pickle.dumps(recipe)
    assert pickle.loads(sent) == recipe
    assert str(path).encode() in sent
    assert pickle.loads(pickle.dumps(Recipe(model=MLP(width=4)))) == Recipe(model=MLP(width=4))


@pytest.mark.parametrize("replicas", [2, "auto"])
def test_a_point_may_say_how_many_worlds_are_trained_at_once(replicas):
    assert build_options({"preset": "smoke", "replicas": replicas}).replicas == replicas
