"""What ships: small, versioned weights, each with a card that says what it is."""

import json
from pathlib import Path

import pytest

from bootstrap.files import file_sha256
from generators.denoiser import read_card, read_denoiser
from generators.label import read_teacher_card

WEIGHTS = Path(__file__).resolve().parent.parent / "generators" / "weights"
FILES = sorted(WEIGHTS.glob("*.safetensors"))


def test_a_denoiser_ships():
    assert WEIGHTS / "small-v2.safetensors" in FILES


def test_all_weights_together_are_at_most_20_mb():
    assert sum(path.stat().st_size for path in FILES) <= 20e6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_weights_has_a_card(path):
    assert path.with_suffix(".md").read_text().startswith(f"# {path.stem}\n")


def test_the_card_and_the_file_agree_on_the_images_seen():
    seen = read_card(WEIGHTS / "small-v2.safetensors")["images_seen"]
    assert f"{seen:,} images" in (WEIGHTS / "small-v2.md").read_text()


def test_the_shipped_denoiser_draws_cifar_10():
    config = read_denoiser(WEIGHTS / "small-v2.safetensors").config
    assert (config.image_shape, config.n_classes) == ((32, 32, 3), 10)


def test_the_card_and_the_file_agree_on_the_error_of_the_teacher():
    card = read_teacher_card(WEIGHTS / "teacher-v1.safetensors")
    assert card["test_error"] <= 0.1
    assert card["n_test"] == 10_000
    assert f"{card['test_error']:.2%}".replace("%", " %") in (WEIGHTS / "teacher-v1.md").read_text()


def test_the_quality_of_the_shipped_denoiser_is_that_of_this_file():
    weights = WEIGHTS / "small-v2.safetensors"
    quality = json.loads((WEIGHTS / "small-v2.quality.json").read_bytes())
    assert quality["generator"]["weights_sha256"] == file_sha256(weights)
    error = quality["cross_test_error"]["generated_to_real"]
    assert f"{error:.3f} test error on real CIFAR-10" in weights.with_suffix(".md").read_text()
