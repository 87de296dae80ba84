"""Schedules are functions of the step; optimisers are torch's, with the arguments given."""

import pytest
import torch

from bootstrap.optimizers import SGD, AdamW, Constant, Cosine, Step


def parameters():
    return [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]


def factors(schedule, steps, n_steps=100):
    return [schedule.factor(step, n_steps) for step in steps]


def test_a_constant_schedule_is_one_throughout():
    assert factors(Constant(), (0, 50, 99)) == [1, 1, 1]


def test_a_cosine_goes_from_one_through_a_half_to_zero():
    assert factors(Cosine(), (0, 50, 100)) == pytest.approx([1, 0.5, 0])


def test_a_cosine_is_still_positive_at_the_last_update():
    assert 0 < Cosine().factor(99, 100) < 0.001


def test_a_warm_up_rises_linearly_to_one():
    expected = [0.1, 0.2, 0.5, 1.0]
    assert factors(Cosine(warmup_fraction=0.1), (0, 1, 4, 9)) == pytest.approx(expected)


def test_the_cosine_after_a_warm_up_is_at_a_half_in_the_middle_of_the_rest():
    assert factors(Cosine(warmup_fraction=0.1), (10, 55, 100)) == pytest.approx([1, 0.5, 0])


def test_a_warm_up_shorter_than_a_step_is_none():
    assert Cosine(warmup_fraction=0.001).factor(0, 100) == 1


def test_a_step_schedule_falls_at_each_fraction():
    schedule = Step(at_fractions=(0.3, 0.6), gamma=0.5)
    assert factors(schedule, (0, 29, 30, 59, 60, 99)) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_sgd_is_built_with_its_arguments():
    value = SGD(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01)
    optimizer = value.build(parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    given = {name: optimizer.defaults[name] for name in vars(value)}
    assert given == vars(value)


def test_adamw_is_built_with_its_arguments():
    value = AdamW(lr=0.3, betas=(0.5, 0.75), weight_decay=0.01)
    optimizer = value.build(parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    given = {name: optimizer.defaults[name] for name in vars(value)}
    assert given == vars(value)


def test_plain_sgd_has_no_weight_decay_unless_asked():
    assert SGD().build(parameters()).defaults["weight_decay"] == 0


@pytest.mark.parametrize("value", [SGD(), AdamW()], ids=repr)
def test_an_optimiser_updates_every_parameter(value):
    held = parameters()
    optimizer = value.build(held)
    sum(p.square().sum() for p in held).backward()
    optimizer.step()
    assert all((p < 1).all() for p in held)
