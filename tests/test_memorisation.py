"""Copies are found: exact ones, mirrored ones, and those a least bit away; and nothing else."""

import numpy as np
import pytest
import torch

from generators.memorisation import (
    compare_distances,
    n_exact_duplicates,
    n_exact_in,
    n_near_duplicates,
    nearest,
    nearest_or_mirrored,
    pairs_for_a_picture,
    pixels,
)


def noise(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def test_a_distance_in_pixels_is_an_rms_difference():
    dark, light = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 51, np.uint8)
    assert nearest(pixels(dark), pixels(light)).distance.item() == pytest.approx(0.2)


@pytest.mark.parametrize("chunk", [2, 100])
def test_the_nearest_is_that_of_brute_force(chunk):
    queries, references = torch.randn(7, 3), torch.randn(11, 3)
    distances = (queries[:, None] - references).square().sum(dim=2).sqrt()
    found = nearest(queries, references, chunk=chunk)
    torch.testing.assert_close(found.distance, distances.min(dim=1).values)
    assert torch.equal(found.index, distances.argmin(dim=1))


def test_a_mirrored_copy_is_found():
    train = noise(20, 0)
    queries = np.concatenate([noise(3, 1), np.ascontiguousarray(train[5:6, :, ::-1])])
    found = nearest_or_mirrored(pixels, queries, train)
    assert found.closest(1).item() == 3
    assert found.index[3].item() == 5
    assert found.distance[3].item() == pytest.approx(0, abs=1e-3)


def test_a_generator_that_copies_is_seen_and_one_that_does_not_is_not():
    train, test, fresh = noise(50, 0), noise(400, 1), noise(400, 2)
    copies = np.concatenate([fresh[:300], train, train])
    real = nearest_or_mirrored(pixels, test, train)
    honest = compare_distances(nearest_or_mirrored(pixels, fresh, train), real)
    copying = compare_distances(nearest_or_mirrored(pixels, copies, train), real)
    assert honest["fraction_close"] < 0.04
    assert copying["fraction_close"] > 0.25


def test_exact_duplicates_are_counted_once_for_each_copy():
    images = noise(5, 0)
    assert n_exact_duplicates(images) == 0
    assert n_exact_duplicates(np.concatenate([images, images[:2], images[:1]])) == 3
    assert n_exact_in(np.concatenate([images[:2], noise(3, 1)]), images) == 2


def test_a_copy_a_least_bit_away_is_a_near_duplicate():
    images = noise(1_500, 0) // 2
    near, far = images[[3, 4]] + 1, images[[5]] + 9
    assert n_near_duplicates(images) == 0
    assert n_near_duplicates(np.concatenate([images, near, far])) == 2


def test_a_picture_shows_the_closest_pairs_query_above_reference():
    train, queries = noise(9, 0), noise(6, 1)
    queries[4] = train[7]
    picture = pairs_for_a_picture(queries, train, nearest(pixels(queries), pixels(train)), n=2)
    assert picture.shape == (4, 4, 4, 3)
    assert (picture[0] == queries[4]).all()
    assert (picture[2] == train[7]).all()
