"""Every sample is augmented by draws of its own: functions of the seed, the step and the slot."""

import numpy as np
import pytest
import torch

from bootstrap import augment
from bootstrap.augment import CropFlip, NoAugmentation, crop_flip_draws
from bootstrap.errors import ConfigurationError

MEAN = torch.tensor([0.25, 0.5, 0.75])


def images(n=6, height=8, width=10):
    return torch.from_numpy(np.random.default_rng(0).random((n, height, width, 3), np.float32))


def slow_crop_flip(x, mean, padding_px, seed, step):
    """One image at a time, one pixel at a time."""
    dy, dx, mirrored = crop_flip_draws(len(x), padding_px, seed, step)
    out = torch.empty_like(x)
    for i, image in enumerate(x):
        height, width, _ = image.shape
        for row in range(height):
            for column in range(width):
                source = width - 1 - column if mirrored[i] else column
                y, z = row + int(dy[i]) - padding_px, source + int(dx[i]) - padding_px
                is_inside = 0 <= y < height and 0 <= z < width
                out[i, row, column] = image[y, z] if is_inside else mean
    return out


def with_draws(monkeypatch, dy, dx, mirrored):
    drawn = np.array([dy]), np.array([dx]), np.array([mirrored])
    monkeypatch.setattr(augment, "crop_flip_draws", lambda *_: drawn)


@pytest.mark.parametrize("padding_px", [0, 1, 4])
@pytest.mark.parametrize("step", [0, 7])
def test_a_whole_batch_is_augmented_as_each_image_alone(padding_px, step):
    x = images()
    fast = CropFlip(padding_px=padding_px).apply(x, MEAN, 3, step)
    assert torch.equal(fast, slow_crop_flip(x, MEAN, padding_px, 3, step))


def test_the_same_seed_and_step_give_the_same_crops():
    x = images()
    assert torch.equal(CropFlip().apply(x, MEAN, 0, 5), CropFlip().apply(x, MEAN, 0, 5))


def test_another_step_gives_other_crops():
    x = images()
    assert not torch.equal(CropFlip().apply(x, MEAN, 0, 5), CropFlip().apply(x, MEAN, 0, 6))


def test_another_seed_gives_other_crops():
    x = images()
    assert not torch.equal(CropFlip().apply(x, MEAN, 0, 5), CropFlip().apply(x, MEAN, 1, 5))


def test_the_draws_of_a_slot_do_not_depend_on_the_size_of_the_batch():
    few, many = crop_flip_draws(5, 4, 0, 3), crop_flip_draws(50, 4, 0, 3)
    assert all(np.array_equal(a, b[:5]) for a, b in zip(few, many, strict=True))


def test_slots_have_draws_of_their_own():
    draws = np.stack(crop_flip_draws(64, 4, 0, 3), axis=1)
    assert len({tuple(row) for row in draws.tolist()}) > 40  # of 162


def test_offsets_cover_the_padding_evenly():
    dy, dx, _ = crop_flip_draws(9_000, 4, 0, 0)
    for offsets in (dy, dx):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert ((counts - 1_000) ** 2 / 1_000).sum() < 26.1  # chi-square, 8 degrees, p = 0.001


def test_half_of_the_images_are_mirrored():
    mirrored = crop_flip_draws(10_000, 4, 0, 0)[2]
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 100


def test_a_crop_without_offset_is_the_image(monkeypatch):
    with_draws(monkeypatch, 4, 4, False)
    x = images(n=1)
    assert torch.equal(CropFlip(padding_px=4).apply(x, MEAN, 0, 0), x)


def test_a_flip_mirrors_left_and_right(monkeypatch):
    with_draws(monkeypatch, 4, 4, True)
    x = images(n=1)
    assert torch.equal(CropFlip(padding_px=4).apply(x, MEAN, 0, 0), x.flip(2))


def test_what_is_outside_the_image_is_the_mean(monkeypatch):
    with_draws(monkeypatch, 0, 0, False)
    out = CropFlip(padding_px=2).apply(images(n=1), MEAN, 0, 0)
    assert torch.equal(out[0, :2], MEAN.expand(2, 10, 3))
    assert torch.equal(out[0, :, :2], MEAN.expand(8, 2, 3))


def test_a_crop_moves_the_image(monkeypatch):
    with_draws(monkeypatch, 0, 0, False)
    x = images(n=1)
    out = CropFlip(padding_px=2).apply(x, MEAN, 0, 0)
    assert torch.equal(out[0, 2:, 2:], x[0, :-2, :-2])


def test_the_input_is_left_as_it_was():
    x = images()
    CropFlip().apply(x, MEAN, 0, 0)
    assert torch.equal(x, images())


def test_no_augmentation_returns_the_images():
    x = images()
    assert torch.equal(NoAugmentation().apply(x, MEAN, 0, 0), x)


def test_a_negative_padding_is_refused():
    with pytest.raises(ConfigurationError, match="padding_px=-1 must be at least 0"):
        CropFlip(padding_px=-1)
