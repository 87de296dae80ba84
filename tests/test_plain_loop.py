"""The baseline of `make bench-pair` does what the engine does, on the published schedule."""

from contextlib import closing

import numpy as np
import pytest
import torch

from bootstrap.batch import Batch, Normalisation
from bootstrap.evaluate import evaluate
from bootstrap.models import SmallCNN
from bootstrap.pool import Pool
from tests.bench.pair import Options, measure
from tests.bench.plain_loop import build_plain_loop, evaluated_steps


@pytest.fixture
def test_images(toy_data):
    with closing(Pool(toy_data, "test")) as pool:
        yield pool.first(200), pool.manifest


@pytest.fixture
def plain_loop(test_images):
    columns, manifest = test_images
    torch.manual_seed(0)
    model = SmallCNN(width=4).build(manifest.image_shape, manifest.n_classes)
    return build_plain_loop(
        model,
        columns,
        columns,
        manifest,
        torch.device("cpu"),
        n_steps=40,
        batch_size=16,
        n_workers=0,
    )


def test_the_published_schedule_evaluates_a_default_run_962_times():
    assert len(evaluated_steps(39_000)) == 962


def test_the_plain_loop_scores_a_model_as_the_engine_does(plain_loop, test_images, flags):
    columns, manifest = test_images
    device = torch.device("cpu")
    normalise = Normalisation.of(manifest.mean, manifest.deviation, device)
    batch = Batch.from_columns(columns, device)
    ours = evaluate(plain_loop.model, batch, normalise, flags).mean()
    plain = plain_loop.evaluate(plain_loop.test_loader)
    assert plain.error == ours.error
    np.testing.assert_allclose(
        [plain.soft_error, plain.loss], [ours.soft_error, ours.loss], rtol=1e-5
    )


def test_the_plain_loop_fits_the_images_that_it_is_given(plain_loop):
    plain_loop.train_loader = plain_loop.test_loader  # not augmented
    before = plain_loop.evaluate(plain_loop.test_loader).loss
    steps = plain_loop.steps()
    for _ in range(40):
        next(steps)
    assert plain_loop.evaluate(plain_loop.test_loader).loss < 0.8 * before


def test_a_full_evaluation_drops_the_last_incomplete_training_batch(plain_loop):
    assert plain_loop.n_images_evaluated == 200 + 192


@pytest.mark.long
def test_the_pair_benchmark_says_how_a_run_compares(tmp_path, capsys, flags):
    options = Options(
        width=2, n_samples=1_000, n_test=300, n_steps_measured=5, n_rounds=1, n_workers=0
    )
    measure(options, flags, tmp_path)
    assert "a whole run: " in capsys.readouterr().out
