"""The generator's commands at toy size: fit a denoiser, a teacher, and judge a data set."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from bootstrap.errors import ConfigurationError, DataError, Interrupted
from bootstrap.execution import Flags
from bootstrap.pool import Pool
from bootstrap.shards import read_manifest
from generators.build import build_source
from generators.card import card_text
from generators.commands.quality import QualityOptions, run_quality
from generators.commands.train_generator import TrainGeneratorOptions, run_train_generator
from generators.commands.train_teacher import TrainTeacherOptions, run_train_teacher
from generators.denoiser import DenoiserConfig, read_card, read_denoiser
from generators.importers import import_npz
from generators.label import class_of_ids, read_teacher
from generators.quality import Protocol, memorisation
from generators.sample import DiffusionSpec
from generators.toy import ToySource
from generators.train import DenoiserRecipe
from generators.write import generate

FLAGS = Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)
TINY = DenoiserRecipe(
    config=DenoiserConfig(widths=(16, 32), norm_groups=8),
    n_images_seen=40 * 16,
    batch_size=16,
    warmup_images=64,
)


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Real images, as far as these tests are concerned: toy images as npz parts."""
    folder, source = tmp_path_factory.mktemp("parts"), ToySource(side=8)
    for name, start, n in (("train-0", 2_000_000, 1_500), ("test", 1_000_000, 300)):
        ids = np.arange(start, start + n)
        labels = class_of_ids(ids, 10)
        np.savez(folder / f"{name}.npz", X=source.sample(ids, labels, np.zeros(n, int)), Y=labels)
    return folder


