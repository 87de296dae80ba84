"""Pruning: scores are what they are called, and both worlds are filtered by them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import few_steps, weights
from test_paired import FLAGS
from tiny_pair import COMPARE, PLAIN, TINY
from torch import nn
from torch.nn.functional import cross_entropy

from bootstrap.errors import ConfigurationError, DataError, NotEnoughData
from bootstrap.example_scores import el2n, grand, grand_last_layer
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.label_noise import LabelNoise
from bootstrap.interventions.pruning import (
    EL2N,
    ForgettingScore,
    GraNd,
    RandomPruning,
    harder_share,
)
from bootstrap.interventions.scores import FIRST_ID, Scores, read_scores
from bootstrap.models import MLP, PreActResNet18
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.recipe import Recipe
from bootstrap.runlog import load_run
from bootstrap.scoring import ScoringJob, Tally, evaluations, score_stream
from bootstrap.verify_run import verify_run
from bootstrap.worlds import STREAM_START
from generators.toy import ToySource
from generators.write import generate

pytestmark = pytest.mark.usefixtures("no_figure")
SCORER = replace(TINY, n_steps=6, model=MLP(width=8, depth=1))


def save(path, scores, reference=None, **known):
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float32))
    sample = rows if reference is None else np.atleast_2d(np.asarray(reference, dtype=np.float32))
    path.write_bytes(Scores(scores=rows, reference=sample, **known).to_bytes())
    return str(path)


@pytest.fixture
def drawn(tmp_path):
    """Scores of 2,048 samples, all different."""
    rng = np.random.default_rng(0)
    return save(tmp_path / "scores.npz", rng.random(2_048), rng.random(512))


def kept_ids(data, choice, n_samples=(48,), seed=0, world_n=0):
    plan = plan_pair(replace(TINY, choices=(choice,)), data, data, n_samples=n_samples, flags=FLAGS)
    order = plan.order(seed, world_n)
    return plan, order.ids(np.arange(len(order.places)))


# ---------------------------------------------------------------- the scores of a model


def resnet(n_classes=10):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PreActResNet18(width=4).build((8, 8, 3), n_classes)
        images = torch.randn(6, 3, 8, 8)
    nn.init.normal_([m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight, std=0.1)
    return model.eval(), images, torch.arange(6) % n_classes


@pytest.fixture(autouse=True)
def quiet_rng():
    with torch.random.fork_rng():
        yield


def slopes(model, x, labels, of):
    """Norms of gradients to some weights, one sample at a time."""
    found = []
    for image, label in zip(x, labels, strict=True):
        parameters = [p for p in of(model) if p.requires_grad]
        loss = cross_entropy(model(image[None]), label[None])
        gradient = torch.autograd.grad(loss, parameters)
        found.append(sum(g.double().square().sum() for g in gradient).sqrt())
    return torch.stack(found)


def test_the_gradient_norms_of_many_samples_are_those_of_each_alone():
    model, x, labels = resnet()
    expected = slopes(model, x, labels, lambda m: m.parameters())
    torch.testing.assert_close(grand(model, x, labels), expected, rtol=1e-4, atol=1e-6)


def test_the_last_layers_gradient_norm_is_exact_for_that_layer():
    model, x, labels = resnet()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    expected = slopes(model, x, labels, lambda m: head.parameters())
    torch.testing.assert_close(grand_last_layer(model, x, labels), expected, rtol=1e-5, atol=1e-7)


def test_a_model_without_a_linear_layer_has_no_last_layers_gradient_norm():
    images = torch.zeros(1, 3, 2, 2)
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten())
    with pytest.raises(ConfigurationError, match="has no linear layer; use el2n"):
        grand_last_layer(model, images, torch.zeros(1).long())


def test_el2n_is_the_length_of_the_error_of_the_probabilities():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    model = nn.Identity()
    p = 1 / (1 + np.exp(-2.0))
    expected = torch.tensor([1 - p, p], dtype=torch.float64) * np.sqrt(2)
    torch.testing.assert_close(el2n(model, logits, torch.tensor([0, 0])), expected)


def test_forgetting_counts_right_then_wrong_and_never_learned_is_most(toy_data):
    job = ScoringJob(recipe=SCORER, data=toy_data, method="forgetting_score", flags=FLAGS)
    tally = Tally(job, "reference")
    labels = torch.zeros(4, dtype=torch.int64)
    right = [[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 0, 1]]
    for row in right:
        tally.n_asked += 1
        logits = torch.stack([torch.tensor(row) > 0, torch.tensor(row) == 0], dim=1).float()
        tally.count(slice(0, 4), nn.Identity(), logits, labels)
    assert tally.scores()[:4].round(1).tolist() == [0.0, 2.0, 4.0, 1.0]
    assert evaluations(job) == {1, 2, 3, 4, 5, 6}


# ---------------------------------------------------------------- what is kept


def test_ids_of_scores_are_those_of_the_stream():
    assert FIRST_ID == STREAM_START


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"keep": 0.25}, (0.75, 1.0)),
        ({"keep": 0.5, "skip": 0.1}, (0.4, 0.9)),
        ({"keep": 0.3, "hardest": False}, (0.0, 0.3)),
    ],
    ids=str,
)
def test_the_asked_share_of_the_stream_stays_by_its_scores(toy_data, tmp_path, options, window):
    scores = np.random.default_rng(1).permutation(2_048) / 2_048
    sample = np.linspace(0, 1, 2_001)
    choice = EL2N(scores=save(tmp_path / "s.npz", scores, sample), **options)
    plan, ids = kept_ids(toy_data, choice)
    found = scores[ids - STREAM_START]
    assert plan.n_kept == len(ids) == pytest.approx(2_048 * options["keep"], abs=4)
    assert window[0] - 1e-3 <= found.min() < found.max() <= window[1] + 1e-3


def test_thresholds_are_those_of_the_population_not_of_the_stream(toy_data, tmp_path):
    scores = np.random.default_rng(1).random(2_048)
    easy = save(tmp_path / "s.npz", scores, np.linspace(0, 0.5, 1_001))
    _, ids = kept_ids(toy_data, EL2N(scores=easy, keep=0.5))
    assert len(ids) == pytest.approx(0.75 * 2_048, rel=0.05)  # the stream is harder than it


def test_ties_are_before_nothing():
    share = harder_share(np.array([1.0, 2.0]), np.array([1.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(share, [2 / 5, 1 / 5])
    assert harder_share(np.array([-9.0]), np.zeros(7)).max() < 1


def test_a_random_share_stays_whatever_the_sample(toy_data):
    plan, ids = kept_ids(toy_data, RandomPruning(keep=0.3))
    assert plan.n_kept == pytest.approx(0.3 * 2_048, rel=0.15)
    assert len({*ids.tolist()}) == len(ids)


def test_real_worlds_have_the_first_n_that_are_kept(toy_data, drawn, tmp_path):
    folder = run_pair(
        *(replace(TINY, choices=(EL2N(scores=drawn),)), toy_data, tmp_path / "out"),
        n_samples=(48,),
        flags=FLAGS,
    )
    known = json.loads((folder / "pair.json").read_bytes())
    assert (known["keep_fraction"], known["n_kept"]) == (0.5, pytest.approx(1_024, rel=0.1))
    done = json.loads((folder / "seed-0" / "real-n48.done.json").read_bytes())
    assert done["n_drawn"] == pytest.approx(96, rel=0.4)
    assert load_run(folder).ideal.columns["unique_samples_seen"][0, -1] == TINY.n_draws
    assert verify_run(folder).problems == ()


def test_too_few_kept_samples_are_refused_with_their_number(toy_data, drawn, tmp_path):
    recipe = replace(TINY, choices=(EL2N(scores=drawn, keep=0.1),), n_steps=30)
    with pytest.raises(NotEnoughData, match=r"samples that are kept, 480 are needed"):
        plan_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)


# ---------------------------------------------------------------- files of scores


@pytest.mark.parametrize("method", ["el2n", "grand", "grand_last_layer", "forgetting_score"])
def test_scoring_twice_gives_equal_bytes(toy_data, tmp_path, method):
    job = ScoringJob(recipe=SCORER, data=toy_data, method=method, n_runs=2, flags=FLAGS)
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    found = [score_stream(job, path) for path in files]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert found[0].scores.shape == (1, 2_048)
    assert found[0].reference.shape == (1, 128)
    assert np.isfinite(found[0].scores).all()
    assert found[0].scores.std() > 0
    assert read_scores(files[0]).card == found[0].card


class Stopped(Exception):
    """What a test stops scoring with."""


@pytest.mark.parametrize("method", ["el2n", "forgetting_score"])
def test_scoring_goes_on_after_a_stop_from_the_models_that_are_scored(toy_data, tmp_path, method):
    job = ScoringJob(recipe=SCORER, data=toy_data, method=method, n_runs=3, flags=FLAGS)
    whole, path = tmp_path / "whole.npz", tmp_path / "parts" / "s.npz"
    score_stream(job, whole)
    said = []

    def stop(line):
        said.append(line)
        if "model 3" in line:
            raise Stopped

    with pytest.raises(Stopped):
        score_stream(job, path, stop)
    assert not path.exists()
    score_stream(job, path, said.append)
    trained = [line[-1] for line in said if "before" not in line]
    assert trained == ["1", "2", "3", "3"]
    assert path.read_bytes() == whole.read_bytes()
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "grand"},
        {"recipe": replace(SCORER, n_steps=5)},
        {"recipe": replace(SCORER, choices=(LabelNoise(),))},
        {"flags": replace(FLAGS, replicas=2)},
        "damage",
    ],
    ids=("method", "steps", "condition", "flags", "damage"),
)
def test_a_model_of_another_job_or_a_damaged_file_is_not_gone_on_from(
    toy_data, tmp_path, monkeypatch, changed
):
    job = ScoringJob(recipe=SCORER, data=toy_data, n_runs=1, flags=FLAGS)
    monkeypatch.setattr(Scores, "to_bytes", stop_at_the_last(Scores.to_bytes))
    with pytest.raises(Stopped):
        score_stream(job, tmp_path / "s.npz")
    monkeypatch.undo()
    (part,) = tmp_path.iterdir()
    if changed == "damage":
        part.write_bytes(part.read_bytes()[:-9])
    else:
        job = replace(job, **changed)
    said = []
    score_stream(job, tmp_path / "s.npz", said.append)
    assert [line for line in said if "before" in line] == []


def stop_at_the_last(to_bytes):
    """A stop once the model is scored, and before the mean is written."""

    def stopping(scores):
        if "number" not in scores.card:
            raise Stopped
        return to_bytes(scores)

    return stopping


def test_oracle_models_see_each_sample_once_or_say_how_many_are_missing(tmp_path):
    data = tmp_path / "toy"
    sizes = {"test": 64, "reference": 64, "stream": 1_024, "pretrain": 128}
    generate(ToySource(side=8), data, sizes)
    job = ScoringJob(recipe=SCORER, data=data, meaning="oracle", n_runs=1, flags=FLAGS)
    found = score_stream(job, tmp_path / "s.npz")
    assert found.reference.shape == (1, 64)
    longer = replace(job, recipe=replace(SCORER, n_steps=9))
    with pytest.raises(NotEnoughData, match="holds 128 samples, 144 are needed"):
        score_stream(longer, tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"method": "el2m"}, "use one of el2n, grand"),
        ({"meaning": "mine"}, "use one of shared, oracle, own"),
        ({"meaning": "own"}, "give both with --meaning own"),
        ({"n_runs": 0}, "at least one"),
        ({"recipe": replace(SCORER, choices=(Flooding(),))}, "conditions of the data only"),
        ({"recipe": replace(SCORER, choices=(RandomPruning(),))}, "conditions of the data only"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused(toy_data, words, why):
    with pytest.raises(ConfigurationError, match=why):
        ScoringJob(**{"recipe": SCORER, "data": toy_data, "flags": FLAGS, **words})


def refused(data, choice, *others, n_samples=(48,)):
    recipe = replace(TINY, choices=(*others, choice))
    plan_pair(recipe, data, data, n_samples=n_samples, flags=FLAGS)


def test_scores_of_something_else_are_refused(toy_data, tmp_path):
    score_stream(
        ScoringJob(recipe=SCORER, data=toy_data, n_runs=1, flags=FLAGS), tmp_path / "s.npz"
    )
    path = str(tmp_path / "s.npz")
    refused(toy_data, EL2N(scores=path))  # is not
    with pytest.raises(ConfigurationError, match="scores of method 'el2n', not 'grand'"):
        refused(toy_data, GraNd(scores=path))
    with pytest.raises(ConfigurationError, match="of meaning 'shared', not 'oracle'"):
        refused(toy_data, EL2N(scores=path, meaning="oracle"))
    with pytest.raises(ConfigurationError, match="scored under the conditions"):
        refused(toy_data, EL2N(scores=path), LabelNoise())
    other = tmp_path / "other"
    generate(ToySource(side=8, seed=5), other, {"test": 64, "reference": 64, "stream": 2_048})
    with pytest.raises(DataError, match="scores of other images"):
        refused(other, EL2N(scores=path))


def test_a_file_that_is_none_is_refused_in_a_line(toy_data, tmp_path):
    with pytest.raises(ConfigurationError, match="no such file of scores"):
        refused(toy_data, EL2N(scores=str(tmp_path / "none.npz")))
    (tmp_path / "text.npz").write_text("no scores")
    whole = tmp_path / "whole.npz"
    save(whole, np.zeros(9))
    (tmp_path / "torn.npz").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "empty.npz").touch()
    for name in ("text", "torn", "empty"):
        with pytest.raises(DataError, match="not a file of scores"):
            refused(toy_data, EL2N(scores=str(tmp_path / f"{name}.npz")))
    with pytest.raises(ConfigurationError, match="scores='FILE' is missing"):
        ForgettingScore()
    with pytest.raises(ConfigurationError, match="give one pruning choice"):
        Recipe(choices=(RandomPruning(), EL2N(scores="x")))
    with pytest.raises(ConfigurationError, match="both together at most 1"):
        EL2N(scores="x", keep=0.8, skip=0.3)


# ---------------------------------------------------------------- own samples


@pytest.fixture(scope="module")
def own(toy_data, tmp_path_factory):
    """Own scores of N = 96 of two seeds."""
    path = tmp_path_factory.mktemp("own") / "own.npz"
    job = ScoringJob(
        *(),
        recipe=SCORER,
        data=toy_data,
        meaning="own",
        n_runs=1,
        n_own=96,
        seeds=(0, 1),
        flags=FLAGS,
    )
    score_stream(job, path)
    return EL2N(scores=str(path), meaning="own")


def test_the_real_world_has_exactly_the_hardest_of_its_own_samples(toy_data, own):
    for seed in (0, 1):
        plan, ids = kept_ids(toy_data, own, seed=seed)
        row = own.found.row(seed)
        mine = own.found.own_ids[row]
        hard = mine[np.argsort(-own.found.of_ids(mine, row), kind="stable")][:48]
        assert {*ids[:48].tolist()} == {*hard.tolist()}
        assert not {*ids[48:].tolist()} & {*mine.tolist()}
        assert plan.ideal_n_samples + 48 <= len(ids)


def test_the_ideal_world_never_sees_what_its_scores_were_made_from(toy_data, own):
    plan, whole = kept_ids(toy_data, own)
    _, ids = kept_ids(toy_data, own, world_n=plan.ideal_n_samples)
    np.testing.assert_array_equal(ids, whole[48:])


def test_own_scores_share_no_step_and_are_not_the_run_where_nothing_is_used_again(toy_data, own):
    real, ideal = (few_steps(toy_data, own, n=48, world_n=n)[0] for n in (48, 500))
    assert not torch.equal(weights(real), weights(ideal))


def test_a_pair_of_own_scores_is_trained_apart_and_verified(toy_data, own, tmp_path, updates):
    recipe = replace(TINY, choices=(own,))
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(48,), seeds=(0, 1), flags=FLAGS)
    assert len(updates) == 4 * TINY.n_steps
    assert json.loads((folder / "pair.json").read_bytes())["shares_prefix"] is False
    assert verify_run(folder).problems == ()


def test_own_scores_are_for_their_n_and_seeds(toy_data, own, tmp_path):
    with pytest.raises(ConfigurationError, match="leave 48 samples; use --n-samples 48"):
        refused(toy_data, own, n_samples=(96,))
    recipe = replace(TINY, choices=(own,))
    with pytest.raises(ConfigurationError, match="seed 2 has no own scores"):
        run_pair(recipe, toy_data, tmp_path, n_samples=(48,), seeds=(2,), flags=FLAGS)


# ---------------------------------------------------------------- commands


def test_the_command_scores_and_compare_prunes_by_it(toy_data, tmp_path, deep_bootstrap):
    path = tmp_path / "el2n.npz"
    words = ("--preset", "smoke", "--model", "mlp(width=8, depth=1)", "--n-steps", "8", *PLAIN)
    code, out, err = deep_bootstrap(
        *("score", *words, "--data", toy_data, "--scores", path, "--n-runs", "2")
    )
    assert code == 0, err
    assert "el2n of 2,048 stream samples, shared" in out
    assert "2 models, 256 training samples in all" in out
    code, _, err = deep_bootstrap(
        *(*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path / "out"),
        *("--choices", f"el2n(scores='{path}', keep=0.7)"),
    )
    assert code == 0, err
    code, _, err = deep_bootstrap(
        *(*COMPARE, "--n-samples", "48", "--data", toy_data, "--out", tmp_path / "out"),
        *("--choices", f"el2n(scores='{path}', keep=0.05)"),
    )
    assert (code, err.count("\n")) == (4, 1)
