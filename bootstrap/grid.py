"""A grid of pairs, from a JSON file to the options of `compare`. No torch.

    {"about": "learning rates of two models",
     "base": {"preset": "laptop", "n_steps": 320},
     "grid": {"model": ["mlp", "preresnet18(width=16)"], "optimizer.lr": [0.1, 0.01],
              "n_samples": [500, 1000], "seeds": [0, 1, 2]}}

Every combination of the grid's values is a point; `"points": [{...}, ...]` lists points instead.
Words and values are those of `compare`'s options, and `optimizer.lr` is one argument of the
optimizer. Points that differ in N and seeds alone are one pair, with every N for every seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bootstrap.errors import ConfigurationError
from bootstrap.keep import parse_rule
from bootstrap.options import CompareOptions, Execution, parse_seeds
from bootstrap.presets.figure import Figure
from bootstrap.recipe import TABLES, Recipe
from bootstrap.spec import did_you_mean, typed, with_argument

Words = dict[str, Any]
Item = TypeVar("Item")
KEYS = ("about", "base", "grid", "points")
OF_A_PAIR = (  # of CompareOptions; recipe and execution have words of their own
    *("preset", "data", "seeds", "n_samples", "allow_reuse", "replicas"),
    *("save_test_results", "keep_checkpoints", "init"),
)
OF_THE_SWEEP = (  # or of compare alone
    *("out", "dry_run", "overwrite", "sink", "max_minutes", "bn", "pick_lr", "pick_lr_steps"),
)
HINTS: dict[type, Words] = {cls: get_type_hints(cls) for cls in (CompareOptions, Execution, Recipe)}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Pairs to run: the words of each point, and what they are for."""

    about: str = ""
    points: tuple[Words, ...]

    def pairs(self, defaults: Words | None = None) -> tuple[CompareOptions, ...]:
        """The options of each pair, all checked; ConfigurationError that names the first bad point.

        `defaults` are words for points that do not have them.
        """
        merged: list[CompareOptions] = []
        for number, words in enumerate(self.points, start=1):
            try:
                options = build_options({**(defaults or {}), **words})
            except ValueError as error:
                said = ", ".join(f"{key}={value!r}" for key, value in words.items())
                raise ConfigurationError(f"point {number} ({said}): {error}") from None
            _merge(merged, options)
        return tuple(merged)


def read_sweep(path: Path) -> Sweep:
    """The sweep of a JSON file; ConfigurationError for one that is not as above."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON ({error})") from None
    return build_sweep(value, str(path))


def build_sweep(value: Any, where: str) -> Sweep:
    """The sweep of a JSON object."""
    _check(isinstance(value, dict), where, "write an object with a `grid` or with `points`")
    for key in value:
        _check(key in KEYS, where, f"unknown key {key!r}{did_you_mean(key, KEYS)}")
    base, grid, points = value.get("base", {}), value.get("grid"), value.get("points")
    _check((grid is None) != (points is None), where, "give either a `grid` or `points`")
    _check(isinstance(base, dict), where, "`base` is an object of words and their values")
    if grid is not None:
        is_grid = isinstance(grid, dict) and all(isinstance(v, list) and v for v in grid.values())
        _check(is_grid, where, "`grid` is an object of words, each with a list of values")
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    is_list = isinstance(points, list) and points and all(isinstance(p, dict) for p in points)
    _check(is_list, where, "`points` is a list of objects of words and their values")
    about = value.get("about", "")
    return Sweep(about=str(about), points=tuple({**base, **point} for point in points))


def figure_sweep(figure: Figure) -> Sweep:
    """The pairs of a figure."""
    return Sweep(about=figure.about, points=tuple(point.words for point in figure.points))


def _check(is_right: Any, where: str, rule: str) -> None:
    if not is_right:
        raise ConfigurationError(f"{where}: {rule}")


def build_options(words: Words) -> CompareOptions:
    """The options that `compare` has with these words; ConfigurationError for one it cannot."""
    words = {key.replace("-", "_"): value for key, value in words.items()}
    known = {*_names(CompareOptions), *_names(Execution), *_names(Recipe)}
    for key in words:
        if key not in known and key.partition(".")[0] not in TABLES:
            mine = "; it is for all points" if key in OF_THE_SWEEP else did_you_mean(key, known)
            raise ConfigurationError(f"a point has no word {key!r}{mine}")
    default = CompareOptions.of_preset(typed(words.get("preset", "laptop"), str, "preset"))
    options = replace(
        default,
        **_values(CompareOptions, words),
        execution=Execution(**_values(Execution, words)),
        recipe=changed_recipe(default.recipe, words),
    )
    parse_seeds(options.seeds)
    parse_rule(options.keep_checkpoints)
    return options


def _names(cls: type) -> list[str]:
    """The words of a point that are fields of `cls`."""
    return [f.name for f in fields(cls) if cls is not CompareOptions or f.name in OF_A_PAIR]


def _values(cls: type, words: Words) -> Words:
    """The fields of `cls` among the words, as its types."""
    return {key: _value(key, words[key], HINTS[cls][key]) for key in _names(cls) if key in words}


def _value(key: str, value: Any, hint: Any) -> Any:
    if key == "seeds" and not isinstance(value, str):
        return ",".join(str(typed(seed, int, key)) for seed in _listed(value))
    if key == "n_samples":
        value = _listed(value)
    if isinstance(hint, UnionType):  # X | None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if get_origin(hint) is Union:  # X | Literal["auto"]
        hint, named = get_args(hint)
        if value in get_args(named):
            return value
    return Path(typed(value, str, key)) if hint is Path else typed(value, hint, key)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def changed_recipe(recipe: Recipe, words: Words) -> Recipe:
    """The recipe with what the words change; one argument of a value after the value itself."""
    changed = recipe.to_json()
    for key in _names(Recipe):
        if key in words:
            hint = str if key in TABLES else HINTS[Recipe][key]
            is_plain = hint in (str, int, float, bool)  # the rest is read by the recipe
            changed[key] = typed(words[key], hint, key) if is_plain else _listed(words[key])
    for key, value in words.items():
        what, dot, argument = key.partition(".")
        if dot:
            changed[what] = with_argument(changed[what], argument, value, what)
    return Recipe.from_json(changed)


def is_one_pair(a: CompareOptions, b: CompareOptions) -> bool:
    """Whether they differ in N, seeds and the results folder at most."""
    return replace(a, n_samples=b.n_samples, seeds=b.seeds, out=b.out) == b


def _merge(pairs: list[CompareOptions], options: CompareOptions) -> None:
    """Add a point to the pair that it is part of, or as a pair of its own."""
    for index, pair in enumerate(pairs):
        if is_one_pair(pair, options):
            n_samples = tuple(sorted({*pair.n_samples, *options.n_samples}))
            seeds = sorted({*parse_seeds(pair.seeds), *parse_seeds(options.seeds)})
            text = ",".join(map(str, seeds))
            pairs[index] = replace(pair, n_samples=n_samples, seeds=text)
            return
    pairs.append(options)


def part_of(items: Sequence[Item], text: str) -> tuple[Item, ...]:
    """Part k of n, for the text `k/n`: every n-th item; ConfigurationError for a text that is none.

    The n parts are disjoint and together all of them.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigurationError(f"--part {text}: write 3/16, the third of sixteen parts")
    return tuple(items[int(number) - 1 :: int(count)])
