"""A pair with design choices: stopped, forked, stacked, named, refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from choices import few_steps
from test_paired import FLAGS, content, run_until_done, stop_after
from tiny_pair import COMPARE, TINY

from bootstrap.errors import ConfigurationError
from bootstrap.forks import Control
from bootstrap.interventions import Choice, WorldClass, step_cost
from bootstrap.interventions.adversarial import PGD
from bootstrap.interventions.dropout import Dropout
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.forgetting import ForgettingEvents, ProbeFlips
from bootstrap.interventions.gradient_penalty import GradientPenalty
from bootstrap.interventions.label_noise import LabelNoise
from bootstrap.interventions.label_smoothing import LabelSmoothing
from bootstrap.interventions.logit_adjustment import LogitAdjustment
from bootstrap.interventions.long_tail import LongTail
from bootstrap.interventions.mixing import Cutmix, Mixup
from bootstrap.interventions.noise import InputNoise, WeightNoise
from bootstrap.interventions.penalty import L2
from bootstrap.interventions.sam import SAM
from bootstrap.interventions.weight_decay import WeightDecay
from bootstrap.models import MLP
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.probe import probe
from bootstrap.recipe import Recipe
from bootstrap.runlog import load_run
from bootstrap.verify_run import verify_run

pytestmark = pytest.mark.usefixtures("no_figure")
README = Path(__file__).resolve().parent.parent / "README.md"
N = (40, 100)
STACKABLE = (
    InputNoise(),
    LabelSmoothing(),
    Dropout(),
    WeightNoise(),
    SAM(),
    L2(strength=0.01),
    WeightDecay(strength=0.1),
    LabelNoise(),
    ForgettingEvents(),
    ProbeFlips(),
)
MANY = replace(TINY, choices=(Flooding(level=2.2), *STACKABLE), n_steps=30)


@pytest.fixture(scope="module")
def pair(toy_data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return run_pair(MANY, toy_data, tmp_path_factory.mktemp("pair"), n_samples=N, flags=FLAGS)


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("n_events", [0, 20, 45, 60])
def test_a_stopped_pair_goes_on_with_the_states_of_its_choices(toy_data, pair, tmp_path, n_events):
    assert run_until_done(toy_data, tmp_path, stop_after(n_events), recipe=MANY, n_samples=N)
    assert content(next(tmp_path.iterdir())) == content(pair)


def test_a_forked_world_has_the_states_of_one_trained_from_step_0(toy_data, pair, tmp_path):
    control = Control(share_prefix=False)
    alone = run_pair(MANY, toy_data, tmp_path, n_samples=N, flags=FLAGS, control=control)
    assert content(alone) == content(pair)


def test_records_have_what_the_choices_measure(pair):
    run = load_run(pair)
    names = {"flooded_fraction", "forgetting_events", "test_flips"}
    ideal, real = (run.rows(0, name)[-1]["extra"] for name in ("ideal", "real-n40"))
    assert names <= set(ideal)
    assert not any(key.startswith("train_") for key in ideal)
    assert {*names, "train_flips", "train_error_true_labels"} <= set(real)
    assert ideal["forgetting_events"] == 0 < real["forgetting_events"]
    assert 0 < ideal["flooded_fraction"] < 1
    assert verify_run(pair).problems == ()


def test_pair_json_names_the_choices_in_their_order(pair):
    known = json.loads((pair / "pair.json").read_bytes())
    assert known["recipe"]["choices"][:3] == [
        "flooding(level=2.2)",
        "input_noise",
        "label_smoothing",
    ]
    assert Recipe.from_json(known["recipe"]) == MANY


def test_the_order_of_choices_is_part_of_the_identity(toy_data, tmp_path):
    folders = [
        plan_pair(replace(TINY, choices=c), toy_data, tmp_path, n_samples=N, flags=FLAGS).folder
        for c in ((L2(), SAM()), (SAM(), L2()), (L2(),), ())
    ]
    assert len(set(folders)) == 4


# ---------------------------------------------------------------- stacked seeds


def test_stacked_seeds_have_the_choices_of_seeds_alone(toy_data, tmp_path):
    recipe = replace(TINY, model=MLP(width=8, depth=1), choices=(*STACKABLE,), n_steps=20)
    runs = [
        load_run(run_pair(recipe, toy_data, tmp_path, n_samples=N, seeds=(0, 1), flags=flags))
        for flags in (FLAGS, FLAGS.stacked(2))
    ]
    for key in ("test_loss", "train_loss", "extra.train_error_true_labels"):
        one, other = (run.real[40].columns[key] for run in runs)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("choice", [Mixup(), Cutmix()], ids=repr)
def test_stacked_seeds_mix_each_their_own_batch(toy_data, tmp_path, choice):
    recipe = replace(TINY, choices=(choice,))
    losses = [
        load_run(
            run_pair(recipe, toy_data, tmp_path, n_samples=N, seeds=(0, 1), flags=flags)
        ).ideal.test_loss
        for flags in (FLAGS, FLAGS.stacked(2))
    ]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize("choice", [Flooding(), PGD()], ids=repr)
def test_a_choice_that_changes_the_loss_is_refused_for_stacked_seeds(toy_data, tmp_path, choice):
    with pytest.raises(ConfigurationError, match=r"changes the loss, .* use --replicas 1"):
        plan_pair(
            replace(TINY, choices=(choice,)),
            toy_data,
            tmp_path,
            n_samples=N,
            flags=FLAGS.stacked(2),
        )


def test_a_choice_that_differentiates_twice_is_refused_for_a_compiled_model(toy_data, tmp_path):
    recipe, flags = replace(TINY, choices=(GradientPenalty(),)), replace(FLAGS, compiled=True)
    with pytest.raises(ConfigurationError, match=r"differentiates twice, .* use --compile off"):
        plan_pair(recipe, toy_data, tmp_path, n_samples=N, flags=flags)


# ---------------------------------------------------------------- what is refused


@dataclass(frozen=True, kw_only=True)
class Undeclared(Choice):
    pass


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ((Undeclared(),), "test_choices_pair:Undeclared declares no world_class"),
        ((TINY.model,), "derive it from bootstrap.interventions.Choice"),
        ((L2(), SAM(), L2(strength=1.0)), "choice l2 is given twice"),
        ((ForgettingEvents(), Mixup()), "forgetting_events and mixup do not go together: it mixes"),
        ((LongTail(rho=10.0), LogitAdjustment()), "rho=100.0 is not that of long_tail, 10.0"),
    ],
    ids=["undeclared", "no choice", "twice", "not together", "other shares"],
)
def test_what_does_not_go_is_refused(choices, why):
    with pytest.raises(ConfigurationError, match=why):
        replace(TINY, choices=choices)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("floding", "unknown choice 'floding'; did you mean 'flooding'"),
        ("flooding(levl=1)", "has no argument 'levl'; did you mean 'level'"),
        ("mixup(alpha=0)", "alpha=0.0 must be positive"),
        ("mixup(probability=2)", r"probability=2.0 must be in \[0, 1\]"),
        ("dropout(p=1)", "must be at least 0 and less than 1"),
        ("label_noise(rate=2)", r"must be in \[0, 1\]"),
        ("long_tail(rho=0.5)", "must be at least 1"),
        ("cutout(size_px=-1)", "must be at least 0"),
        ("pgd(n_moves=0)", "must be at least 1"),
        ("vat(xi=0)", "a positive xi"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(text, why):
    with pytest.raises(ConfigurationError, match=why):
        Recipe.from_json({"choices": [text]})


def test_a_recipe_without_choices_is_written_as_before():
    assert "choices" not in TINY.to_json()
    assert Recipe.from_json({"choices": []}) == Recipe()


# ---------------------------------------------------------------- worlds apart


@dataclass(frozen=True, kw_only=True)
class OwnMean(Choice):
    """Stands for what is computed from the N samples themselves."""

    world_class: ClassVar[WorldClass] = WorldClass.REFERENCE
    shares_prefix: ClassVar[bool] = False
    scores: str = ""

    @property
    def files(self):
        return (Path(self.scores),) if self.scores else ()


def test_worlds_that_share_no_prefix_are_trained_apart(toy_data, tmp_path, updates):
    recipe = replace(TINY, choices=(OwnMean(),))
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=N, flags=FLAGS)
    assert len(updates) == 3 * TINY.n_steps
    assert json.loads((folder / "pair.json").read_bytes())["shares_prefix"] is False
    assert json.loads((folder / "summary.json").read_bytes())["shares_prefix"] is False
    assert verify_run(folder).problems == ()


def test_the_bytes_of_a_file_that_a_choice_reads_are_in_the_identity(toy_data, tmp_path):
    path = tmp_path / "scores.txt"

    def folder(text):
        path.write_text(text)
        recipe = replace(TINY, choices=(OwnMean(scores=str(path)),))
        return plan_pair(recipe, toy_data, tmp_path, n_samples=N, flags=FLAGS).folder

    assert folder("1") == folder("1") != folder("2")


# ---------------------------------------------------------------- commands and one's own


def test_compare_takes_choices_and_says_so(toy_data, tmp_path, deep_bootstrap):
    words = (*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path)
    code, _, err = deep_bootstrap(*words, "--choices", "flooding(level=0.1)", "l2")
    assert code == 0
    assert "flooding(level=0.1), l2" in err
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "pair.json").read_bytes())["recipe"]["choices"] == [
        "flooding(level=0.1)",
        "l2",
    ]


def test_the_probe_counts_what_choices_add(toy_data, tmp_path):
    plans = [
        plan_pair(replace(TINY, choices=c), toy_data, tmp_path, n_samples=N, flags=FLAGS)
        for c in ((), (SAM(),))
    ]
    plain, sam = (probe(plan).train_flop for plan in plans)
    assert sam == plain * step_cost([SAM()]) == 2 * plain


def example():
    """The README's choice of one's own."""
    chapter = README.read_text(encoding="utf-8").split("## A design choice of your own")[1]
    return chapter.split("```python\n")[1].split("```")[0]


def test_the_readmes_choice_of_ones_own_is_trained_with(toy_data, tmp_path, deep_bootstrap):
    (tmp_path / "mine.py").write_text(example())
    words = (*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path / "out")
    code, _, err = deep_bootstrap(
        *words, "--choices", f"{tmp_path}/mine.py:CentredLogits(strength=1)"
    )
    assert code == 0, err
    (run,) = (tmp_path / "out").iterdir()
    known = json.loads((run / "pair.json").read_bytes())
    assert list(known["identity"]["own_files"]) == ["choices.0"]
    extra = load_run(run).rows(0, "real-n48")[-1]["extra"]
    assert extra["mean_logit"] < 0.5


def test_the_readmes_choice_changes_no_byte_at_null_strength(toy_data, tmp_path):
    (tmp_path / "mine.py").write_text(example())
    text = f"{tmp_path}/mine.py:CentredLogits(strength=0)"
    (choice,) = Recipe.from_json({"choices": [text]}).choices
    assert few_steps(toy_data, choice)[1] == few_steps(toy_data)[1]
