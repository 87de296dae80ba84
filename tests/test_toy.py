"""Toy images are functions of (id, label, attempt), and p(label | image) is what it claims."""

import numpy as np
import pytest

from generators import toy
from generators.label import class_of_ids
from generators.toy import ToySource

N = 3_000


def draw(source, n=N):
    ids = np.arange(n)
    labels = class_of_ids(ids, source.n_classes, source.seed)
    return source.sample(ids, labels, np.zeros(n, dtype=np.int64)), labels


@pytest.fixture(scope="module", params=[0.12, 0.16], ids=["easy", "hard"])
def drawn(request):
    source = ToySource(side=8, noise=request.param)
    images, labels = draw(source)
    return source, images, labels, source.posterior(images)


def test_the_posterior_is_a_distribution(drawn):
    _, _, _, p = drawn
    assert p.shape == (N, 10)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)


def test_the_posterior_is_as_sure_as_it_is_right(drawn):
    _, _, labels, p = drawn
    surplus = (p.argmax(axis=1) == labels) - p.max(axis=1)
    assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(N)


def test_the_posterior_is_calibrated_for_every_class(drawn):
    _, _, labels, p = drawn
    surplus = (labels[:, None] == np.arange(10)) - p
    assert (np.abs(surplus.mean(axis=0)) < 4 * surplus.std(axis=0) / np.sqrt(N)).all()


def test_more_noise_is_harder():
    errors = [ToySource(noise=noise).bayes_error(500) for noise in (0.05, 0.2, 0.4)]
    assert errors == sorted(errors)
    assert errors[0] < 0.02 < errors[-1]


def test_the_bayes_error_does_not_depend_on_how_many_images_are_taken_at_a_time(monkeypatch):
    at_once = ToySource().bayes_error(50)
    monkeypatch.setattr(toy, "PIECE", 20)
    assert ToySource().bayes_error(50) == pytest.approx(at_once, rel=1e-9)


def test_an_image_does_not_depend_on_what_else_is_asked_for():
    source = ToySource()
    ids, labels, attempts = np.array([5, 9, 2]), np.array([0, 3, 7]), np.array([0, 1, 2])
    together = source.sample(ids, labels, attempts)
    alone = [source.sample(ids[[i]], labels[[i]], attempts[[i]])[0] for i in (2, 1, 0)]
    np.testing.assert_array_equal(together, alone[::-1])


@pytest.mark.parametrize("change", [(6, 0, 0), (5, 1, 0), (5, 0, 1)], ids=str)
def test_another_id_label_or_attempt_is_another_image(change):
    images = ToySource().sample(*(np.array(pair) for pair in zip((5, 0, 0), change, strict=True)))
    assert (images[0] != images[1]).any()


def test_another_seed_is_another_world_of_images():
    at = (np.array([5]), np.array([0]), np.array([0]))
    assert (ToySource(seed=0).sample(*at) != ToySource(seed=1).sample(*at)).any()


def test_images_have_the_shape_that_was_asked_for():
    source = ToySource(side=12, n_channels=1)
    images = source.sample(np.array([0, 1]), np.array([0, 1]), np.array([0, 0]))
    assert (images.shape, images.dtype) == ((2, *source.image_shape), np.uint8)
    assert source.image_shape == (12, 12, 1)


def test_classes_are_roughly_uniform():
    counts = np.bincount(class_of_ids(np.arange(10_000), 10), minlength=10)
    assert len(counts) == 10
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 27.9  # chi-square, 9 degrees, p = 0.001


def test_the_class_of_an_id_does_not_depend_on_the_other_ids():
    ids = np.arange(1_000, 1_100)
    together = class_of_ids(ids, 10)
    alone = np.concatenate([class_of_ids(ids[[i]], 10) for i in range(100)])
    np.testing.assert_array_equal(together, alone)


def test_classes_do_not_go_round_robin():
    assert len({*class_of_ids(np.arange(0, 1_000, 10), 10)}) == 10


def test_few_images_are_clipped():
    images, _ = draw(ToySource(), 500)
    assert ((images == 0) | (images == 255)).mean() < 0.02


def test_the_provenance_holds_every_dial():
    assert ToySource(noise=0.3, seed=4).provenance() == {
        "source": "toy",
        "side": 8,
        "n_channels": 3,
        "n_classes": 10,
        "n_modes": 2,
        "noise": 0.3,
        "seed": 4,
    }
