"""Scores are means over a fixed set; scoring changes nothing."""

import math

import numpy as np
import pytest
import torch

from bootstrap.batch import Batch, Normalisation
from bootstrap.evaluate import evaluate, score
from bootstrap.models import PreActResNet18

NORMALISE = Normalisation(torch.full((3,), 0.5), torch.full((3,), 0.25))


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PreActResNet18(width=4).build((8, 8, 3), 10)


def batch(n):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)[:n]
    return Batch(
        images=torch.from_numpy(images), labels=torch.arange(20)[:n] % 10, ids=np.arange(n)
    )


# softmax rows: (1/4, 3/4) and (4/5, 1/5); the second image is misclassified
LOGITS = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
LABELS = torch.tensor([1, 1])


def test_the_error_is_the_fraction_of_wrong_labels():
    assert score(LOGITS, LABELS).error.tolist() == [0, 1]


def test_the_soft_error_is_one_minus_the_probability_of_the_label():
    assert score(LOGITS, LABELS).soft_error.tolist() == pytest.approx([1 / 4, 4 / 5])


def test_the_loss_is_the_cross_entropy_in_nats():
    assert score(LOGITS, LABELS).loss.tolist() == pytest.approx([math.log(4 / 3), math.log(5)])


def test_a_small_soft_error_keeps_its_digits():
    certain = score(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
    assert certain.soft_error.item() == pytest.approx(math.exp(-30), rel=1e-6)


def test_the_mean_is_over_the_first_n_images():
    scores = score(LOGITS, LABELS)
    assert (scores.mean(1).error, scores.mean().error) == (0, 0.5)


def test_the_mean_of_each_metric_is_its_own():
    means = score(LOGITS, LABELS).mean()
    assert means.soft_error == pytest.approx((1 / 4 + 4 / 5) / 2)
    assert means.loss == pytest.approx((math.log(4 / 3) + math.log(5)) / 2)


def test_padding_the_last_chunk_changes_no_score(model, flags):
    padded = evaluate(model, batch(13), NORMALISE, flags, chunk=8)
    whole = evaluate(model, batch(16), NORMALISE, flags, chunk=8)
    assert torch.equal(padded.loss, whole.loss[:13])


def test_every_image_is_scored_once(model, flags):
    assert len(evaluate(model, batch(13), NORMALISE, flags, chunk=8).error) == 13


def test_scores_do_not_depend_on_the_chunk(model, flags):
    small = evaluate(model, batch(20), NORMALISE, flags, chunk=3)
    large = evaluate(model, batch(20), NORMALISE, flags)
    torch.testing.assert_close(small.loss, large.loss, rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_normalised_images_in_eval_mode(model, flags):
    x = (batch(8).images / 255 - 0.5) / 0.25
    logits = model.eval()(x.permute(0, 3, 1, 2))
    expected = torch.nn.functional.cross_entropy(logits, batch(8).labels, reduction="none")
    found = evaluate(model.train(), batch(8), NORMALISE, flags, chunk=8)
    torch.testing.assert_close(found.loss.float(), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(model, flags, is_training):
    model.train(is_training)
    evaluate(model, batch(4), NORMALISE, flags)
    assert {module.training for module in model.modules()} == {is_training}


def test_weights_and_batch_norm_statistics_are_left_as_they_were(model, flags):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, batch(8), NORMALISE, flags)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_gradient_is_kept(model, flags):
    assert not evaluate(model, batch(4), NORMALISE, flags).loss.requires_grad


def test_global_generators_are_left_alone(model, flags):
    torch_before, np_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluate(model, batch(8), NORMALISE, flags)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], np_before)
