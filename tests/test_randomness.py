"""Draws are functions of their coordinates; their values are part of the format."""

import numpy as np
import pytest
import torch

from bootstrap.randomness import (
    Stream,
    bits,
    integers,
    normals,
    permutation,
    torch_seed,
    uniforms,
)

ALL_DRAWS = (bits, uniforms, normals, permutation)


def test_raw_bits_are_the_golden_ones():
    expected = [15003734204198539638, 13859618513508960101, 12389738016430293093]
    assert bits(0, Stream.ORDER, n=3).tolist() == expected


def test_raw_bits_at_three_coordinates_are_the_golden_ones():
    expected = [4641112932169341520, 4069464135737539485, 9934083456645272867, 9935841882776910897]
    assert bits(7, Stream.AUGMENT, 5, 6, 7, n=4).tolist() == expected


def test_permutations_are_the_golden_ones():
    assert permutation(3, Stream.ORDER, 1, n=10).tolist() == [2, 1, 7, 5, 3, 6, 4, 0, 9, 8]


def test_uniforms_are_the_golden_ones():
    expected = [0.7367080962661611, 0.7891379261115962, 0.9977552433707291]
    assert uniforms(1, Stream.AUGMENT, 2, n=3).tolist() == expected


def test_integers_are_the_golden_ones():
    expected = [4, 6, 3, 1, 5, 2, 2, 2, 3, 4, 4, 7]
    assert integers(10, 0, Stream.SAMPLE_CLASS, 976_562, n=12).tolist() == expected


def test_normals_are_the_golden_ones():
    expected = [0.047438208, 0.353093594, 0.275866091, 0.36601162, 0.406266898]
    drawn = normals(1, Stream.SAMPLE_NOISE, 1_000_000_000, 0, n=5)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_torch_seeds_are_the_golden_ones():
    assert torch_seed(0, Stream.INIT) == 3958268632467852609


def test_stream_numbers_are_part_of_the_format():
    assert {stream.name: stream.value for stream in Stream} == {
        "ORDER": 1,
        "AUGMENT": 2,
        "LABEL_NOISE": 3,
        "INIT": 4,
        "EVERY_STEP_TEST": 5,
        "SAMPLE_CLASS": 6,
        "SAMPLE_NOISE": 7,
        "IMPORT_ORDER": 8,
        "TOY": 9,
        "DENOISER_BATCH": 10,
        "DENOISER_NOISE": 11,
        "BOOTSTRAP": 12,
        "ARCHITECTURE": 13,
        "CHOICE": 14,
        "CONDITION": 15,
        "LINEAR_TOY": 16,
        "PRETRAIN": 20,
    }


def test_every_purpose_has_bits_of_its_own():
    drawn = [tuple(bits(0, stream, 1, n=4).tolist()) for stream in Stream]
    assert len({*drawn}) == len(Stream)


def test_neighbouring_seeds_and_coordinates_have_bits_of_their_own():
    keys = [(0,), (0, 1), (0, 0, 1), (0, 0, 0, 1), (1,), (1, 1), (-1,), (2**53,), (2**53 + 1,)]
    drawn = [tuple(bits(seed, Stream.TOY, *at, n=4).tolist()) for seed, *at in keys]
    assert len({*drawn}) == len(keys)


@pytest.mark.parametrize("seed", [-1, -2, 2**63 + 1, 2**64 - 1])
def test_a_seed_beyond_int64_is_not_rounded(seed):
    expected = np.random.Philox(key=(1 << 64) + (seed % 2**64), counter=0).random_raw(4)
    np.testing.assert_array_equal(bits(seed, Stream.ORDER, n=4), expected)


@pytest.mark.parametrize("draw", [bits, uniforms, normals], ids=lambda f: f.__name__)
def test_a_longer_draw_starts_with_the_shorter_one(draw):
    long, short = draw(5, Stream.TOY, 3, n=11), draw(5, Stream.TOY, 3, n=6)
    np.testing.assert_array_equal(long[:6], short)


@pytest.mark.parametrize("draw", ALL_DRAWS, ids=lambda f: f.__name__)
def test_draws_do_not_depend_on_what_was_drawn_before(draw):
    forwards = [draw(0, Stream.AUGMENT, step, n=7) for step in range(5)]
    backwards = [draw(0, Stream.AUGMENT, step, n=7) for step in reversed(range(5))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize("draw", ALL_DRAWS, ids=lambda f: f.__name__)
def test_the_global_generators_are_left_alone(draw):
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    draw(0, Stream.AUGMENT, n=100)
    np.testing.assert_array_equal(np.random.get_state()[1], np_before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_normals_have_the_moments_of_a_standard_normal():
    n = 100_000
    z = normals(0, Stream.SAMPLE_NOISE, n=n).astype(np.float64)
    moments = [z.mean(), (z**2).mean(), (z**3).mean(), (z**4).mean()]
    deviations = np.sqrt(np.array([1, 2, 15, 96]) / n)
    assert (np.abs(np.array(moments) - [0, 1, 0, 3]) < 4 * deviations).all()


def test_the_two_normals_of_a_word_are_uncorrelated():
    n = 50_000
    z = normals(0, Stream.SAMPLE_NOISE, n=2 * n).astype(np.float64).reshape(n, 2)
    assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / np.sqrt(n)


def test_uniforms_fill_the_unit_interval_evenly():
    u = uniforms(0, Stream.AUGMENT, n=10_000)
    counts = np.histogram(u, bins=10, range=(0, 1))[0]
    assert counts.sum() == 10_000
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 27.9  # chi-square, 9 degrees, p = 0.001


def test_a_permutation_holds_every_number_once():
    assert sorted(permutation(0, Stream.ORDER, 9, n=1_000)) == list(range(1_000))


def test_more_than_three_coordinates_are_refused():
    with pytest.raises(ValueError, match="4 coordinates given, a Philox counter holds 3"):
        bits(0, Stream.TOY, 1, 2, 3, 4, n=1)
