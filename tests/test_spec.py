"""Values are named by text; text is data, never code."""

import sys
from dataclasses import dataclass

import pytest

from bootstrap.errors import ConfigurationError
from bootstrap.models import MLP, MODELS, PreActResNet18
from bootstrap.optimizers import OPTIMIZERS, SCHEDULES, SGD, AdamW, Step
from bootstrap.spec import format_spec, parse_spec


@dataclass(frozen=True, kw_only=True)
class Own:
    """A value of the user's own."""

    name: str = "a"
    depth: int = 1


def not_a_value():
    raise AssertionError("called")


def optimizer(text):
    return parse_spec(text, OPTIMIZERS, "optimizer")


@pytest.mark.parametrize(
    ("value", "table"),
    [
        (PreActResNet18(), MODELS),
        (PreActResNet18(width=16), MODELS),
        (MLP(width=8, depth=1, batch_norm=False), MODELS),
        (SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4), OPTIMIZERS),
        (AdamW(betas=(0.5, 0.75)), OPTIMIZERS),
        (Step(at_fractions=(0.5,), gamma=0.1), SCHEDULES),
        (Own(name='it\'s (a) "quote", 1=2', depth=3), MODELS),
    ],
    ids=repr,
)
def test_a_value_survives_the_way_through_text(value, table):
    assert parse_spec(format_spec(value, table), table, "value") == value


def test_arguments_at_their_default_are_not_written():
    assert format_spec(SGD(lr=0.1, momentum=0.9), OPTIMIZERS) == "sgd(momentum=0.9)"


def test_a_name_alone_is_the_value_of_all_defaults():
    assert optimizer(" adamw ") == AdamW()


def test_an_integer_where_a_float_is_wanted_becomes_one():
    assert type(optimizer("sgd(lr=1)").lr) is float


def test_a_list_where_a_tuple_is_wanted_becomes_one_of_its_type():
    assert optimizer("adamw(betas=[0, 0.5])").betas == (0.0, 0.5)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match="unknown optimizer 'adam'; did you mean 'adamw'"):
        optimizer("adam")


def test_an_unknown_name_gets_the_list_of_names():
    with pytest.raises(ConfigurationError, match="there are: sgd, adamw"):
        optimizer("lion")


def test_an_unknown_argument_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match="no argument 'momentom'; did you mean 'momentum'"):
        optimizer("sgd(momentom=0.9)")


@pytest.mark.parametrize(
    "template",
    [
        "sgd(lr=open({path!r}, 'w'))",
        "sgd(lr=__import__('pathlib').Path({path!r}).touch())",
        "sgd(lr=[open({path!r}, 'w') for i in '1'])",
        "sgd(lr=0.1) or open({path!r}, 'w')",
        "sgd(lr=0.1, **open({path!r}, 'w'))",
        "sgd(lr=f'{{open({path!r}, chr(119))}}')",
    ],
)
def test_code_in_an_argument_is_refused_and_not_run(tmp_path, template):
    path = tmp_path / "was-run"
    with pytest.raises(ConfigurationError, match="arguments must be literals"):
        optimizer(template.format(path=str(path)))
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "sgd(0.1)",
        "sgd(lr=0.1",
        "sgd(lr=)",
        "sgd()(lr=0.1)",
        "sgd(lr=0.1)()",
        "sgd(lr=0.1, lr=0.2)",
        "sgd(lr={[]: 1})",
        "sgd(lr=" + "-" * 20_000 + "1)",
    ],
    ids=lambda text: text[:24],
)
def test_text_that_is_not_a_call_with_named_literals_is_refused(text):
    with pytest.raises(ConfigurationError, match="arguments must be literals"):
        optimizer(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("sgd(lr='0.1')", "must be a float"),
        ("sgd(lr=True)", "must be a float"),
        ("sgd(lr=None)", "must be a float"),
        ("sgd(lr=1e999)", "must be finite"),
        ("sgd(nesterov=1)", "must be a bool"),
        ("adamw(betas=0.9)", "must be a tuple"),
        ("adamw(betas=('a', 'b'))", "must be a float"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused(text, rule):
    with pytest.raises(ConfigurationError, match=rule):
        optimizer(text)


def test_a_float_where_an_integer_is_wanted_is_refused():
    with pytest.raises(ConfigurationError, match=r"width=2\.5 must be a int"):
        parse_spec("mlp(width=2.5)", MODELS, "model")


def test_a_class_of_the_users_own_is_found_by_module_and_name():
    assert parse_spec(f"{__name__}:Own(depth=2)", MODELS, "model") == Own(depth=2)


@pytest.mark.parametrize(
    "name", ["no.such.module:Own", f"{__name__}:NoSuchName", ":Own", ".relative:Own"]
)
def test_a_class_that_cannot_be_imported_is_refused(name):
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        parse_spec(name, MODELS, "model")


def test_a_function_is_refused_and_not_called():
    with pytest.raises(ConfigurationError, match="is not a dataclass"):
        parse_spec(f"{__name__}:not_a_value", MODELS, "model")


def test_a_module_of_the_users_own_may_lie_in_the_working_folder(tmp_path, monkeypatch):
    package = tmp_path / "own_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "wide.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Net:\n"
        "    width: int = 1\n"
    )
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    value = parse_spec("own_nets.wide:Net(width=3)", MODELS, "model")
    assert value.width == 3
    assert format_spec(value, MODELS) == "own_nets.wide:Net(width=3)"