@pytest.fixture(scope="module")
def real(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "toy"
    import_npz(parts, out, name="toy", train_pattern="train-*.npz", test_pattern="test.npz")
    return out


def fit(parts, work, **options):
    return list(
        run_train_generator(
            TrainGeneratorOptions(images=parts, work=work, recipe=TINY, **options), FLAGS, never
        )
    )


@pytest.fixture(scope="module")
def denoiser(parts, tmp_path_factory):
    work = tmp_path_factory.mktemp("denoiser")
    fit(parts, work)
    return work / "denoiser.safetensors"


def test_a_denoiser_is_fitted_to_images_of_any_size(denoiser):
    assert read_denoiser(denoiser).config.image_shape == (8, 8, 3)


def test_the_weights_say_how_many_images_they_have_seen(denoiser):
    assert read_card(denoiser)["images_seen"] == 640


def test_a_grid_of_samples_is_drawn_at_every_snapshot(denoiser):
    assert (denoiser.parent / "samples-000040.png").exists()


def test_fitting_that_was_stopped_goes_on_to_the_same_weights(parts, denoiser, tmp_path):
    options = TrainGeneratorOptions(images=parts, work=tmp_path, recipe=TINY)
    calls = iter(range(1_000))
    with pytest.raises(Interrupted):
        list(run_train_generator(options, FLAGS, lambda: next(calls) >= 17))
    fit(parts, tmp_path)
    again, once = read_denoiser(tmp_path / "denoiser.safetensors"), read_denoiser(denoiser)
    for name, tensor in once.state_dict().items():  # the files also hold the time it took
        assert torch.equal(again.state_dict()[name], tensor)


def test_going_on_with_another_recipe_is_refused(parts, denoiser):
    options = TrainGeneratorOptions(
        images=parts, work=denoiser.parent, recipe=replace(TINY, lr=1e-4)
    )
    with pytest.raises(ConfigurationError, match="lr differ"):
        list(run_train_generator(options, FLAGS, never))


def test_an_imported_data_set_serves_as_images_too(real, tmp_path):
    fit(real, tmp_path)
    assert read_denoiser(tmp_path / "denoiser.safetensors").config.image_shape == (8, 8, 3)


def test_distilling_needs_weights_to_start_from(parts, tmp_path):
    options = TrainGeneratorOptions(
        images=parts, work=tmp_path, recipe=replace(TINY, distill_steps=2)
    )
    with pytest.raises(ConfigurationError, match="--init"):
        list(run_train_generator(options, FLAGS, never))


def test_distilled_weights_are_drawn_from_in_their_own_steps_only(parts, denoiser, tmp_path):
    options = TrainGeneratorOptions(
        images=parts, work=tmp_path, init=denoiser, recipe=replace(TINY, distill_steps=2)
    )
    list(run_train_generator(options, FLAGS, never))
    path = str(tmp_path / "denoiser.safetensors")
    DiffusionSpec(weights=path, solver="euler", n_steps=2).build(tmp_path, FLAGS)
    with pytest.raises(ConfigurationError, match="solver='euler', n_steps=2"):
        DiffusionSpec(weights=path, n_steps=4).build(tmp_path, FLAGS)


@pytest.mark.parametrize("distill_steps", [0, 2])
def test_the_last_line_is_the_source_to_draw_from(parts, denoiser, tmp_path, distill_steps):
    recipe = replace(TINY, distill_steps=distill_steps)
    options = TrainGeneratorOptions(images=parts, work=tmp_path, init=denoiser, recipe=recipe)
    *_, last = run_train_generator(options, FLAGS, never)
    words = shlex.split(last.removeprefix("next: "))
    assert words[:3] == ["deep-bootstrap", "generate", "--source"]
    source = build_source(words[3], tmp_path, FLAGS)
    assert source.path == tmp_path / "denoiser.safetensors"
    assert source.config.nfe == (distill_steps or 16)


def test_training_starts_from_other_weights_with_their_network(parts, denoiser, tmp_path):
    recipe = replace(TINY, config=DenoiserConfig())
    options = TrainGeneratorOptions(images=parts, work=tmp_path, init=denoiser, recipe=recipe)
    list(run_train_generator(options, FLAGS, never))
    assert read_denoiser(tmp_path / "denoiser.safetensors").config.widths == (16, 32)


def test_weights_for_other_images_are_no_start(tmp_path, denoiser):
    images = np.zeros((20, 12, 12, 1), np.uint8)
    np.savez(tmp_path / "train-0.npz", X=images, Y=np.arange(20) % 4)
    options = TrainGeneratorOptions(images=tmp_path, work=tmp_path, init=denoiser, recipe=TINY)
    rule = r"draws images of 8x8x3 in 10 classes, but .* 12x12x1 in 4; leave --init out"
    with pytest.raises(ConfigurationError, match=rule):
        list(run_train_generator(options, FLAGS, never))


def test_a_class_without_images_is_refused_before_training(tmp_path):
    labels = 1 + np.arange(20) % 4  # numbered from 1
    np.savez(tmp_path / "train-0.npz", X=np.zeros((20, 8, 8, 1), np.uint8), Y=labels)
    with pytest.raises(DataError, match=r"no image of class '0' .* number the labels from 0"):
        fit(tmp_path, tmp_path)


def test_the_grid_shows_the_first_ten_of_many_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "train-0.npz", X=images, Y=np.arange(60) % 30)
    fit(tmp_path, tmp_path / "work")
    with Image.open(tmp_path / "work" / "samples-000040.png") as grid:
        assert grid.width == grid.height


def test_the_images_seen_before_are_counted_on_the_card(parts, denoiser, tmp_path):
    fit(parts, tmp_path, init=denoiser)
    assert read_card(tmp_path / "denoiser.safetensors")["images_seen"] == 1_280


