"""Copies are found although a bit or the side differs; what merely looks alike is not one."""

import numpy as np
import pytest

from bootstrap.duplicates import (
    NearDuplicate,
    block_means,
    count_by_split,
    equal_pairs,
    hash_images,
    leak_lines,
    near_pairs,
    nearly_equal,
    split_of,
)


def make_images(n, shape=(8, 8, 3), seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (n, *shape), dtype=np.uint8)


def find(images):
    return near_pairs(block_means(images), lambda index: images[index])


def nudge(image, seed=0):
    """Every byte one up, one down or as it is, without overflow."""
    steps = np.random.default_rng(seed).integers(-1, 2, image.shape)
    return np.clip(image.astype(int) + steps, 0, 255).astype(np.uint8)


def brute_force(images):
    """The indices of images that nearly are an earlier one, by comparing all pairs."""
    wide = images.astype(int)
    steps = np.abs(wide[:, None] - wide[None])
    mirrored = np.abs(wide[:, None, :, ::-1] - wide[None])
    is_near = np.minimum(steps.max(axis=(2, 3, 4)), mirrored.max(axis=(2, 3, 4))) <= 1
    return np.flatnonzero(np.tril(is_near, -1).any(axis=1))


CHANGES = {
    "one byte up": lambda image: image + (np.arange(image.size).reshape(image.shape) == 77),
    "all bytes up": lambda image: image + 1,
    "all bytes down": lambda image: image - 1,
    "any byte by one": nudge,
    "mirrored": lambda image: image[:, ::-1],
    "mirrored, any byte by one": lambda image: nudge(image[:, ::-1]),
}


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 10, 1), (3, 5, 3), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_near_duplicate_is_found_with_the_image_it_is_of(shape, change):
    images = make_images(200, shape, low=1, high=255)
    if np.prod(shape) < 50:
        images = images[:5]  # few small images, or some are alike by chance
    images[-1] = CHANGES[change](images[1])
    if change == "one byte up" and np.prod(shape) < 78:
        images[-1] = images[1]
        images[-1, 0, 0, 0] += 1
    assert find(images) == [(len(images) - 1, 1, "mirrored" in change)]


@pytest.mark.parametrize("position", [(0, 0, 0), (7, 7, 2), (3, 4, 1)])
def test_an_image_with_one_byte_off_by_two_is_another_image(position):
    images = make_images(50, low=2, high=254)
    images[-1] = images[3]
    images[-1][position] += 2
    assert find(images) == []


def test_an_upside_down_image_is_another_image():
    images = make_images(50)
    images[-1] = images[3][::-1]
    assert find(images) == []


def test_an_image_that_is_its_own_mirror_is_no_duplicate():
    images = make_images(20)
    images[7] = np.maximum(images[7], images[7][:, ::-1])
    assert find(images) == []


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_among_many_alike_is_what_comparing_all_pairs_finds(seed):
    images = make_images(150, (4, 4, 1), seed, low=100, high=104)
    images[100:120] = [nudge(image, seed) for image in images[20:40]]
    found = [again for again, _, _ in find(images)]
    assert len(found) > 20
    np.testing.assert_array_equal(found, brute_force(images))


def test_an_image_with_several_near_duplicates_is_counted_once_each():
    images = make_images(60, low=1, high=255)
    images[10], images[20] = images[0] + 1, images[0][:, ::-1]
    assert [pair[0] for pair in find(images)] == [10, 20]


@pytest.mark.parametrize("side", range(1, 41))
def test_blocks_lie_the_same_from_either_side(side):
    images = make_images(3, (side, side, 2))
    mirrored = block_means(np.ascontiguousarray(images[:, :, ::-1]))
    np.testing.assert_array_equal(mirrored, block_means(images)[:, :, ::-1])


def test_the_means_of_blocks_are_means():
    images = make_images(2)
    expected = images.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4, 5))
    np.testing.assert_allclose(block_means(images), expected, rtol=1e-6)


def test_a_difference_of_one_does_not_wrap_around():
    black, white = np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8)
    assert not nearly_equal(black, white, is_mirrored=False).any()
    assert nearly_equal(white, white - 1, is_mirrored=False).all()


def test_equal_images_are_paired_with_the_last_before_them():
    images = make_images(10)
    images[[4, 7]] = images[2]
    hashes = hash_images(images)
    for shards in ([hashes], [hashes[:3], hashes[3:3], hashes[3:]]):
        np.testing.assert_array_equal(equal_pairs(shards), [[4, 2], [7, 4]])


def test_a_line_for_each_split_says_how_many_of_it_are_test_images_and_which_is_first():
    test = np.array([30, 10, 20], dtype=np.uint64)
    hashes = {
        "test": test,
        "stream": np.array([5, 20, 99, 20, 30], dtype=np.uint64),
        "reference": np.array([11, 29, 31, 0], dtype=np.uint64),
        "pretrain": np.array([10], dtype=np.uint64),
    }
    stream, pretrain = leak_lines(hashes)
    assert stream.startswith("3 images of stream are test images too (stream id 1000000001 is test")
    assert "is test id 2)" in stream
    assert pretrain.startswith("1 images of pretrain are test images too (pretrain id 500000000 is")


@pytest.mark.parametrize("empty", ["test", "stream"])
def test_without_images_nothing_leaks(empty):
    hashes = {name: np.array([7], dtype=np.uint64) for name in ("test", "stream")}
    assert leak_lines(hashes | {empty: np.empty(0, dtype=np.uint64)}) == []


@pytest.mark.parametrize(
    ("id_", "split"),
    [(0, "test"), (10**8 - 1, "test"), (10**8, "reference"), (10**9 + 5, "stream")],
)
def test_an_id_tells_its_split(id_, split):
    assert split_of(id_) == split


def test_counts_are_by_the_splits_of_both_images():
    leak = NearDuplicate(id=10**9 + 5, first_id=7, is_mirrored=True)
    inside = NearDuplicate(id=10**9 + 8, first_id=10**9, is_mirrored=False)
    assert count_by_split((leak, inside, leak)) == "stream in test 2, stream in stream 1"
    assert str(leak) == "stream id 1000000005 is test id 7 mirrored"
    assert str(inside) == "stream id 1000000008 is stream id 1000000000 but for the least bit"
