"""Which checkpoints are kept: values as text, on the grid that both worlds share."""

import json

import pytest

from bootstrap.errors import ConfigurationError
from bootstrap.keep import RULES, AtErrors, Evenly, Keep, LogSpaced, agree, parse_rule
from bootstrap.recipe import evaluation_grid
from bootstrap.spec import format_spec

ERRORS = (0.9, 0.55, 0.5, 0.6, 0.25, 0.4, 0.15)


def due(rule, errors=ERRORS):
    """Positions at which a rule keeps something of a world with these test errors."""
    lowest = [min(errors[:k], default=float("inf")) for k in range(len(errors))]
    return [k for k, e in enumerate(errors) if rule.is_due(k, e, lowest[k], len(errors) - 1)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("evenly", Evenly(n=10)),
        ("evenly(n=3)", Evenly(n=3)),
        ("log(n=4)", LogSpaced(n=4)),
        ("at_errors(levels=(0.5, 0.25))", AtErrors(levels=(0.5, 0.25))),
    ],
)
def test_a_rule_is_read_from_text_and_written_as_it(text, value):
    assert parse_rule(text) == value
    assert parse_rule(format_spec(value, RULES)) == value


def test_no_text_is_no_rule():
    assert parse_rule("") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("evenli(n=3)", "did you mean 'evenly'"),
        ("evenly(n=0)", "at least one"),
        ("log(n=-1)", "at least one"),
        ("at_errors(levels=())", "fractions between 0 and 1"),
        ("at_errors(levels=(50, 30))", "fractions between 0 and 1"),
        ("at_errors(levels=0.5)", "must be a tuple"),
        ("mine.py:Rule", "code, which is not run"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(text, why):
    with pytest.raises(ConfigurationError, match=why):
        parse_rule(text)


@pytest.mark.parametrize("n_steps", [12, 640, 39_000])
@pytest.mark.parametrize("rule", [Evenly(n=10), LogSpaced(n=10), Evenly(n=1), LogSpaced(n=1)])
def test_steps_are_evaluated_ones_and_end_with_the_last(rule, n_steps):
    steps = rule.steps(n_steps)
    assert {*steps} <= {*evaluation_grid(n_steps)}
    assert steps[-1] == n_steps
    assert 0 not in steps
    assert len(steps) <= rule.n


def test_evenly_spaced_steps_are_within_a_hundredth_of_the_run_of_where_they_are_aimed_at():
    aimed = range(3_900, 39_001, 3_900)
    found = Evenly(n=10).steps(39_000)
    assert len(found) == 10
    assert max(abs(a - f) for a, f in zip(aimed, found, strict=True)) <= 390


def test_log_spaced_steps_start_at_the_first():
    assert LogSpaced(n=4).steps(1_000)[0] == 1
    assert len(LogSpaced(n=4).steps(1_000)) == 4


def test_a_level_is_kept_at_the_first_evaluation_at_or_below_it():
    assert due(AtErrors(levels=(0.5, 0.3, 0.2))) == [2, 4, 6]


def test_levels_that_are_passed_at_once_are_one_checkpoint():
    assert due(AtErrors(levels=(0.5, 0.45, 0.3)), (0.9, 0.2, 0.1)) == [1]


def test_a_level_that_is_never_reached_keeps_nothing():
    assert due(AtErrors(levels=(0.1,))) == []


@pytest.mark.parametrize("rule", [Evenly(n=3), LogSpaced(n=3), AtErrors(levels=(0.5, 0.2))])
def test_a_world_keeps_at_most_what_its_rule_says(rule):
    assert len(due(rule)) <= rule.most(0, len(ERRORS) - 1)


def test_a_world_keeps_less_of_its_own_after_its_fork():
    assert Evenly(n=4).most(51, 100) == 2


@pytest.fixture
def begun(tmp_path):
    """A run with a row, that keeps what is given."""

    def begin(keep):
        (tmp_path / "pair.json").write_text(json.dumps({"schema": 1, **keep.to_json()}))
        (tmp_path / "seed-0").mkdir()
        (tmp_path / "seed-0" / "ideal.jsonl").touch()
        return tmp_path

    return begin


BOTH = Keep(test_results=True, checkpoints=Evenly(n=3))


def test_a_new_run_keeps_what_is_asked_for(tmp_path):
    assert agree(tmp_path, BOTH) == BOTH


def test_a_run_that_goes_on_keeps_what_it_was_begun_with(begun):
    assert agree(begun(BOTH), Keep()) == BOTH


def test_a_run_that_was_begun_without_is_refused_with_the_remedy(begun):
    with pytest.raises(ConfigurationError, match=r"begun without --save-test-results.*--overwrite"):
        agree(begun(Keep()), Keep(test_results=True))


def test_a_run_that_was_begun_with_another_rule_is_refused_with_it(begun):
    with pytest.raises(ConfigurationError, match=r"with --keep-checkpoints 'evenly\(n=3\)'"):
        agree(begun(BOTH), Keep(checkpoints=Evenly(n=4)))