@pytest.fixture(scope="module")
def teacher(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    options = TrainTeacherOptions(
        data=real,
        weights=folder / "teacher.safetensors",
        out=folder,
        width=8,
        n_passes=6.0,
        lr=0.05,
    )
    list(run_train_teacher(options, FLAGS, never))
    return options.weights


def test_the_error_on_the_teachers_card_is_its_error_on_the_test_images(teacher, real):
    with safe_open(str(teacher), framework="np") as file:
        card = json.loads(file.metadata()["card"])
    test = Pool(real, "test").first(300)
    guess = read_teacher(teacher, FLAGS).probabilities(test.images).argmax(axis=1)
    assert abs((guess != test.labels).mean() - card["test_error"]) < 0.01  # float16 weights


@pytest.fixture(scope="module")
def judged(real, teacher, tmp_path_factory):
    """A generated data set (toy images again) with its quality measured."""
    folder = tmp_path_factory.mktemp("judged") / "toy"
    generate(ToySource(side=8), folder, {"test": 300, "stream": 1_024})
    list(run_quality(quality_options(folder, real, teacher), FLAGS, never))
    return folder


def quality_options(data, real, teacher):
    protocol = Protocol(n_train=1_024, n_passes=4.0, width=8, batch_size=16, lr=0.05)
    return QualityOptions(data=data, real=real, teacher=teacher, protocol=protocol)


def test_quality_fills_the_cross_test_table(judged):
    errors = json.loads((judged / "quality.json").read_bytes())["cross_test_error"]
    worlds = ("real", "generated")
    assert set(errors) == {f"{a}_to_{b}" for a in worlds for b in worlds}
    assert all(0 < error < 0.9 for error in errors.values())  # guessing has 0.9
    card = (judged / "README.md").read_text()
    assert all(f"{error:.3f}" in card for error in errors.values())


def test_sets_of_one_distribution_look_alike_to_the_teacher(judged):
    quality = json.loads((judged / "quality.json").read_bytes())
    kid = quality["distance"]["generated"]["kid"]["mean"]
    assert abs(kid) < 0.02
    assert abs(quality["labels"]["agreement"] - (1 - quality["teacher"]["test_error"])) < 0.1


def test_a_copy_of_the_training_images_is_called_one(judged, real, teacher, tmp_path):
    train = Pool(real, "stream").first(1_024)
    report, pictures = memorisation_of(train, real, teacher, tmp_path)
    assert report["duplicates"]["exact_in_real_train"] == 1_024
    assert report["pixels"]["fraction_close"] == 1.0
    assert pictures.shape == (40, 8, 8, 3)
    honest = json.loads((judged / "quality.json").read_bytes())["memorisation"]
    assert honest["duplicates"]["exact_in_real_train"] == 0
    assert honest["pixels"]["fraction_close"] < 0.05


def memorisation_of(columns, real, teacher, folder):
    parts = folder / "parts"
    parts.mkdir()
    np.savez(parts / "train-0.npz", X=columns.images, Y=columns.labels)
    np.savez(parts / "test.npz", X=columns.images, Y=columns.labels)
    import_npz(parts, folder / "copies", name="copies", test_pattern="test.npz")
    return memorisation(folder / "copies", real, read_teacher(teacher, FLAGS))


def test_measuring_again_trains_nothing_again(judged, real, teacher):
    before = {p: p.stat().st_mtime_ns for p in judged.rglob("*.safetensors")}
    list(run_quality(quality_options(judged, real, teacher), FLAGS, never))
    assert before
    assert {p: p.stat().st_mtime_ns for p in judged.rglob("*.safetensors")} == before


@pytest.mark.parametrize(("n_steps", "is_shown"), [(4, True), (8, False)])
def test_a_card_shows_the_quality_of_sets_made_alike_only(
    judged, tmp_path, monkeypatch, n_steps, is_shown
):
    made = {"weights_sha256": "1f", "sampler": {"n_steps": 4}, "labels": {"mode": "conditional"}}
    quality = json.loads((judged / "quality.json").read_bytes()) | {"generator": made}
    (tmp_path / "small.quality.json").write_text(json.dumps(quality))
    monkeypatch.setattr("generators.card.SHIPPED", tmp_path)
    manifest = replace(
        read_manifest(judged), generator=made | {"seed": 1, "sampler": {"n_steps": n_steps}}
    )
    text = card_text(tmp_path, manifest, "test", Pool(judged, "test").first(300))
    assert ("Measured on toy, made with the same weights" in text) == is_shown
    assert ("| trained on |" in text) == is_shown
    assert "closest.png" not in text  # that picture is of the other set
