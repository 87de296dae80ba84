"""What holds of every design choice: its null strength, its draws, its worlds, its cost."""

import re
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from choices import CASES, DEEP, RECIPE, few_steps, weights
from torch.utils.flop_counter import FlopCounterMode

from bootstrap import filtered, interventions, randomness, worlds
from bootstrap.interventions import INTERVENTIONS, is_wrapped, step_cost
from bootstrap.randomness import Stream

OWN_STREAMS = {Stream.CHOICE, Stream.CONDITION, Stream.LABEL_NOISE}
each = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def baseline(toy_data):
    return few_steps(toy_data)


def test_every_choice_is_tested():
    assert set(CASES) == set(INTERVENTIONS)
    assert all(type(case.full) is INTERVENTIONS[name] for name, case in CASES.items())


def test_every_choice_has_a_sentence_in_plain_words_with_its_defaults():
    page = (Path(interventions.__file__).parent / "README.md").read_text()
    items = [line for line in page.splitlines() if line.startswith("* ")]
    told = re.findall(r"`(\w+)\((.*?)\)`", "\n".join(items))
    for name, arguments in told:
        defaults = {f.name: f.default for f in fields(INTERVENTIONS[name])}
        for key, value in re.findall(r"(\w+)=(\d[\d.e/-]*)(?:,|$)", arguments):
            number, _, divisor = value.partition("/")
            assert defaults[key] == float(number) / float(divisor or 1), (name, key)
    assert {name for name, _ in told} == set(INTERVENTIONS)


@each
def test_null_strength_changes_no_byte(toy_data, baseline, name):
    state, rows = few_steps(toy_data, *CASES[name].beside, CASES[name].null)
    assert rows == baseline[1]
    assert torch.equal(weights(state), weights(baseline[0]))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.tiny])
def test_a_millionth_of_the_strength_changes_next_to_nothing(toy_data, baseline, name):
    changed, plain = weights(few_steps(toy_data, CASES[name].tiny)[0]), weights(baseline[0])
    distance = float((changed - plain).norm() / plain.norm())
    assert distance < 1e-4
    assert distance > 0 or not CASES[name].moves


def draws_of(monkeypatch, run):
    """What a run returns, and the coordinates at which streams are drawn that are no choice's."""
    for cached in (worlds.pass_order, worlds.block_order, filtered.kept_samples):
        cached.cache_clear()
    drawn, bits = set(), randomness.bits

    def noted(seed, stream, *coordinates, n):
        if stream not in OWN_STREAMS:
            drawn.add((seed, stream, coordinates, n))
        return bits(seed, stream, *coordinates, n=n)

    with monkeypatch.context() as patch:
        patch.setattr(randomness, "bits", noted)
        before = torch.random.get_rng_state()
        found = run()
        assert torch.equal(torch.random.get_rng_state(), before)
    return found, drawn


@each
def test_full_strength_leaves_every_other_draw_alone(toy_data, baseline, monkeypatch, name):
    beside, choice = CASES[name].beside, CASES[name].full
    plain, expected = draws_of(monkeypatch, lambda: few_steps(toy_data))
    (state, rows), drawn = draws_of(monkeypatch, lambda: few_steps(toy_data, *beside, choice))
    assert drawn == expected
    assert torch.equal(weights(plain[0]), weights(baseline[0]))
    assert torch.equal(weights(state), weights(baseline[0])) is not CASES[name].trains
    if not is_wrapped(choice, "keeps"):
        hashes = [[row.get("ids_hash") for row in found] for found in (rows, baseline[1])]
        assert hashes[0] == hashes[1]


@each
def test_where_no_sample_is_used_again_both_worlds_are_one_run(toy_data, name):
    n, choices = RECIPE.n_draws, (*CASES[name].beside, CASES[name].full)
    real = few_steps(toy_data, *choices, n=n)
    ideal = few_steps(toy_data, *choices, n=n, world_n=512)
    assert real[1] == ideal[1]
    assert torch.equal(weights(real[0]), weights(ideal[0]))


@each
def test_evaluation_changes_nothing(toy_data, name):
    choices = (*CASES[name].beside, CASES[name].full)
    often, never = (
        few_steps(toy_data, *choices, evaluates=evaluates)[0] for evaluates in (True, False)
    )
    assert torch.equal(weights(often), weights(never))


LOSSES = ("flooding", "focal", "mse", "gradient_penalty", "fgm", "vat", "logit_adjustment")


@pytest.mark.parametrize("names", list(permutations(LOSSES, 2)), ids="-".join)
def test_choices_of_the_loss_go_together_in_any_order(toy_data, baseline, names):
    recipe = replace(RECIPE, n_steps=1)
    state, _ = few_steps(toy_data, *(CASES[name].full for name in names), recipe=recipe)
    assert torch.isfinite(weights(state)).all()
    nulls, _ = few_steps(toy_data, *(CASES[name].null for name in names))
    torch.testing.assert_close(weights(nulls), weights(baseline[0]), rtol=1e-6, atol=1e-7)


class OneModule(nullcontext):
    """Counts without telling layers apart, which gradients to images do not allow."""

    parents = frozenset({"Global"})


@each
def test_a_step_costs_what_is_declared(toy_data, name):
    """Multiplications of a deep model: a shallow one has much of its cost in the first layer."""
    recipe, case = replace(RECIPE, model=DEEP, n_steps=1), CASES[name]
    counts = []
    for choices in ((), (*case.beside, case.deep or case.full)):
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = OneModule()
        with counter:
            few_steps(toy_data, *choices, recipe=recipe, evaluates=False)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(step_cost([CASES[name].full]), rel=0.2)
