"""Distances between feature sets: closed forms, limits, and what each number is blind to."""

import numpy as np
import pytest
import torch

from generators.metrics import Estimate, compare_features, kernel_distance, neighbourhoods


def gaussian(n, seed, shift=0.0, scale=1.0, dim=4):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(shift + scale * rng.standard_normal((n, dim)).astype(np.float32))


def test_the_kernel_distance_equals_its_definition():
    real, generated = gaussian(5, 0), gaussian(4, 1, shift=0.5)

    def k(a, b):
        return (float(a.double() @ b.double()) / 4 + 1) ** 3

    within_real = np.mean([k(real[i], real[j]) for i in range(5) for j in range(5) if i != j])
    within = np.mean([k(generated[i], generated[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([k(a, b) for a in real for b in generated])
    assert kernel_distance(real, generated) == pytest.approx(within_real + within - 2 * between)


def test_the_kernel_distance_is_unbiased():
    values = [kernel_distance(gaussian(50, 2 * i), gaussian(50, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert min(values) < 0  # a biased estimate never is


def test_the_kernel_distance_grows_with_a_shift():
    near, far = (kernel_distance(gaussian(200, 0), gaussian(200, 1, s)) for s in (0.2, 1.0))
    assert far > 3 * near > 0


def test_two_sets_of_one_distribution_cover_each_other():
    found = neighbourhoods(gaussian(400, 0), gaussian(400, 1))
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8
    assert found["density"] == pytest.approx(1, abs=0.15)
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=0.04)  # Naeem et al., equation 8


def test_far_sets_share_nothing():
    found = neighbourhoods(gaussian(100, 0), gaussian(100, 1, shift=100))
    assert set(found.values()) == {0.0}


def test_a_collapsed_generator_is_precise_but_covers_little():
    found = neighbourhoods(gaussian(400, 0), gaussian(400, 1, scale=0.1))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.05
    assert found["coverage"] < 0.3


def test_the_interval_holds_the_mean_and_is_absent_for_two_subsets():
    found = Estimate.of([1.0, 2.0, 3.0], subset_n=10)
    assert (found.mean, found.n_subsets) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.302653 * 1 / np.sqrt(3), rel=1e-5)
    assert 2 - found.low == pytest.approx(found.high - 2)
    assert Estimate.of([1.0, 2.0], subset_n=10).low is None


def test_subsets_are_disjoint_and_of_one_size():
    found = compare_features(gaussian(350, 0), gaussian(320, 1), subset_n=100)
    assert {e.n_subsets for e in found.values()} == {3}
    assert set(found) == {"kid", "precision", "recall", "density", "coverage"}


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="need 100 of each"):
        compare_features(gaussian(350, 0), gaussian(99, 1), subset_n=100)
