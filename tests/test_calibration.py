"""Calibration: errors of confidence and temperatures are those of closed forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import context_of
from test_paired import FLAGS
from tiny_pair import TINY

from bootstrap.interventions import Scored
from bootstrap.interventions.calibration import (
    Calibration,
    best_temperature,
    calibration_error,
    cross_fitted,
)
from bootstrap.pair import run_pair
from bootstrap.runlog import load_run


def calibrated():
    """Logits of which each class is the label as often as they say: 14 images, 3 classes."""
    shares = [(1, 1, 2), (6, 3, 1)]
    rows = [[(np.log(share), k) for k in range(3) for _ in range(share[k])] for share in shares]
    logits, labels = zip(*(pair for row in rows for pair in row), strict=True)
    return torch.tensor(np.array(logits)), torch.tensor(labels)


def of_confidence(*confidences):
    """Logits of two classes, of which the first has this probability."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0, 40.0])
def test_a_multiple_of_calibrated_logits_has_that_temperature(temperature):
    logits, labels = calibrated()
    assert best_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=1e-9)


def test_each_half_is_scaled_by_the_temperature_of_the_other():
    logits, labels = calibrated()
    both = torch.stack([2 * logits, 5 * logits], dim=1).flatten(0, 1)  # at even and odd places
    scaled, temperature = cross_fitted(both, labels.repeat_interleave(2))
    torch.testing.assert_close(scaled[::2], logits * 2 / 5, rtol=1e-9, atol=0)
    torch.testing.assert_close(scaled[1::2], logits * 5 / 2, rtol=1e-9, atol=0)
    assert temperature == pytest.approx(10**0.5, rel=1e-9)


def test_scaled_scores_are_those_of_calibrated_logits():
    logits, labels = (tensor.repeat_interleave(2, dim=0) for tensor in calibrated())
    found = measured(7 * logits.float(), labels)
    log_p = logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]
    assert found["test_temperature"] == pytest.approx(7, rel=1e-5)
    assert found["test_scaled_loss"] == pytest.approx(-log_p.mean().item(), rel=1e-5)
    assert found["test_scaled_soft_error"] == pytest.approx(1 - log_p.exp().mean().item(), rel=1e-5)


def test_scaling_leaves_every_prediction_as_it_was():
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(101, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (101,), generator=generator)
    scaled, temperature = cross_fitted(logits, labels)
    assert torch.equal(scaled.argmax(dim=1), logits.argmax(dim=1))
    assert temperature > 1


def test_the_calibration_error_is_that_of_a_calculation_by_hand():
    logits = of_confidence(0.75, 0.78, 0.9, 0.95, 0.55)  # bins of a fifteenth: two, two and one
    labels = torch.tensor([0, 1, 0, 0, 1])
    by_hand = (abs(0.75 + 0.78 - 1) + abs(0.9 + 0.95 - 2) + 0.55) / 5
    assert calibration_error(logits, labels) == pytest.approx(by_hand)


def test_calibrated_logits_have_no_calibration_error():
    assert calibration_error(*calibrated()) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("margin", [1.0, 1_000.0])
def test_where_every_label_is_right_or_wrong_a_bound_is_the_temperature(margin):
    logits = torch.tensor([[margin, 0.0]] * 4, dtype=torch.float64)
    bounds = [best_temperature(logits, torch.full((4,), label)) for label in (0, 1)]
    assert bounds == pytest.approx([0.01, 100])


def test_logits_that_are_all_alike_have_temperature_1():
    assert best_temperature(torch.full((4, 3), 2.0), torch.arange(4) % 3) == 1


def test_a_masked_class_changes_no_temperature():
    logits, labels = calibrated()
    masked = torch.cat([logits, torch.full((len(labels), 1), -torch.inf)], dim=1)
    assert best_temperature(masked, labels) == pytest.approx(best_temperature(logits, labels))


def measured(logits, labels):
    given = {"images": labels, "labels": labels, "logits": logits, "predicted": labels}
    scored = Scored(**given, ids=np.arange(len(labels)))
    return Calibration().measure(scored, context_of(Calibration()))


def test_a_single_image_has_no_temperature():
    assert measured(of_confidence(0.75), torch.tensor([0])) == {"test_ece": pytest.approx(0.25)}


def test_a_pair_with_it_is_one_without_it_but_for_what_it_measures(toy_data, tmp_path, no_figure):
    recipes = (TINY, replace(TINY, choices=(Calibration(),)))
    plain, told = (
        load_run(run_pair(r, toy_data, tmp_path, n_samples=(40,), flags=FLAGS)) for r in recipes
    )
    for world in plain.worlds:
        rows = told.rows(0, world)
        extras = [row.pop("extra") for row in rows]
        assert [row | {"wall_s": 0} for row in rows] == [
            row | {"wall_s": 0} for row in plain.rows(0, world)
        ]
        assert {len(extra) for extra in extras} == {4}
        assert all(0 <= extra["test_ece"] <= 1 for extra in extras)
        marks = [
            json.loads((run.path / "seed-0" / f"{world}.done.json").read_bytes())["weights_sha256"]
            for run in (plain, told)
        ]
        assert marks[0] == marks[1]
